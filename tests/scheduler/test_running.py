"""Pages as tokens come: who gets them, who loses them, and that everybody ends with the output that it has alone."""

from __future__ import annotations

import dataclasses
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from medha_jax.config import POLICIES, Buckets, SchedulerConfig
from medha_jax.scheduler.request import Phase, SchedulerRequest, Slo
from medha_jax.specs.tick_shapes import TickShapes
from tests.scheduler.device import continuation
from tests.scheduler.serving import Server, shapes_of

CONFIG = SchedulerConfig(prefix_cache=False)
PAGES = 30  # of four tokens


def server_of(pages: int = PAGES, groups: int = 1, per_group: int | None = None, **settings: Any) -> Server:
    config = dataclasses.replace(CONFIG, **settings)
    return Server(config, shapes_of(groups=groups, per_group=per_group), pages=pages)


def same_as_alone(server: Server) -> bool:
    return all(
        server.outputs[number] == continuation(request.prompt, request.max_tokens)
        for number, request in server.requests.items()
    )


def test_requests_with_open_outputs_run_together() -> None:
    server = server_of()
    numbers = [server.ask(8, 4 * PAGES - 8) for _ in range(3)]
    for _ in range(3):
        server.step()
    assert all(len(server.outputs[number]) >= 1 for number in numbers)
    for number in numbers:
        server.scheduler.cancel(number)


def test_one_that_reserves_its_output_keeps_others_waiting() -> None:
    server = server_of(reserve_output=True)
    first, second = server.ask(8, 4 * PAGES - 8), server.ask(8, 2)
    for _ in range(50):
        server.step()
    assert len(server.outputs[first]) > 40 and not server.outputs[second]
    server.run()
    assert same_as_alone(server)


def test_the_youngest_answer_gives_its_pages_to_the_oldest() -> None:
    server = server_of(pages=10)
    old, young = server.ask(8, 30), server.ask(8, 30)
    states = [server.scheduler.state(number) for number in (old, young)]
    server.run()
    assert [state.preemptions for state in states] == [0, 1]
    assert server.finished[old] < server.finished[young]
    assert same_as_alone(server)


def test_a_policy_decides_who_loses_its_pages() -> None:
    """Under edf the earliest deadline keeps its pages, though it came later."""
    server = server_of(pages=10, policy="edf")
    late = server.ask(8, 30, slo=Slo(ttft_s=100.0))
    server.step()
    early = server.ask(8, 30, slo=Slo(ttft_s=1.0))
    states = [server.scheduler.state(number) for number in (late, early)]
    server.run()
    assert [state.preemptions for state in states] == [1, 0]
    assert same_as_alone(server)


def test_when_all_lack_pages_the_oldest_goes_on() -> None:
    """Even if nobody may be preempted."""
    server = server_of(pages=10, max_preemptions=0, growth_pages=0)
    old, young = server.ask(8, 30), server.ask(8, 30)
    server.run()
    assert server.finished[old] < server.finished[young]
    assert same_as_alone(server)


def test_pages_are_kept_for_the_growth_of_those_that_run() -> None:
    for growth, together in ((0, True), (3, False)):
        server = server_of(pages=10, growth_pages=growth)
        server.ask(15, 20)  # four pages
        second = server.ask(15, 20)  # four more; two of ten are left
        server.step()
        assert bool(server.outputs[second]) == together
        server.run()
        assert same_as_alone(server)


def upload(server: Server, ids: list[int], bound: int, tokens: int) -> int:
    return server.add(SchedulerRequest(ids, tokens, server.now, bound=bound))


def test_an_upload_has_pages_for_what_has_come() -> None:
    server = server_of()
    slow = upload(server, list(range(10)), 4 * PAGES - 10, 2)
    server.step()
    assert server.scheduler.state(slow).phase is Phase.PREFILLING
    assert server.scheduler.stats.free_pages == (PAGES - 3,)
    server.scheduler.extend(slow, list(range(10, 20)), False, server.now)
    assert server.scheduler.stats.free_pages == (PAGES - 5,)
    other = server.ask(60, 2)
    for _ in range(10):
        server.step()
    assert other in server.finished and slow not in server.finished
    server.scheduler.extend(slow, [7], True, server.now)
    server.run()
    assert same_as_alone(server)


def test_an_upload_that_waits_for_its_client_loses_its_pages_first_and_uncounted() -> None:
    server = server_of()
    slow = upload(server, list(range(60)), 4 * PAGES - 10, 2)
    for _ in range(10):
        server.step()
    state = server.scheduler.state(slow)
    assert state.idle and state.holding is not None
    big = server.ask(80, 2)
    server.step()
    assert (state.phase, state.preemptions, state.queued) == (Phase.WAITING, 0, False)
    server.scheduler.extend(slow, [1, 2], False, server.now)
    for _ in range(20):
        server.step()
    assert big in server.finished
    assert state.phase is Phase.WAITING, "it is admitted again when it is complete, not before"
    server.scheduler.extend(slow, [3], True, server.now)
    server.run()
    assert same_as_alone(server)


def test_an_upload_gives_way_to_an_answer_that_grows() -> None:
    server = server_of()
    slow = upload(server, list(range(40)), 4 * PAGES - 10, 2)
    answer = server.ask(20, 90)
    for _ in range(80):
        server.step()
    assert server.scheduler.state(slow).phase is Phase.WAITING
    assert server.scheduler.state(answer).preemptions == 0
    server.scheduler.extend(slow, [3], True, server.now)
    server.run()
    assert same_as_alone(server)


