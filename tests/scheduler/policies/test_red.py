"""The order worked out by hand; and the bound on every wait, whatever comes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from medha_jax.config import Buckets, SchedulerConfig
from medha_jax.scheduler.policies import red
from medha_jax.scheduler.policies.base import Columns
from medha_jax.scheduler.policies.red import (
    Relegation,
    on_time_together,
)
from medha_jax.scheduler.request import SchedulerRequest, Slo
from medha_jax.specs.tick_shapes import TickShapes
from tests.scheduler.device import Device
from tests.scheduler.serving import Server, overload
from tests.scheduler.waits import serve

SHARE, LONG = 0.1, 50_000


def columns(*rows: Sequence[float], admitted: Sequence[int] = (), first: int = 0) -> Columns:
    """Requests in order of arrival: each `(arrival, deadline, remaining, total, tokens)`."""
    arrival, deadline, remaining, total, tokens = np.array(rows, float).T
    number = np.arange(len(rows), dtype=float) + first
    return Columns(arrival, deadline, remaining, total, tokens, number, np.isin(number, admitted))


def ranked(policy: Relegation, requests: Columns, now: float) -> list[int]:
    """Numbers of the requests that may be served, in order."""
    priorities = policy.order(requests, now)
    rows = np.argsort(priorities, kind="stable")
    return [int(requests.number[row]) for row in rows if priorities[row] < math.inf]


def served(policy: Relegation, requests: Columns, number: int, seconds: float) -> Columns:
    """The requests when one of them has got so much work done."""
    policy.planned(number, seconds)
    return dataclasses.replace(requests, remaining=requests.remaining - seconds * (requests.number == number))


@pytest.fixture(autouse=True)
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Orders that are made anew each time, at the predicted speed."""
    monkeypatch.setattr(red, "GOOD_S", 0.0)
    monkeypatch.setattr("medha_jax.scheduler.policies.red.SPEED_MARGIN", 1.0)


def test_those_on_time_go_by_deadline_and_what_fits_between_goes_first() -> None:
    requests = columns(
        (0, 200, 100, 100, 500e3),  # starts by 100 s at the latest
        (0, 160, 50, 50, 300e3),  # due first; the one above then has 50 s of slack left
        (1, 60, 10, 10, 150e3),  # due before both
        (2, 900, 11, 11, 150e3),  # fits a quarter of the 50 s
        (2, 900, 13, 13, 150e3),  # does not
    )
    policy = Relegation(SHARE, math.inf, LONG)
    # request 1 takes more than a quarter of the 50 s that 2 has to spare, 3 less than one of the 40 s that 0 has
    assert ranked(policy, requests, 0.0)[:1] == [2]
    assert ranked(policy, requests, 0.0).index(1) < ranked(policy, requests, 0.0).index(0)
    assert ranked(policy, requests, 0.0)[-1] == 4


def test_the_dearest_is_set_aside_and_comes_back() -> None:
    requests = columns((0, 120, 80, 80, 900e3), (0, 130, 60, 60, 600e3), (0, 0.5, 0.1, 0.1, 5e3))
    policy = Relegation(SHARE, math.inf, LONG)
    assert ranked(policy, requests, 0.0) == [2, 1, 0], "of 140 s of work in 130 s, 80 s cost most"
    alone = dataclasses.replace(requests, remaining=np.array([80, 30, 0.1]))
    assert ranked(policy, alone, 0.1) == [2, 0, 1]


def test_who_cannot_be_on_time_is_relegated_for_good() -> None:
    requests = columns((0, 150, 100, 100, 500e3), (40, 400, 90, 90, 450e3))
    policy = Relegation(SHARE, math.inf, LONG)
    assert ranked(policy, requests, 40.0) == [0, 1]
    assert ranked(policy, requests, 51.0) == [1, 0]
    again = dataclasses.replace(requests, remaining=np.array([1.0, 90.0]))
    assert ranked(policy, again, 51.1)[1:] == [0] or ranked(policy, again, 51.1)[0] == 0
    np.testing.assert_array_equal(policy._relegated, [0])


def test_short_late_ones_go_first_where_they_delay_nobody() -> None:
    late, roomy, tight = (0, 0.5, 0.2, 0.2, 5e3), (0, 102, 100, 100, 500e3), (0, 100.7, 100, 100, 500e3)
    policy = Relegation(SHARE, math.inf, LONG)
    assert ranked(policy, columns(late, roomy), 0.4) == [0, 1]
    policy = Relegation(SHARE, math.inf, LONG)
    assert ranked(policy, columns(late, tight), 0.4) == [1, 0]


