from __future__ import annotations

import dataclasses
import time

import pytest

from medha_jax.config import PRIORITIES, SchedulerConfig
from medha_jax.engine import (
    ChunkReport,
    Completed,
    Completion,
    EngineEvent,
    EngineService,
    Failed,
    FirstToken,
    Load,
    NewTokens,
    PhaseTimings,
    Prefilled,
    Queued,
    RequestCounts,
    RequestTotals,
    TickReport,
)
from medha_jax.kv.host import HostUse
from medha_jax.runtime import MeshExecutor
from medha_jax.server.prometheus import Metrics
from medha_jax.text import Tokenizer
from tests.engine.serving import Heard, ask, engine_of

CHUNKS = (
    ChunkReport(7, 0, (0,), 0, 64, False, 0.75, True),
    ChunkReport(8, 0, (0,), 100, 1, True, float("nan"), False),
    ChunkReport(9, 1, (1,), 64, 32, False, -0.5, False),
)
REPORT = TickReport(
    started=10.0,
    ended=10.05,
    timed=True,
    predicted=0.025,
    chunks=CHUNKS,
    bucket=(8, 64, 0, 0),
    padding=0.25,
    running=3,
    waiting=1,
    free_pages=(5, 6),
    cached_pages=(1, 0),
    held_pages=(4, 4),
    preempted=(3,),
    lost_tokens=70,
    cancelled=(),
)
COMPLETION = Completion(
    token_ids=(1, 2, 3),
    text="abc",
    finish_reason="stop",
    matched="c",
    prompt_tokens=100,
    logprobs=(),
    timings=PhaseTimings(0.5, 1.5, 2.0, 0.2, 2.2, 0.1),
    chunks=(64, 20),
    preemptions=1,
    cached_tokens=16,
    deadline_met=False,
)
TOTALS = RequestTotals(100, 16, 3, "stop", False)


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"medha_{name}", labels)


def test_first_tokens_are_counted_by_priority() -> None:
    metrics = Metrics()
    for number, priority in enumerate([-2, 2, 2]):
        first = FirstToken(0.5 + number, 1.5, priority)
        metrics.on_events([(number, NewTokens((1,), "a", first=first))])
    names = "priority_time_to_first_token_seconds", "priority_request_queue_time_seconds"
    counts = [[value(metrics, f"{name}_count", priority=str(one)) for one in PRIORITIES] for name in names]
    assert counts == [[1, 0, 0, 0, 2]] * 2, "a class that nobody used is there, too"
    assert [value(metrics, f"{name}_sum", priority="2") for name in names] == [3 + 4, 1.5 + 2.5]


def test_ticks_are_counted() -> None:
    metrics = Metrics()
    metrics.on_tick(REPORT)
    assert value(metrics, "iteration_tokens_total_sum") == 65, "what entered, not what other stages had"
    assert (value(metrics, "chunk_tokens_count"), value(metrics, "chunk_tokens_sum")) == (1, 64)
    slack = {le: value(metrics, "first_schedule_relative_slack_bucket", le=le) for le in ("0.5", "0.75", "+Inf")}
    assert slack == {"0.5": 0, "0.75": 1, "+Inf": 1}
    assert value(metrics, "tick_seconds_sum") == pytest.approx(0.05)
    assert value(metrics, "tick_predicted_seconds_sum") == 0.025
    assert value(metrics, "tick_measured_to_predicted_sum") == pytest.approx(2.0)
    assert value(metrics, "tick_padding_share_sum") == 0.25
    assert value(metrics, "num_preemptions_total") == 1
    assert value(metrics, "preempted_tokens_total") == 70


def test_slices_are_counted_apart_and_their_chunks_once() -> None:
    metrics = Metrics()
    for layers in ((0, 3), (3, 8)):
        metrics.on_tick(dataclasses.replace(REPORT, chunks=CHUNKS[:1], layers=layers))
    assert value(metrics, "slice_seconds_count") == 2
    assert value(metrics, "slice_seconds_sum") == pytest.approx(0.1)
    assert value(metrics, "slice_measured_to_predicted_sum") == pytest.approx(4.0)
    assert value(metrics, "tick_seconds_count") == 0
    assert value(metrics, "chunk_tokens_sum") == 64
    assert value(metrics, "iteration_tokens_total_sum") == 64


def test_a_tick_that_nobody_waited_for_has_no_time() -> None:
    import dataclasses

    metrics = Metrics()
    metrics.on_tick(dataclasses.replace(REPORT, timed=False, preempted=(), cancelled=(4, 5)))
    assert value(metrics, "tick_seconds_count") == 0


def test_a_request_with_several_outputs_is_one_request_and_its_tokens_are_all_tokens() -> None:
    metrics = Metrics()
    metrics.on_tick(REPORT)
    metrics.on_events([(number, Queued(0, 0.5, number)) for number in (7, 8)])
    first = NewTokens((1,), "a", first=FirstToken(0.5, 1.5))
    metrics.on_events([(7, Prefilled(100, 100)), (7, first), (8, NewTokens((4, 5), "de"))])
    metrics.on_events([(8, Completed(COMPLETION, None)), (7, NewTokens((2, 3), "bc"))])
    metrics.on_events([(7, Completed(COMPLETION, dataclasses.replace(TOTALS, output_tokens=5)))])
    assert value(metrics, "prompt_tokens_total") == 100
    assert value(metrics, "cached_prompt_tokens_total") == 16
    assert value(metrics, "generation_tokens_total") == 5
    for name in ("time_to_first_token", "e2e_request_latency", "request_queue_time", "request_prefill_time"):
        assert value(metrics, f"{name}_seconds_count") == 1
    assert value(metrics, "request_deadline_total", met="false") == 1