def test_an_upload_that_grows_beyond_what_is_free_waits_until_it_is_complete() -> None:
    server = server_of()
    answer = server.ask(80, 20)
    server.step()
    slow = upload(server, list(range(20)), 4 * PAGES - 10, 2)
    server.step()
    server.scheduler.extend(slow, list(range(60)), False, server.now)
    state = server.scheduler.state(slow)
    assert (state.phase, state.preemptions, state.queued) == (Phase.WAITING, 0, False)
    server.scheduler.extend(slow, [5], True, server.now)
    server.run()
    assert {answer, slow} == set(server.finished) and same_as_alone(server)


@st.composite
def crowds(draw: st.DrawFn) -> dict[str, Any]:
    """A pool that is hardly larger than the largest request, and requests whose outputs are most of them."""
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    per_group = None if groups == 1 else draw(st.sampled_from([16, 24]))
    longest = 60 if per_group is None else groups * per_group
    return dict(
        config=SchedulerConfig(
            policy=draw(st.sampled_from(POLICIES)),
            chunk_preemption=draw(st.sampled_from([True, True, False])),
            preemption=draw(st.sampled_from([True, True, False])),
            max_preemptions=draw(st.integers(0, 3)),
            growth_pages=draw(st.integers(0, 2)),
            prefix_cache=draw(st.booleans()),
            ageing_ticks=draw(st.sampled_from([1, 5])),
            bypass_s=draw(st.sampled_from([0.0, 0.05, 1.0])),
            ttft_floor_s=draw(st.sampled_from([0.01, 0.5])),
        ),
        shapes=shapes_of(
            groups=groups,
            stages=draw(st.sampled_from([1, 1, 2, 4])),
            slots=draw(st.integers(2, 7)),
            per_group=per_group,
            layers=draw(st.sampled_from([None, (1, 2)])),
        ),
        pages=(15 if per_group is None else per_group // 4) + draw(st.integers(0, 4)),
        longest=longest,
    )


asked = st.lists(
    st.tuples(st.integers(0, 30), st.integers(1, 70), st.integers(1, 70), st.booleans(), st.sampled_from([None, 0.01])),
    min_size=2,
    max_size=8,
)


# a prompt enters the slice lane, and another one that enters with the same plan needs its pages
ENTERS_AND_LOSES = {
    "config": SchedulerConfig(ageing_ticks=1, max_preemptions=2, growth_pages=0, bypass_s=0.0, ttft_floor_s=0.01),
    "shapes": TickShapes(
        own=Buckets(decode=(2, 4), prefill=(8, 32), chunks=3, slices=(8, 32)),
        shared=Buckets(decode=(2,), prefill=(8, 16), chunks=2, slices=(16,)),
        groups=2,
        per_group=16,
        page_size=4,
        stages=1,
        slots=2,
        context=400,
        slice_lengths=(1, 2),
    ),
    "pages": 4,
    "longest": 32,
}


@settings(max_examples=150)
@given(crowds(), asked)
@example(
    ENTERS_AND_LOSES,
    [(0, 1, 17, False, None), (0, 28, 1, False, None), (0, 1, 1, False, None), (0, 20, 6, False, None)],
)
def test_everybody_ends_in_a_pool_of_a_few_pages(
    setting: dict[str, Any], requests: list[tuple[int, int, int, bool, float | None]]
) -> None:
    """Nothing lives on by preempting each other; nobody loses its pages to others more often than allowed."""
    setting = dict(setting)
    longest = setting.pop("longest")
    server = Server(**setting)
    coming = sorted(requests, key=lambda one: one[0])
    uploads: list[tuple[int, list[int]]] = []
    tick = 0
    while coming or uploads or server.scheduler.busy:
        while coming and coming[0][0] <= tick:
            _, prompt, tokens, in_parts, ttft = coming.pop(0)
            prompt = min(prompt, longest - 1)
            tokens, ids = min(tokens, longest - prompt), list(range(prompt))
            slo = Slo(ttft)
            if in_parts:
                first = SchedulerRequest(ids[:1], tokens, server.now, bound=prompt + tokens, slo=slo)
                uploads.append((server.add(first), ids[1:]))
            else:
                server.add(SchedulerRequest(range(prompt), tokens, server.now, slo=slo))
        for number, rest in list(uploads):
            if tick % 3 == 0:
                part, rest[:] = rest[:9], rest[9:]
                server.scheduler.extend(number, part, not rest, server.now)
                if not rest:
                    uploads.remove((number, rest))
        server.step()
        tick += 1
        assert tick < 20_000
    assert set(server.finished) == set(server.requests)
    assert same_as_alone(server)
    assert server.allocator.free == (setting["pages"],) * setting["shapes"].groups


def test_an_upload_is_due_by_all_of_its_tokens_whatever_phase_they_come_in() -> None:
    """Leaving, and waiting for the rest, it is in no queue of prompts with work."""
    config = dataclasses.replace(CONFIG, long_tokens=50)
    for phase in (Phase.LEAVING, Phase.WAITING):
        server = Server(config, shapes_of(stages=2), pages=PAGES)
        slow = upload(server, list(range(9)), 4 * PAGES - 10, 2)
        state = server.scheduler.state(slow)
        while not state.in_flight:
            server.step()
        server.scheduler._running.preempt(state, server.now)
        while state.phase is not phase:
            server.step()
        server.scheduler.extend(slow, list(range(60)), False, server.now)
        assert state.phase is phase and state.long
        assert state.due == config.default_deadline_s(server.scheduler.prefill_seconds(68))
        server.scheduler.extend(slow, [5], True, server.now)
        server.run()
        assert slow in server.finished and same_as_alone(server)