def test_the_oldest_gets_its_share_and_no_more() -> None:
    requests = columns((0, 10, 50, 50, 300e3), (1, 10, 50, 50, 300e3), (2, 1e4, 5000, 5000, 900e3))
    policy = Relegation(SHARE, math.inf, LONG)
    work = dict.fromkeys(range(3), 0.0)
    for second in range(300):
        first = ranked(policy, requests, float(second))[0]
        requests = served(policy, requests, first, 1.0)
        work[first] += 1
    assert work == {0: 30, 1: 0, 2: 270}


def test_what_it_was_given_freely_is_taken_off_but_not_for_ever() -> None:
    requests = columns((0, 10, 500, 500, 300e3))
    policy = Relegation(SHARE, math.inf, LONG)
    for second in range(100):
        ranked(policy, requests, float(second))
        requests = served(policy, requests, 0, 1.0)
    assert policy._credit >= -red.ADVANCE_S
    both = columns((0, 10, 400, 500, 300e3), (100, 1e4, 5000, 5000, 900e3))
    waits = next(s for s in range(100, 1000) if ranked(policy, both, float(s))[0] == 0)
    assert waits - 100 == pytest.approx(red.ADVANCE_S / SHARE, abs=2)


def test_who_waits_for_the_slice_lane_pays_for_it() -> None:
    """Otherwise those behind it would wait for as long as the chunks take that are in the lane."""
    requests = columns((0, 10, 50, 50, 300e3), (2, 1e4, 5000, 5000, 900e3))
    policy = Relegation(SHARE, math.inf, LONG)
    first = []
    for second in range(300):
        first.append(ranked(policy, requests, float(second))[0])
        policy.waited(first[-1], 1.0)
    assert first.count(0) == 30


def test_the_relegated_keep_no_more_than_they_may() -> None:
    late = [(n, 10, 50 - n, 60, 100e3) for n in range(4)]
    requests = columns(*late, (5, 1000, 50, 50, 200e3), admitted=(0, 1, 2, 4))
    policy = Relegation(SHARE, 100e3, LONG)
    order = ranked(policy, requests, 20.0)
    assert 3 not in order, "it would be the second beside the oldest"
    np.testing.assert_array_equal(policy.over_quota(requests), [1], "the least of it is done")
    urgency = policy.urgency(requests, 20.0)
    priorities = policy.order(requests, 20.0)
    assert urgency[0] == -math.inf, "the oldest keeps its pages"
    assert urgency[1] > priorities[4] > urgency[0]
    assert urgency[1] <= priorities[1], "it does not take them from its like"


def test_decodes_keep_their_pages() -> None:
    policy = Relegation(SHARE, math.inf, LONG)
    ranked(policy, columns((0, 10, 5, 5, 1e3)), 0.0)
    assert policy.urgency(columns((0, 10, 5, 5, 1e3), first=7), 0.0) == [-math.inf]


# One group, no decodes to speak of: ticks of up to 10 ms, which is also what predictions suppose.
BUCKETS = Buckets(decode=(4,), prefill=(8, 32), chunks=3, slices=())
CONFIG = SchedulerConfig(
    policy="red",
    relegated_share=0.4,
    tpot_target_s=0.01,
    idle_tick_s=0.01,
    ttft_floor_s=0.01,
    long_tokens=100,
    bypass_s=0.02,
    prefix_cache=False,
)
ADVANCE_S = 0.02  # so that it does not hide the rest of the bound, which is of the size of a second here


def test_an_answer_that_is_interrupted_goes_on_first() -> None:
    shapes = TickShapes(BUCKETS, BUCKETS, 1, 2**20, 4, 1, 4, 400)
    server = Server(CONFIG, shapes, pages=1000)
    begun = server.ask(300, tokens=50)
    while not server.outputs[begun]:
        server.step()
    server.now += 60  # its first token would be far too late by now
    for _ in range(60):
        server.ask(300, tokens=1, slo=Slo(ttft_s=30.0))
    server.scheduler.lose(server.now)
    server.device = Device(shapes)
    told = len(server.outputs[begun])
    while len(server.outputs[begun]) == told:
        server.step()
    assert not server.finished
    server.run()
    assert len(server.outputs[begun]) == 50 and len(server.finished) == 61


MANY = [40, 150, 5, 150, 20, 150, 330, 330, 40, 5, 150, 20, 5, 330, 150, 40, 150, 20, 5, 5]


