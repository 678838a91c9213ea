"""An earlier class goes first, under every policy; and nobody behind it starves."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from medha_jax.config import POLICIES, PRIORITIES, Buckets, SchedulerConfig
from medha_jax.plan import InvalidRequestError
from medha_jax.scheduler import priority_classes
from medha_jax.scheduler.decode_queue import DecodeQueue
from medha_jax.scheduler.policies import red
from medha_jax.scheduler.policies.base import Stateless
from medha_jax.scheduler.policies.formulas import fcfs
from medha_jax.scheduler.priority_classes import PriorityClasses
from medha_jax.scheduler.request import DECODING, RequestState, SchedulerRequest, Slo
from medha_jax.specs.tick_shapes import TickShapes
from tests.scheduler.serving import Server, overload
from tests.scheduler.waits import serve

# One group, no decodes to speak of: ticks of up to 10 ms, which is also what predictions suppose.
BUCKETS = Buckets(decode=(4,), prefill=(8, 32), chunks=3, slices=())
CONFIG = SchedulerConfig(
    priority_share=0.3,
    relegated_share=0.4,
    tpot_target_s=0.01,
    idle_tick_s=0.01,
    ttft_floor_s=0.01,
    long_tokens=100,
    bypass_s=0.02,
    prefix_cache=False,
)
ADVANCE_S = 0.02  # so that it does not hide the rest of the bound, which is of the size of a second here


def server_of(policy: str, slots: int = 100, pages: int = 10_000, stages: int = 1, sliced: bool = False) -> Server:
    sizes = dataclasses.replace(BUCKETS, slices=(8, 32)) if sliced else BUCKETS
    shapes = TickShapes(sizes, sizes, 1, 2**20, 4, stages, slots, 400, (1, 2, 3) if sliced else (1,))
    return Server(dataclasses.replace(CONFIG, policy=policy, slice_s=0.003), shapes, pages=pages)


def test_a_priority_that_is_no_class_is_refused() -> None:
    for priority in PRIORITIES:
        SchedulerRequest(range(4), 1, 0.0, priority=priority)
    for priority in (PRIORITIES[0] - 1, PRIORITIES[-1] + 1):
        with pytest.raises(
            InvalidRequestError, match=f"priority is {priority}; allowed are -2, which goes first, to 2"
        ):
            SchedulerRequest(range(4), 1, 0.0, priority=priority)


@pytest.mark.parametrize("policy", POLICIES)
def test_classes_go_one_after_the_other(policy: str) -> None:
    """All fit their deadlines; the last class came first, is shortest and most urgent."""
    server = server_of(policy)
    numbers = {
        priority: server.ask(50 + 10 * (2 - priority), tokens=1, priority=priority, slo=Slo(ttft_s=30.0 - priority))
        for priority in reversed(PRIORITIES)
    }
    state = server.scheduler.outlook(numbers[2], server.now)
    assert state[0] == 4, "the prediction knows the classes"
    server.run()
    ends = [server.first_token[numbers[priority]] for priority in PRIORITIES]
    assert ends == sorted(ends) and ends[0] < ends[-1]


@pytest.mark.parametrize("policy", POLICIES)
def test_who_lost_no_deadline_goes_behind_an_earlier_class_that_did(policy: str) -> None:
    """Class first, whatever the deadlines; what red owes the relegated is not owed yet."""
    server = server_of(policy)
    in_time = server.ask(90, tokens=1, slo=Slo(ttft_s=0.03))
    late = server.ask(90, tokens=1, priority=-1, slo=Slo(ttft_s=0.0001))
    server.run()
    assert server.first_token[late] < server.first_token[in_time]


@pytest.mark.parametrize("policy", POLICIES)
def test_the_last_class_loses_its_slot_first(policy: str) -> None:
    """Answers of later classes give way to an earlier one, once; nobody of its own or an earlier class does."""
    server = server_of(policy, slots=4)
    slo = Slo(ttft_s=0.001)  # urgent, each of them
    numbers = [server.ask(8, tokens=100, priority=priority, slo=slo) for priority in (0, 2, -2, 1)]
    while any(not server.outputs[number] for number in numbers):
        server.step()
    early = server.ask(20, tokens=1, priority=-1)
    while early not in server.finished:
        server.step()
    assert list(server.finished) == [early]
    assert [state.number for planned in server.plans for state in planned.preempted] == [numbers[1]]
    server.run()
    assert len(server.finished) == 5


@pytest.mark.parametrize("policy", POLICIES)
def test_a_prompt_of_a_later_class_gives_way(policy: str) -> None:
    server = server_of(policy, slots=1)
    later = server.ask(90, tokens=1, priority=1, slo=Slo(ttft_s=0.2))
    server.step()
    early = server.ask(90, tokens=1, slo=Slo(ttft_s=0.5))
    server.run()
    assert [state.number for planned in server.plans for state in planned.preempted] == [later]
    assert server.first_token[early] < server.first_token[later]


def test_the_last_class_waits_for_a_page_first() -> None:
    server = server_of("fcfs", pages=14)
    last = server.ask(20, tokens=20, priority=1)
    first = server.ask(20, tokens=20)
    server.run()
    lost = Counter(state.number for planned in server.plans for state in planned.preempted)
    assert set(lost) == {last} and first in server.finished


def decoding(number: int, priority: int) -> RequestState:
    state = RequestState.new(number, SchedulerRequest(range(4), 9, 0.0, priority=priority), CONFIG)
    state.phase = DECODING
    return state


def test_decodes_that_do_not_all_fit_go_by_class_and_none_waits_for_ever() -> None:
    queue = DecodeQueue(1, patience=5)
    states = [decoding(number, priority) for number, priority in enumerate([2, 0, -1, 0, 1])]
    assert queue.begin() == []
    queue.end((), states)
    planned: list[int] = []
    for _ in range(40):
        due = queue.begin(classes=True)
        assert len(due) == 5
        planned += [state.number for state in due[:2]]
        queue.end(due[2:], due[:2])
    assert planned[:4] == [2, 1, 2, 3], "of one class in the order in which they became due"
    gaps = {n: np.diff([-1, *(at // 2 for at, one in enumerate(planned) if one == n)]).max() for n in range(5)}
    assert max(gaps.values()) <= 5 + 2 * 5 and gaps[2] < gaps[0]
    queue.begin()
    queue.end(states, ())
    assert queue.begin() == states, "in the order in which they came, if there are no classes"


def test_the_outranked_get_their_share_in_the_order_of_arrival() -> None:
    classes = PriorityClasses(0.1, Stateless(fcfs))
    priority, number = np.array([0.0, 1.0, 0.0, 2.0]), np.array([3.0, 4.0, 5.0, 6.0])
    assert classes.ranks(priority, number, 0.0) is None, "nobody uses classes"
    classes.enter(decoding(4, 1))

    def first(now: float, rows: slice = slice(None)) -> list[float]:
        ranks = classes.ranks(priority[rows], number[rows], now)
        assert ranks is not None
        return number[rows][ranks == -np.inf].tolist()

    assert first(0.0) == first(9.9) == [], "newcomers begin with a debt"
    assert first(11.0) == [4.0]
    classes.planned(4, 0.25)
    classes.planned(6, 9.0)  # it is not its turn
    assert first(12.0) == [], "0.2 s of credit, less 0.25 s"
    assert first(13.0) == [4.0]
    assert first(14.0, slice(2, None)) == [6.0], "the next one, when that is done"
    classes.planned(6, 100.0)
    assert first(15.0, slice(2, None)) == [] and first(26.0, slice(2, None)) == [6.0], "debt is limited"
    assert first(27.0, slice(2, 3)) == [], "nobody is outranked"
    assert first(28.0, slice(2, None)) == [], "and credit is not kept"


@pytest.mark.parametrize("policy", POLICIES)
def test_a_first_class_without_end_leaves_the_others_their_share(policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under srtf and with classes alone, a long prompt of the last class would wait for the last of the others."""
    monkeypatch.setattr(priority_classes, "ADVANCE_S", ADVANCE_S)
    server = server_of(policy)
    last = server.ask(330, tokens=1, priority=2)
    step = server.scheduler.prefill_seconds(20) / 4  # three of them share a tick
    came = 0
    while last not in server.first_token:
        while came * step <= server.now:
            server.add(SchedulerRequest(range(20), 1, came * step, priority=-2))
            came += 1
        server.step()
        assert came < 3000
    assert server.scheduler.stats.waiting > 10, "the others wait, and still it had its turn"


