"""What the scheduler promises, one promise a test."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter

import pytest

from medha_jax.config import Buckets, SchedulerConfig
from medha_jax.kv.allocator import OutOfPagesError
from medha_jax.plan import InvalidRequestError
from medha_jax.scheduler.request import SchedulerRequest, Slo
from medha_jax.scheduler.scheduler import QueueFullError
from medha_jax.scheduler.time_model import LinearTimeModel
from medha_jax.specs.tick_shapes import TickShapes
from tests.scheduler.device import continuation
from tests.scheduler.serving import MODEL, Server, shapes_of

BASIC = SchedulerConfig(policy="fcfs", preemption=False, prefix_cache=False)


def config(**changes: object) -> SchedulerConfig:
    return dataclasses.replace(BASIC, **changes)


def prompts(server: Server) -> list[list[tuple[int, int]]]:
    """SchedulerRequest and length of every prompt chunk, by tick."""
    return [
        [
            (state.number, chunk.length)
            for state, chunk in zip(planned.states, planned.plan.chunks, strict=True)
            if chunk.start < len(state.request.prompt)
        ]
        for planned in server.plans
    ]


def test_decodes_come_first_and_prompts_fill_the_tick() -> None:
    server = Server(config(tpot_target_s=1.0, idle_tick_s=1.0), shapes_of())
    for prompt in (10, 50, 20):
        server.ask(prompt)
    server.step()
    server.step()
    assert prompts(server) == [[(0, 10), (1, 22)], [(1, 28)]]  # 4 tokens are left of 32: too few to read a context for
    assert [chunk.length for chunk in server.plans[1].plan.chunks] == [1, 28]


def test_a_tick_stays_within_the_tightest_target_of_its_decodes() -> None:
    """With a millisecond a tick and a tenth a token: 4 + 8 rows fit 2.4 ms, 4 + 32 do not."""
    model = LinearTimeModel(fixed=1e-3, tokens=1e-4)
    server = Server(config(tpot_floor_s=1e-3, idle_tick_s=1.0), shapes_of(), model=model)
    server.ask(5, 30, slo=Slo(tpot_s=2.4e-3))
    server.ask(4, 30, slo=Slo(tpot_s=1.0))
    server.step()
    server.ask(100, 2)
    server.step()
    assert prompts(server)[-1] == [(2, 8)]
    server.scheduler.cancel(0)
    server.step()
    assert prompts(server)[-1] == [(2, 32)], "the one that was in a hurry has gone"


def test_a_pipeline_has_a_part_of_the_target_for_each_stage() -> None:
    model = LinearTimeModel(fixed=1e-3, tokens=1e-4)
    server = Server(config(tpot_floor_s=1e-3, idle_tick_s=1.0), shapes_of(stages=2), model=model)
    server.ask(5, 30, slo=Slo(tpot_s=4.8e-3))
    for _ in range(3):
        server.step()
    server.ask(100, 2)
    for _ in range(4):
        server.step()
    assert prompts(server)[-4:] == [[(1, 8)]] * 4, "also in ticks between two of its tokens"


def test_without_decodes_a_tick_may_be_longer() -> None:
    model = LinearTimeModel(tokens=1e-3)
    server = Server(config(tpot_target_s=0.012, idle_tick_s=0.04), shapes_of(), model=model)
    server.ask(100)
    server.step()
    assert prompts(server) == [[(0, 32)]]


def test_chunks_shrink_as_the_context_grows() -> None:
    model = LinearTimeModel(fixed=1e-4, attention=1e-6)
    server = Server(config(idle_tick_s=4e-3), shapes_of(), model=model)
    server.ask(300)
    server.run()
    *sizes, _ = [length for tick in prompts(server) for _, length in tick]
    assert sizes == sorted(sizes, reverse=True)
    assert set(sizes) >= {32, 8}


def test_without_decodes_chunks_stay_where_smaller_ones_would_save_little() -> None:
    """Reading the context takes as long as 32 rows do: 8 rows are a quarter of the work in 5/8 of the time."""
    model = LinearTimeModel(attention=1e-6, context=3.2e-5)
    settings = config(idle_tick_s=4e-3, tpot_target_s=8.5e-3, tpot_floor_s=1e-3)
    server = Server(settings, shapes_of(), model=model)
    server.ask(300)
    server.run()
    assert prompts(server)[:9] == [[(0, 32)]] * 9, "18 ms in the end, where 8 rows take 10 and may have twice that"
    decoding = Server(settings, shapes_of(), pages=200, model=model)
    decoding.ask(5, 100)
    decoding.step()
    decoding.ask(300)
    decoding.run()
    lengths = [length for tick in prompts(decoding) for number, length in tick if number == 1]
    assert lengths[0] == 32 and 8 in lengths, "a token must not wait for that"


def test_a_long_prompt_with_slack_leaves_room_and_short_ones_use_it() -> None:
    """Due far in the future: the long one takes 60 % of the tick, the short one the rest."""
    shapes = TickShapes(Buckets((4,), (8, 16, 24, 32, 40), 4, slices=()), Buckets(slices=()), 1, 2**20, 4, 1, 4, 400)
    model = LinearTimeModel(tokens=1e-3)
    calm = config(policy="lars", long_tokens=100, idle_tick_s=0.044)
    server = Server(calm, shapes, model=model)
    server.ask(200, slo=Slo(ttft_s=1.0))
    server.ask(60, slo=Slo(ttft_s=9.0))
    server.step()
    # 44 ms * 0.6 = 26.4 ms: 4 + 16 rows; then up to 4 + 40
    assert prompts(server)[0] == [(0, 16), (1, 24)]
    hurried = Server(calm, shapes, model=model)
    hurried.ask(200, slo=Slo(ttft_s=0.2))
    hurried.ask(60, slo=Slo(ttft_s=9.0))
    hurried.step()
    assert prompts(hurried)[0] == [(0, 40)], "without slack it takes all"


def test_two_long_prompts_are_never_in_one_tick() -> None:
    server = Server(config(policy="srtf", long_tokens=40, tpot_target_s=1, idle_tick_s=1), shapes_of())
    for prompt in (45, 44, 10):
        server.ask(prompt, 1)
    server.run()
    for tick in prompts(server):
        assert len([number for number, _ in tick if number < 2]) <= 1


def test_without_chunk_preemption_one_prompt_runs_to_its_end_and_decodes_ride_along() -> None:
    server = Server(config(policy="fcfs", chunk_preemption=False), shapes_of())
    server.ask(5, 12)
    server.step()
    server.ask(100, 1)
    server.step()
    server.ask(2, 1)
    server.run()
    for tick in prompts(server)[1:]:
        numbers = [number for number, _ in tick]
        assert numbers in ([1], [2], [1, 2], []), "the short one waits for the end of the long one"
        if numbers == [1, 2]:
            assert tick[0][1] < 32
    assert server.first_token[2] >= server.first_token[1]
    assert len([p for p in server.plans if {s.number for s in p.states} >= {0, 1}]) >= 3


@pytest.mark.parametrize(
    ("request_", "due"),
    [
        (SchedulerRequest(range(100), 4, 2.0, Slo(ttft_s=0.25)), 2.25),
        (SchedulerRequest(range(100), 4, 2.0, Slo(ttft_s=0.25), deadline_s=99.0), 2.25),
        (SchedulerRequest(range(100), 4, 2.0, deadline_s=7.0), 7.0),
        (SchedulerRequest(range(3), 4, 2.0), 2.5),
    ],
)
def test_when_the_first_token_is_due(request_: SchedulerRequest, due: float) -> None:
    server = Server(config(), shapes_of())
    assert server.scheduler.state(server.add(request_)).due == pytest.approx(due)


def test_a_request_without_a_deadline_gets_a_multiple_of_its_work() -> None:
    server = Server(config(ttft_floor_s=1e-3), shapes_of())
    alone = server.scheduler.prefill_seconds(300)
    number = server.ask(300, 1)
    assert server.scheduler.state(number).due == pytest.approx(1.5 * alone)
    server.run()
    assert server.first_token[number] == pytest.approx(alone, rel=0.05), "the prediction is what it takes alone"


def test_a_deadline_that_has_passed_drops_only_who_wants_it() -> None:
    server = Server(config(), shapes_of(slots=1), pages=30)
    holder = server.ask(100, 10)
    dropped = server.ask(50, slo=Slo(ttft_s=0.002), on_deadline="drop")
    served = server.ask(50, slo=Slo(ttft_s=0.002))
    server.run()
    assert server.expired == [dropped]
    assert set(server.finished) == {holder, served}


def test_pages_of_a_dropped_request_are_free_at_once() -> None:
    server = Server(config(), shapes_of())
    number = server.ask(300, slo=Slo(ttft_s=0.01), on_deadline="drop")
    server.step()
    assert server.scheduler.stats.free_pages == (24,)
    server.now = 0.0101
    planned = server.scheduler.plan(server.now)
    assert [state.number for state in planned.expired] == [number]
    assert not planned.plan.chunks
    assert server.scheduler.stats.free_pages == (100,)
    assert not server.scheduler.busy


def test_a_caller_who_has_gone_is_dropped_in_the_middle_of_its_output() -> None:
    server = Server(config(), shapes_of())
    gone = server.ask(5, 300, deadline_s=0.05, on_deadline="drop")
    late = server.ask(5, 60, slo=Slo(ttft_s=0.05), on_deadline="drop")
    server.run()
    assert server.expired == [gone], "the first token was in time, so the other one goes on"
    assert late in server.finished
    assert 0 < len(server.outputs[gone]) < 300


def test_nothing_is_left_to_expire_of_requests_that_have_ended() -> None:
    server = Server(config(), shapes_of())
    for _ in range(100):
        server.ask(5, 1, deadline_s=1e9, on_deadline="drop")
        server.run()
    stays = server.ask(5, 300, deadline_s=1e9, on_deadline="drop")
    server.step()
    assert server.scheduler.next_expiry < math.inf and len(server.scheduler._expiries) <= 2
    server.scheduler.cancel(stays)
    server.run()
    assert server.scheduler.next_expiry == math.inf and not len(server.scheduler._expiries)


def test_what_never_fits_is_refused_with_the_numbers() -> None:
    server = Server(config(), shapes_of(), pages=10)
    with pytest.raises(OutOfPagesError, match="45 tokens need 12 KV pages; the pool has 10"):
        server.ask(41, 4)
    assert not server.scheduler.busy


def test_the_queue_is_bounded() -> None:
    server = Server(config(max_waiting=2), shapes_of())
    server.ask(5)
    server.ask(5)
    with pytest.raises(QueueFullError, match="2 requests wait; allowed are 2"):
        server.ask(5)
    server.step()
    server.ask(5)


@pytest.mark.parametrize("slo", [dict(ttft_s=0.0), dict(tpot_s=-1.0), dict(ttft_s=float("nan"))])
def test_targets_that_are_none_are_refused(slo: dict[str, float]) -> None:
    with pytest.raises(InvalidRequestError, match="allowed are seconds above 0"):
        Slo(**slo)


def test_srtf_starves_a_long_prompt_down_to_its_aged_share() -> None:
    """Short prompts without end: the long one gets a smallest chunk every `ageing_ticks` ticks and no more."""
    server = Server(
        config(policy="srtf", ageing_ticks=10, idle_tick_s=4.9e-3, tpot_target_s=4.9e-3), shapes_of(slots=3)
    )
    long = server.ask(300, 1)
    server.step()
    for _ in range(100):
        while server.scheduler.stats.waiting < 3:
            server.ask(32, 1)
        server.step()
    chunks = [length for tick in prompts(server)[1:] for number, length in tick if number == long]
    assert chunks == [8] * len(chunks)
    assert 8 <= len(chunks) <= 10


def test_an_urgent_request_preempts_and_the_other_is_computed_again() -> None:
    server = Server(config(policy="edf", preemption=True), shapes_of(), pages=30)
    slow = server.ask(60, 40, slo=Slo(ttft_s=9.0))
    for _ in range(12):
        server.step()
    before = len(server.outputs[slow])
    assert 0 < before < 40
    urgent = server.ask(70, 10, slo=Slo(ttft_s=0.01))
    server.run()
    assert server.finished[urgent] < server.finished[slow]
    for number in (slow, urgent):
        request = server.requests[number]
        assert server.outputs[number] == continuation(request.prompt, request.max_tokens)


def test_no_request_is_preempted_more_often_than_allowed() -> None:
    server = Server(config(policy="edf", preemption=True, max_preemptions=2, bypass_s=1e9), shapes_of(), pages=30)
    victim = server.ask(60, 40, slo=Slo(ttft_s=1e6))
    state = server.scheduler.state(victim)
    for _ in range(1000):
        if not server.scheduler.busy or victim in server.finished:
            break
        if server.scheduler.stats.waiting == 0:
            server.ask(70, 2, slo=Slo(ttft_s=0.01))
        server.step()
        if state.preemptions == 2 and state.holding is None and server.scheduler.stats.waiting == 1:
            server.run()
    assert state.preemptions == 2
    assert victim in server.finished


def test_a_preempted_request_is_not_passed_for_ever() -> None:
    """After `bypass_s` nobody is admitted before it, however urgent."""
    server = Server(config(policy="edf", preemption=True, max_preemptions=1, bypass_s=0.1), shapes_of(), pages=30)
    victim = server.ask(60, 40, slo=Slo(ttft_s=1e6))
    server.step()
    for _ in range(600):
        while server.scheduler.stats.waiting < 3:
            server.ask(70, 2, slo=Slo(ttft_s=0.01))
        server.step()
    assert victim in server.finished


def test_nobody_passes_a_request_that_does_not_fit_for_longer_than_allowed() -> None:
    server = Server(config(policy="fcfs", bypass_s=0.05), shapes_of(), pages=30)
    server.ask(20, 60)  # takes 20 of 30 pages for a while
    server.step()
    big = server.ask(100, 4)
    passing = []
    for _ in range(200):
        if server.scheduler.stats.waiting < 3:
            passing.append(server.ask(8, 8))
        server.step()
    assert big in server.finished
    admitted = {state.number: planned_at for planned_at, p in enumerate(server.plans) for state in p.admitted}
    early = [number for number in passing if admitted.get(number, 10**9) < admitted[big]]
    assert early, "small requests may pass for a while"
    assert all(server.requests[number].arrival_s <= 0.06 for number in early)


def test_requests_that_do_not_fit_do_not_stop_those_that_run() -> None:
    """However many more urgent ones wait for pages, the prompt that holds them gets a chunk every tick."""
    server = Server(config(policy="edf"), shapes_of(), pages=60)
    holder = server.ask(200, 1, slo=Slo(ttft_s=100.0))
    server.step()
    for _ in range(50):
        server.ask(100, 1, slo=Slo(ttft_s=0.01))
    while holder not in server.first_token:
        planned = server.step()
        assert [state.number for state in planned.states] == [holder]
    server.run()
    assert len(server.finished) == 51


def test_a_model_that_has_changed_gives_new_predictions() -> None:
    from medha_jax.scheduler.time_model import FittedTimeModel

    model = FittedTimeModel({}, MODEL)
    server = Server(config(policy="srtf"), shapes_of(), model=model)
    before = server.scheduler.prefill_seconds(300)
    for _ in range(2000):
        if not server.scheduler.busy:
            server.ask(120, 20)
        planned = server.step()
        if planned.plan.chunks:
            model.observe(planned.work, 3 * MODEL.seconds(planned.work))
    assert server.scheduler.prefill_seconds(300) == pytest.approx(3 * before, rel=0.1)


def test_the_outputs_of_a_request_share_the_pages_of_its_prompt() -> None:
    """A prompt of 41 tokens fills ten pages of four; each output has two more for its last token and the answer."""
    server = Server(config(prefix_cache=True, tpot_target_s=1.0, idle_tick_s=1.0), shapes_of(), pages=20)
    server.ask(41, 6, n=4)
    assert (server.scheduler.stats.waiting, server.scheduler.stats.waiting_tokens) == (1, 41)
    most = 0
    while server.scheduler.busy:
        server.step()
        most = max(most, server.scheduler.stats.used_slots)
        assert server.scheduler.stats.running <= 1
    assert most == 4, "all run at once, although four prompts would need more pages than there are"
    assert [server.outputs[number] for number in range(4)] == [continuation(range(41), 6)] * 4
    computed = Counter[int]()
    for chunks in prompts(server):
        for number, length in chunks:
            computed[number] += length
    assert computed == {0: 41, 1: 1, 2: 1, 3: 1}


@pytest.mark.parametrize("after", range(12))
def test_outputs_go_on_when_the_one_that_computes_their_prompt_ends(after: int) -> None:
    server = Server(config(prefix_cache=True), shapes_of(), pages=40)
    server.ask(60, 6, n=3)
    for _ in range(after):
        server.step()
    server.scheduler.cancel(0)
    server.run()
    assert server.outputs[1] == server.outputs[2] == continuation(range(60), 6)


def test_only_the_first_output_can_be_late_with_the_first_token() -> None:
    server = Server(config(), shapes_of(slots=1), pages=40)
    server.ask(20, 30, n=2, slo=Slo(ttft_s=0.03), on_deadline="drop")
    server.run()
    assert not server.expired and server.first_token[1] > 0.03
    server.ask(20, 30, n=2, slo=Slo(ttft_s=1e-9), on_deadline="drop")
    server.now += 1
    server.step()
    assert server.expired == [2]