@example(3.0, [150, 150], 20, [None], 2, 100, 1, (1, 2, 3))  # an end that fits a tick, but not its prompt's share
@example(20.0, [5, 150, 330, 40, 5], 20, [None, None, 0.005], 2, 100, None, None)  # prompts end in every tick
@example(20.0, MANY, 32, [None, 0.3, 0.3, 0.005], 1, 4, 1, None)  # an answer is interrupted, and over the quota
@settings(max_examples=15)
@given(
    load=st.sampled_from([1.5, 3.0, 20.0]),
    prompts=st.lists(st.sampled_from([5, 20, 40, 150, 330]), min_size=1, max_size=20),
    tail=st.sampled_from([20, 32]),
    slos=st.lists(st.sampled_from([None, 0.005, 0.05, 0.3]), min_size=1, max_size=7),
    stages=st.sampled_from([1, 2]),
    slots=st.sampled_from([4, 100]),
    relegated_tokens=st.sampled_from([1, 400, None]),
    layers=st.sampled_from([None, (1, 2, 3)]),
)
def test_every_first_token_comes_within_the_bound(
    load: float,
    prompts: list[int],
    tail: int,
    slos: list[float | None],
    stages: int,
    slots: int,
    relegated_tokens: int | None,
    layers: tuple[int, ...] | None,
) -> None:
    """Sustained overload, and then of one kind only, which is what starves everybody else under other policies."""
    config = dataclasses.replace(CONFIG, relegated_tokens=relegated_tokens, slice_s=0.003)
    sizes = BUCKETS if layers is None else dataclasses.replace(BUCKETS, slices=(8, 32))
    shapes = TickShapes(sizes, sizes, 1, 2**20, 4, stages, slots, 400, layers or (1,))
    server = Server(config, shapes, pages=200 if slots == 4 else 10_000)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(red, "ADVANCE_S", ADVANCE_S)
        check_bound(server, prompts, slos, [tail] * (5000 // tail), load)


def check_bound(
    server: Server, first: Sequence[int], slos: Sequence[float | None], rest: Sequence[int], load: float
) -> None:
    """Serve prompts with stated targets and then others, and compare every wait with the formula."""
    prompts = [*first, *rest]
    scheduler, share = server.scheduler, server.config.relegated_share
    policy: Any = scheduler._prefill_queue.policy
    moments = overload(load, prompts, scheduler.prefill_seconds)
    targets = [slos[number % len(slos)] if number < len(first) else None for number in range(len(prompts))]
    requests = [
        SchedulerRequest(range(prompt), 2, at, slo=Slo(ttft_s=target))
        for at, prompt, target in zip(moments, prompts, targets, strict=True)
    ]
    waits = serve(server, requests, lambda: int(policy._oldest) if policy._credit > 0 else None)
    chunks, longest = waits.chunks, waits.longest
    work = [scheduler.prefill_seconds(prompt) for prompt in prompts]
    firsts = server.first_token
    for number, request in server.requests.items():
        earlier = [n for n in range(number) if firsts[n] > request.arrival_s]
        total = sum(work[n] for n in earlier) + max(work) + work[number]
        due = request.slo.ttft_s or max(1.5 * work[number], server.config.ttft_floor_s)
        counted = sum(chunks[n] for n in (*earlier, number)) + max(chunks.values(), default=0) + len(earlier) + 1
        owed = (total + ADVANCE_S + counted * waits.held) / share + waits.blocked
        bound = due + longest + owed + server.shapes.stages * longest
        assert firsts[number] - request.arrival_s <= bound


def test_a_long_prompt_is_served_while_short_ones_overload_the_machine() -> None:
    """Under srtf it waits for the last of them; here it has its token long before, as the bound says."""
    waits = {}
    for policy in ("srtf", "red"):
        config = dataclasses.replace(CONFIG, policy=policy, preemption=False)
        server = Server(config, TickShapes(BUCKETS, BUCKETS, 1, 2**20, 4, 1, 100, 400), pages=10_000)
        long = server.ask(330)
        step = server.scheduler.prefill_seconds(20) / 4  # three of them share a tick
        came = 0
        while long not in server.first_token:
            while came * step <= server.now and came < 1000:
                server.add(SchedulerRequest(range(20), 1, came * step))
                came += 1
            server.step()
        waits[policy] = server.first_token[long]
    assert waits["srtf"] > 1000 * step
    assert waits["red"] < 0.5 * waits["srtf"]


def possible(work: np.ndarray, time: np.ndarray) -> bool:
    return bool(np.all(np.cumsum(work) <= time))


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 20)), max_size=8))
def test_no_choice_keeps_more_where_the_cost_is_the_work(drawn: list[tuple[int, int]]) -> None:
    work = np.array([own for own, _ in drawn], float)
    time = np.array([own + more for own, more in drawn], float)
    order = np.argsort(time, kind="stable")
    work, time = work[order], time[order]
    kept = on_time_together(work, time, work)
    assert possible(work[kept], time[kept])
    for more in range(int(kept.sum()) + 1, len(work) + 1):
        for chosen in combinations(range(len(work)), more):
            rows = list(chosen)
            assert not possible(work[rows], time[rows])


def test_the_dearest_is_set_aside() -> None:
    work, time = np.array([3.0, 4.0, 2.0]), np.array([4.0, 8.0, 8.5])
    np.testing.assert_array_equal(on_time_together(work, time, work), [True, False, True])
    np.testing.assert_array_equal(on_time_together(work, time, np.array([9.0, 4.0, 2.0])), [False, True, True])