@example("srtf", 20.0, [(330, 2), (5, 0), (330, 1)], 20, 1, 100, False)
@settings(max_examples=12)
@given(
    policy=st.sampled_from(POLICIES),
    load=st.sampled_from([1.5, 3.0, 20.0]),
    first=st.lists(
        st.tuples(st.sampled_from([5, 20, 40, 150, 330]), st.sampled_from([-2, -1, 0, 2])), min_size=1, max_size=12
    ),
    tail=st.sampled_from([20, 32]),
    stages=st.sampled_from([1, 2]),
    slots=st.sampled_from([4, 100]),
    sliced=st.booleans(),
)
def test_every_first_token_comes_within_the_bound(
    policy: str, load: float, first: list[tuple[int, int]], tail: int, stages: int, slots: int, sliced: bool
) -> None:
    """Any mix of classes, and then a lasting overload of the first class."""
    server = server_of(policy, slots, 200 if slots == 4 else 10_000, stages, sliced)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(red, "ADVANCE_S", ADVANCE_S)
        patch.setattr(priority_classes, "ADVANCE_S", ADVANCE_S)
        check_bound(server, [*first, *[(tail, -2)] * (2000 // tail)], load)


def check_bound(server: Server, wanted: Sequence[tuple[int, int]], load: float) -> None:
    """Serve prompts of stated classes, and compare the waits of all later classes with the formula."""
    scheduler, is_red = server.scheduler, server.config.policy == "red"
    share = server.config.relegated_share if is_red else server.config.priority_share
    classes = scheduler._prefill_queue.classes
    prompts = [prompt for prompt, _ in wanted]
    moments = overload(load, prompts, scheduler.prefill_seconds)
    requests = [
        SchedulerRequest(range(prompt), 2, at, priority=priority)
        for at, (prompt, priority) in zip(moments, wanted, strict=True)
    ]
    waits = serve(server, requests, lambda: int(classes._first) if classes._owed else None)
    chunks = waits.chunks
    lost = Counter(state.number for planned in server.plans for state in planned.preempted)
    work = [(1 + lost[number]) * scheduler.prefill_seconds(prompt) for number, prompt in enumerate(prompts)]
    firsts = server.first_token
    for number, request in server.requests.items():  # their numbers are their places in `wanted`
        if request.priority == -2:
            continue
        earlier = [n for n in range(number) if firsts[n] > request.arrival_s]
        if not is_red:
            earlier = [n for n in earlier if server.requests[n].priority > -2]
        total = sum(work[n] for n in earlier) + max(work) + work[number]
        due = max(1.5 * work[number], server.config.ttft_floor_s) if is_red else 0.0
        counted = sum(chunks[n] for n in (*earlier, number)) + max(chunks.values(), default=0) + len(earlier) + 1
        debts = (len(earlier) + 2) * ADVANCE_S
        switches = (len(earlier) + 2) * waits.longest
        bound = due + (total + debts + counted * waits.held) / share + waits.blocked + switches
        assert firsts[number] - request.arrival_s <= bound + server.shapes.stages * waits.longest
