from __future__ import annotations

import dataclasses
import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from medha_jax.config import SchedulerConfig
from medha_jax.engine import ChunkReport, EngineEvent, EngineService, Failed, NewTokens, Queued, TickReport
from medha_jax.runtime import MeshExecutor
from medha_jax.server.trace import ScheduleTrace
from medha_jax.text import Tokenizer
from tests.engine.serving import Heard, ask, engine_of

NAN = float("nan")


def report(started: float, ended: float, *chunks: ChunkReport, **changes: Any) -> TickReport:
    tick = TickReport(
        started=started,
        ended=ended,
        timed=True,
        predicted=0.04,
        chunks=chunks,
        bucket=(8, 64, 0, 0),
        padding=0.25,
        running=1,
        waiting=0,
        free_pages=(5, 5),
        cached_pages=(0, 0),
        held_pages=(1, 1),
        preempted=(),
        lost_tokens=0,
        cancelled=(),
    )
    return dataclasses.replace(tick, **changes)


def read(path: Path) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = json.loads(path.read_text())
    for event in events:
        assert event["ph"] in {"M", "X", "C", "b", "e"}
        assert isinstance(event["pid"], int)
        if event["ph"] != "M":
            assert event["ts"] >= 0
    return events


def lifeline(events: list[dict[str, Any]], number: int) -> list[tuple[str, str, float]]:
    own = [event for event in events if event.get("id") == number]
    return [(event["ph"], event["name"], event["ts"] / 1e6) for event in sorted(own, key=lambda event: event["ts"])]


def test_what_ran_where(tmp_path: Path) -> None:
    trace = ScheduleTrace(tmp_path / "trace.json", lambda: 100.0)
    trace.on_tick(
        report(
            100.5,
            100.55,
            ChunkReport(1, 0, (0,), 0, 64, False, 0.5, True),
            ChunkReport(2, 0, (0,), 30, 1, True, NAN, False),
            ChunkReport(3, 0, (0,), 40, 1, True, NAN, False),
            ChunkReport(4, 1, (0, 1), 128, 32, False, -1.0, False),
        )
    )
    trace.close()
    events = read(tmp_path / "trace.json")
    processes = {event["pid"]: event["args"]["name"] for event in events if event["name"] == "process_name"}
    tracks = {(event["pid"], event["tid"]): event["args"]["name"] for event in events if event["name"] == "thread_name"}
    slices = [event for event in events if event["ph"] == "X"]
    assert all((event["ts"], event["dur"]) == (500000.0, pytest.approx(50000.0)) for event in slices)
    placed = {(processes[event["pid"]], tracks[event["pid"], event["tid"]]): event for event in slices}
    assert {place: event["name"] for place, event in placed.items()} == {
        ("stage 0 group 0", "ticks"): "tick of 66",
        ("stage 0 group 0", "decodes"): "2 decodes",
        ("stage 0 group 0", "chunk 0"): "request 1: 0 + 64",
        ("stage 1 group 0", "ticks"): "tick of 32",
        ("stage 1 group 0", "chunk 0"): "request 4: 128 + 32",
        ("stage 1 group 1", "ticks"): "tick of 32",
        ("stage 1 group 1", "chunk 0"): "request 4: 128 + 32",
    }
    assert placed["stage 0 group 0", "chunk 0"]["args"] == {
        "predicted_s": 0.04,
        "measured_s": pytest.approx(0.05),
        "request": 1,
        "tokens": 64,
        "context": 64,
        "slack": 0.5,
    }
    assert placed["stage 0 group 0", "decodes"]["args"]["requests"] == [2, 3]
    assert placed["stage 0 group 0", "decodes"]["args"]["contexts"] == [31, 41]
    assert placed["stage 0 group 0", "ticks"]["args"]["bucket"] == [8, 64, 0, 0]


def test_copies_of_pages_are_counted(tmp_path: Path) -> None:
    trace = ScheduleTrace(tmp_path / "trace.json", lambda: 100.0)
    chunk = ChunkReport(4, 0, (0,), 0, 64, False, 1.0, True)
    trace.on_tick(report(100.5, 100.6, chunk))
    trace.on_tick(report(100.6, 100.7, chunk, copied=(3, 5)))
    trace.close()
    (counted,) = [event for event in read(tmp_path / "trace.json") if event["ph"] == "C"]
    assert counted["name"] == "KV pages copied" and counted["args"] == {"stored": 3, "restored": 5}
    assert counted["ts"] == pytest.approx(0.6e6)