def test_events_are_counted() -> None:
    metrics = Metrics()
    batch: list[tuple[int, EngineEvent]] = [
        (7, Queued(0, 0.5, 7)),
        (7, Prefilled(64, 100)),
        (8, Failed("deadline", "late")),
    ]
    metrics.on_tick(REPORT)
    metrics.on_events(batch)
    metrics.on_events([(7, Prefilled(100, 100)), (7, NewTokens((1,), "a", first=FirstToken(0.5, 1.5)))])
    assert value(metrics, "time_to_first_token_seconds_count") == 1, "at once, whatever comes after it"
    import dataclasses

    metrics.on_tick(dataclasses.replace(REPORT, started=10.05, ended=10.35))
    metrics.on_events([(7, NewTokens((2, 3), "bc")), (7, Completed(COMPLETION, TOTALS))])
    metrics.refused("queue_full", "")
    assert value(metrics, "prompt_tokens_total") == 100
    assert value(metrics, "cached_prompt_tokens_total") == 16
    assert value(metrics, "generation_tokens_total") == 3
    assert value(metrics, "requests_refused_total", reason="queue_full") == 1
    assert value(metrics, "request_deadline_total", met="false") == 1
    assert value(metrics, "inter_token_latency_seconds_count") == 1
    assert value(metrics, "inter_token_latency_seconds_sum") == pytest.approx(0.3)
    for name, seconds in (
        ("time_to_first_token", 2.0),
        ("e2e_request_latency", 2.2),
        ("request_queue_time", 0.5),
        ("request_prefill_time", 1.5),
    ):
        assert value(metrics, f"{name}_seconds_sum") == seconds
    assert not metrics._outputs
    assert not metrics._done


def test_gauges_are_read_when_asked_for() -> None:
    metrics = Metrics()
    load = Load(
        running=2,
        waiting=3,
        waiting_tokens=500,
        slots=8,
        total_pages=10,
        free_pages=(4, 10),
        cached_pages=(1, 0),
        counts=RequestCounts(15, {"stop": 6}, {"cancelled": 3, "deadline": 1}),
    )
    metrics.watch(lambda: load)
    assert value(metrics, "num_requests_running") == 2
    assert value(metrics, "num_requests_waiting") == 3
    assert value(metrics, "num_tokens_waiting") == 500
    assert value(metrics, "requests_accepted_total") == 15
    finished = [value(metrics, "request_success_total", finished_reason=reason) for reason in ("stop", "length")]
    failed = [
        value(metrics, "request_failure_total", reason=reason) for reason in ("cancelled", "deadline", "internal")
    ]
    assert finished == [6, 0] and failed == [3, 1, 0]
    assert value(metrics, "kv_cache_usage_perc") == pytest.approx(0.3)
    assert value(metrics, "ready") == 1
    pages = {
        state: [value(metrics, "kv_pages", group=str(group), state=state) for group in (0, 1)]
        for state in ("free", "cached", "held")
    }
    assert pages == {"free": [3, 10], "cached": [1, 0], "held": [6, 0]}
    load = Load(
        running=0,
        waiting=0,
        waiting_tokens=0,
        slots=8,
        total_pages=10,
        free_pages=(10, 10),
        cached_pages=(0, 0),
        host=HostUse(used=70, stored=90, restored=40),
        draining=True,
    )
    assert value(metrics, "kv_host_pages") == 70
    assert value(metrics, "kv_host_stored_pages_total") == 90
    assert value(metrics, "kv_host_restored_pages_total") == 40
    assert value(metrics, "num_requests_running") == 0
    assert value(metrics, "ready") == 0


def test_two_servers_share_nothing() -> None:
    first, second = Metrics(), Metrics()
    first.refused("queue_full", "")
    assert value(second, "requests_refused_total", reason="queue_full") is None


def test_what_a_running_engine_gives(executor: MeshExecutor, byte_tokenizer: Tokenizer) -> None:
    metrics, heard = Metrics(), Heard()

    def listen(events: list[tuple[int, EngineEvent]]) -> None:
        metrics.on_events(events)
        heard(events)

    engine = engine_of(executor, byte_tokenizer, SchedulerConfig(), on_tick=metrics.on_tick)
    service = EngineService(engine, listen, time.monotonic)
    metrics.watch(service.load)
    service.start()
    try:
        got = [heard.completion(service.submit(ask(seed, 200 + seed, 5))) for seed in range(3)]
        gone = service.submit(ask(9, 300, 1000))
        heard.until(lambda: any(isinstance(event, NewTokens) for event in heard.events.get(gone, [])))
        service.cancel(gone)
        heard.completion(service.submit(ask(10, 20, 5)))
        assert service.drain(10)
    finally:
        service.stop()
    assert value(metrics, "requests_accepted_total") == 5
    assert value(metrics, "request_success_total", finished_reason="length") == 4
    assert value(metrics, "request_failure_total", reason="cancelled") == 1
    assert value(metrics, "prompt_tokens_total") == 200 + 201 + 202 + 300 + 20
    assert value(metrics, "generation_tokens_total") == sum(len(deltas(events)) for events in heard.events.values())
    assert value(metrics, "first_schedule_relative_slack_count") == 5
    assert value(metrics, "num_requests_running") == value(metrics, "num_requests_waiting") == 0
    assert value(metrics, "kv_cache_usage_perc") == 0
    assert value(metrics, "kv_pages", group="0", state="cached") > 0
    assert value(metrics, "chunk_tokens_sum") == sum(sum(completion.chunks) for completion in got) + 300 + 20
    assert value(metrics, "tick_padding_share_count") == value(metrics, "iteration_tokens_total_count")


def deltas(events: list[EngineEvent]) -> list[int]:
    return [token for event in events if isinstance(event, NewTokens) for token in event.token_ids]
