from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from medha_jax.cli import run
from medha_jax.config import Buckets, MeshConfig, RuntimeConfig, SchedulerConfig
from medha_jax.engine import Engine, TickReport, scheduler_for
from medha_jax.scheduler.time_model import LinearTimeModel
from medha_jax.server.trace import ScheduleTrace
from medha_jax.simulate.calibration import read_calibration, write_ticks
from medha_jax.simulate.clock import VirtualClock
from medha_jax.simulate.counted_output import CountedOutput
from medha_jax.simulate.executor import SimulatedExecutor
from medha_jax.simulate.hardware import SpecError
from medha_jax.simulate.served_ticks import served_ticks
from medha_jax.simulate.simulation import request_for
from medha_jax.simulate.times import SummedTimes
from tests.simulate.simulated import request

CONTEXT, START_S = 512, 50.0
BUCKETS = Buckets(decode=(4,), prefill=(16, 32), chunks=2, slices=())
MESH = MeshConfig(page_size=16, buckets=BUCKETS, spp=2, kvp=2, tokens_per_group=256, shared_buckets=BUCKETS)


def traced(path: Path, mesh: MeshConfig) -> list[TickReport]:
    """Serve a few requests on the virtual clock and trace them; what the trace was told."""
    clock: Any = VirtualClock()
    clock.advance_to(START_S)
    model = LinearTimeModel(fixed=0.01, tokens=1e-4, attention=1e-6)
    config = RuntimeConfig(mesh=mesh, slots=4, pool_tokens=CONTEXT)
    executor: Any = SimulatedExecutor(config, CONTEXT, SummedTimes(model), clock)
    scheduler = scheduler_for(executor, SchedulerConfig(prefix_cache=False), model)
    trace, told = ScheduleTrace(path, clock), list[TickReport]()

    def on_tick(report: TickReport) -> None:
        told.append(report)
        trace.on_tick(report)

    engine = Engine(executor, scheduler, model, clock, CountedOutput, on_tick=on_tick)
    for prompt, output in ((300, 8), (20, 12), (100, 1)):
        engine.add(request_for(request(clock(), prompt, output), 0.1))
    while engine.busy:
        engine.step()
    clock.advance_to(clock() + 7)
    engine.add(request_for(request(clock(), 40, 3), 0.1))
    while engine.busy:
        engine.step()
    trace.close()
    return told


def chunks_of(report: TickReport) -> list[list[tuple[int, int, tuple[int, ...]]]]:
    stages: list[list[tuple[int, int, tuple[int, ...]]]] = [[] for _ in range(1 + max(c.stage for c in report.chunks))]
    for one in report.chunks:
        stages[one.stage].append((one.start, one.length, tuple(sorted(one.groups))))
    return [sorted(stage) for stage in stages]


@pytest.mark.parametrize("mesh", [dataclasses.replace(MESH, spp=1, kvp=1), MESH], ids=["1x1", "2x2"])
def test_a_trace_has_the_ticks_that_ran(tmp_path: Path, mesh: MeshConfig) -> None:
    told = traced(tmp_path / "trace.json", mesh)
    seen: set[tuple[int, ...]] = set()
    wanted = []
    for report in told:
        if report.timed and report.bucket in seen:
            wanted.append(report)
        seen.add(report.bucket)
    found = served_ticks(tmp_path / "trace.json")
    assert len(found) == len(wanted) > 5
    for tick, report in zip(found, wanted, strict=True):
        assert tuple(tick["shape"]) == report.bucket
        assert tick["at"] == pytest.approx(report.started, abs=1e-6)
        assert tick["seconds"] == pytest.approx(report.ended - report.started, rel=1e-6)
        stages = [sorted((start, length, tuple(groups)) for start, length, groups in one) for one in tick["stages"]]
        assert stages == chunks_of(report)


def test_time_without_requests_is_none_of_the_host(tmp_path: Path) -> None:
    traced(tmp_path / "trace.json", dataclasses.replace(MESH, spp=1, kvp=1))
    gaps = [tick["host_s"] for tick in served_ticks(tmp_path / "trace.json")]
    assert gaps[-4] is None  # after the seven seconds
    assert len(gaps) - gaps.count(None) > 10
    assert all(gap == pytest.approx(0, abs=1e-6) for gap in gaps if gap is not None)


def test_warm_up_is_left_out(tmp_path: Path) -> None:
    traced(tmp_path / "trace.json", dataclasses.replace(MESH, spp=1, kvp=1))
    last = served_ticks(tmp_path / "trace.json", since=3)
    # 40 tokens in two chunks, then two decodes
    assert [tick["stages"] for tick in last] == [
        [[[0, 32, [0]]]],
        [[[32, 8, [0]]]],
        [[[40, 1, [0]]]],
        [[[41, 1, [0]]]],
    ]


def test_they_make_a_calibration(tmp_path: Path) -> None:
    mesh = dataclasses.replace(MESH, spp=1, kvp=1)
    traced(tmp_path / "trace.json", mesh)
    ticks = served_ticks(tmp_path / "trace.json") * 5
    write_ticks(tmp_path / "ticks.json", {"model": "none"}, RuntimeConfig(mesh=mesh, slots=4), CONTEXT, ticks)
    assert read_calibration(tmp_path / "ticks.json").errors[0].median < 1e-3


def test_a_command_takes_them(tmp_path: Path) -> None:
    traced(tmp_path / "trace.json", dataclasses.replace(MESH, spp=1, kvp=1))
    out = tmp_path / "ticks.json"
    sizes = ["--mesh", "cpu-small", "--max-context", str(CONTEXT), "--slots", "8", "--pool-tokens", "640"]
    assert run(["simulate", "measure", "--out", str(out), *sizes, "--trace", str(tmp_path / "trace.json")]) == 0
    stated = json.loads(out.read_text())
    assert stated["ticks"] == served_ticks(tmp_path / "trace.json")
    assert (stated["context"], stated["slots"], stated["pool_tokens"]) == (CONTEXT, 8, 640)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[{", "no valid JSON|not valid JSON"),
        ("{}", None),
        ('[{"ph": "X", "ts": 1, "pid": 2}]', "is no schedule trace: KeyError"),
        ("[3]", "is no schedule trace: TypeError"),
        ('[{"ph": "X", "ts": 1, "pid": 2, "args": {}}]', "is no schedule trace: .*a tick at 1 has no bucket"),
        ("[" * 100_000, "not valid JSON"),
        (f"[{'9' * 5000}]", "not valid JSON"),
    ],
)
def test_what_is_no_trace_is_refused(tmp_path: Path, text: str, message: str | None) -> None:
    path = tmp_path / "trace.json"
    path.write_text(text)
    if message is None:
        assert served_ticks(path) == []
        return
    with pytest.raises(SpecError, match=message):
        served_ticks(path)
    with pytest.raises(SpecError, match="cannot read trace"):
        served_ticks(tmp_path / "nothing.json")


def test_a_trace_says_when_it_began(tmp_path: Path) -> None:
    traced(tmp_path / "trace.json", dataclasses.replace(MESH, spp=1, kvp=1))
    events = json.loads((tmp_path / "trace.json").read_text())
    assert [event["args"] for event in events if event["name"] == "origin"] == [{"clock_s": START_S}]