def test_slices_name_their_layers_on_their_stage(tmp_path: Path) -> None:
    trace = ScheduleTrace(tmp_path / "trace.json", lambda: 100.0)
    held = ChunkReport(4, 1, (0,), 1024, 256, False, -1.0, False)
    trace.on_tick(report(100.5, 100.55, held, bucket=(0, 256, 0, 0), layers=(2, 5)))
    trace.close()
    bars = [event for event in read(tmp_path / "trace.json") if event["ph"] == "X"]
    assert [event["name"] for event in bars] == ["slice of 256: layers 2 to 4", "request 4: 1024 + 256, layers 2 to 4"]
    assert bars[0]["args"]["layers"] == [2, 5]


def test_lifelines_show_who_waited(tmp_path: Path) -> None:
    now = 0.0
    trace = ScheduleTrace(tmp_path / "trace.json", lambda: now)
    accepted: list[tuple[int, EngineEvent]] = [(1, Queued(2, 0.7, 7)), (2, Queued(3, 0.8, 7)), (3, Queued(4, 0.9, 7))]
    now = 1.0
    trace.on_events(accepted)
    chunk = ChunkReport(1, 0, (0,), 0, 64, False, 0.5, True)
    now = 2.1
    trace.on_tick(report(2.0, 2.1, chunk))
    now = 3.1
    trace.on_tick(report(3.0, 3.1, dataclasses.replace(chunk, start=64)))
    trace.on_events([(1, NewTokens((1,), "a")), (1, NewTokens((2,), "b"))])
    now = 4.0
    trace.on_tick(report(3.5, 4.0, preempted=(1,), cancelled=(3,)))
    trace.on_tick(report(5.0, 5.1, chunk))
    now = 6.0
    trace.on_events([(2, Failed("deadline", "late"))])
    now = 7.0
    trace.close()
    trace.close()
    events = read(tmp_path / "trace.json")
    assert sorted(lifeline(events, 1)) == sorted(
        [
            ("b", "request 1", 1.0),
            ("b", "queued", 1.0),
            ("e", "queued", 2.0),
            ("b", "prefill", 2.0),
            ("b", "wait", 2.1),
            ("e", "wait", 3.0),
            ("e", "prefill", 3.1),
            ("b", "decode", 3.1),
            ("e", "decode", 3.5),
            ("b", "preempted", 3.5),
            ("e", "preempted", 5.0),
            ("b", "prefill", 5.0),
            ("e", "prefill", 7.0),
            ("e", "request 1", 7.0),
        ]
    )
    ends = {event["id"]: event["args"]["ended"] for event in events if "ended" in event.get("args", {})}
    assert ends == {1: "open when the trace ended", 2: "deadline", 3: "cancelled"}


def test_the_trace_ends_at_its_cap(tmp_path: Path) -> None:
    trace = ScheduleTrace(tmp_path / "trace.json", lambda: 1.0, most_events=10)
    for _ in range(100):
        trace.on_tick(report(2.0, 2.1, ChunkReport(1, 0, (0,), 0, 64, False, 0.5, True)))
        trace.on_events([(1, NewTokens((1,), "a"))])
    assert len(read(tmp_path / "trace.json")) == 10
    trace.close()
    assert len(read(tmp_path / "trace.json")) == 10


def test_a_full_disk_ends_the_trace_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    trace = ScheduleTrace(Path("/dev/full"), lambda: 1.0)
    for _ in range(1000):
        trace.on_tick(report(2.0, 2.1, ChunkReport(1, 0, (0,), 0, 64, False, 0.5, True)))
    trace.close()
    assert caplog.text.count("No space left on device") == 1


def test_a_file_that_cannot_be_written_is_an_error_at_once(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        ScheduleTrace(tmp_path / "missing" / "trace.json", lambda: 1.0)


def test_the_trace_of_a_running_engine(executor: MeshExecutor, byte_tokenizer: Tokenizer, tmp_path: Path) -> None:
    trace, heard = ScheduleTrace(tmp_path / "trace.json", time.monotonic), Heard()

    def listen(events: list[tuple[int, EngineEvent]]) -> None:
        trace.on_events(events)
        heard(events)

    engine = engine_of(executor, byte_tokenizer, SchedulerConfig(prefix_cache=False), on_tick=trace.on_tick)
    service = EngineService(engine, listen, time.monotonic)
    service.start()
    numbers = [service.submit(ask(seed, 300, 5)) for seed in range(3)]
    chunks = {number: heard.completion(number).chunks for number in numbers}
    service.stop()
    trace.close()
    events = read(tmp_path / "trace.json")
    opened = Counter((event["id"], event["name"], event["ph"]) for event in events if event["ph"] in "be")
    for number in numbers:
        ran = [event for event in events if event["name"].startswith(f"request {number}:")]
        assert [event["args"]["tokens"] for event in ran] == list(chunks[number])
        for name in ("queued", "prefill", "decode", f"request {number}"):
            assert opened[number, name, "b"] == opened[number, name, "e"] == 1
    for event in events:
        assert event.get("dur", 1) > 0
