"""Random traffic on random deployments: whatever comes, everything is accounted for and everybody is served."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from medha_jax.config import POLICIES, SchedulerConfig
from medha_jax.kv.allocator import OutOfPagesError
from medha_jax.plan import HostTier, StepPlan
from medha_jax.runtime.plan_columns import PlanColumns
from medha_jax.scheduler.planned import Planned
from medha_jax.scheduler.request import RequestState, SchedulerRequest, Slo
from medha_jax.scheduler.scheduler import QueueFullError
from medha_jax.scheduler.tick_budget import TickBudget
from medha_jax.scheduler.tick_targets import IDLE_PATIENCE, MISSED_SHARE
from medha_jax.scheduler.time_model import LinearTimeModel, TickWork
from medha_jax.specs.buckets import Segment, smallest_bucket
from medha_jax.specs.shape_grid import ShapeGrid
from medha_jax.specs.tick_shapes import TickShapes
from tests.scheduler.device import continuation
from tests.scheduler.serving import OWN, Server, shapes_of

configs = st.builds(
    SchedulerConfig,
    policy=st.sampled_from(POLICIES),
    chunk_preemption=st.sampled_from([True, True, True, False]),
    deadline_margin=st.sampled_from([0.5, 1.0]),
    tpot_target_s=st.sampled_from([0.002, 0.01, 1.0]),
    tpot_floor_s=st.just(0.001),
    idle_tick_s=st.sampled_from([0.002, 0.05]),
    slice_s=st.sampled_from([0.0005, 0.003, 1.0]),
    ttft_floor_s=st.sampled_from([0.01, 0.5]),
    long_tokens=st.sampled_from([30, 1000]),
    ageing_ticks=st.sampled_from([1, 5, 20]),
    preemption=st.booleans(),
    max_preemptions=st.integers(0, 3),
    growth_pages=st.integers(0, 2),
    reserve_output=st.sampled_from([False, False, True]),
    bypass_s=st.sampled_from([0.0, 0.05, 1.0]),
    max_waiting=st.sampled_from([3, 100]),
    max_tenant_waiting_tokens=st.sampled_from([None, None, 100]),
    prefix_cache=st.booleans(),
)


@st.composite
def servers(draw: st.DrawFn) -> dict[str, Any]:
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    return dict(
        config=draw(configs),
        shapes=shapes_of(
            groups=groups,
            stages=draw(st.sampled_from([1, 1, 2, 4])),
            slots=draw(st.integers(4, 7)),
            per_group=None if groups == 1 else draw(st.sampled_from([16, 40])),
            layers=draw(st.sampled_from([None, (1,), (1, 2, 3), (1, 4)])),
        ),
        pages=draw(st.integers(33, 80)),
        host=draw(st.sampled_from([HostTier(), HostTier(2, 1e-6), HostTier(9, 1e-4), HostTier(60, 1e-5)])),
    )


@st.composite
def requests(draw: st.DrawFn) -> dict[str, Any]:
    return dict(
        prompt=range(draw(st.sampled_from([0, 0, 500])), 10**6)[: draw(st.integers(1, 120))],
        max_tokens=draw(st.integers(1, 12)),
        slo=Slo(draw(st.sampled_from([None, 0.02, 1.0])), draw(st.sampled_from([None, 0.003, 0.05]))),
        on_deadline=draw(st.sampled_from(["continue", "continue", "drop"])),
        deadline_s=draw(st.sampled_from([None, 0.05, 0.5])),
        tenant=draw(st.sampled_from(["", "", "other"])),
        cache_salt=draw(st.sampled_from(["", "other"])),
        chunks=draw(st.none() | st.lists(st.integers(1, 32), min_size=1, max_size=3).map(tuple)),
        counts_tokens=draw(st.booleans()),
        n=draw(st.sampled_from([1, 1, 1, 2, 4])),
        priority=draw(st.sampled_from([0, 0, -2, 1, 2])),
    )


# what happens between two ticks: nothing, a request comes, or the n-th one is cancelled
events = st.lists(st.none() | requests() | requests() | st.integers(0, 20), min_size=10, max_size=60)


def serve(
    setting: dict[str, Any], happening: list[Any], grids: Mapping[int, ShapeGrid] = MappingProxyType({})
) -> tuple[Server, set[int], list[int]]:
    """Run the events, one a tick, and then to the end; returns also who was cancelled and who was refused.

    `grids` are shapes that come before the event whose number is given.
    """
    server = Server(**setting)
    cancelled: set[int] = set()
    refused = []
    for at, event in enumerate(happening):
        if at in grids:
            server.use(grids[at])
        if isinstance(event, dict):
            deadline = event["deadline_s"]
            stated = {**event, "deadline_s": None if deadline is None else server.now + deadline}
            outputs = stated.pop("n")
            try:
                server.add(SchedulerRequest(arrival_s=server.now, **stated), outputs)
            except (OutOfPagesError, QueueFullError):
                refused.append(at)
        elif event is not None and event in server.requests and event not in server.finished:
            server.scheduler.cancel(event)
            cancelled.add(event)
        server.step()
    server.run()
    return server, cancelled, refused


@settings(max_examples=150)
@given(servers(), events)
def test_everybody_is_served_and_nothing_is_lost(setting: dict[str, Any], happening: list[Any]) -> None:
    server, cancelled, _ = serve(setting, happening)
    for number, request in server.requests.items():
        ends = [number in server.finished, number in server.expired, number in cancelled - set(server.expired)]
        assert sum(ends) == 1, "a request finishes, is dropped at its deadline, or was cancelled: one of them"
        expected = continuation(request.prompt, request.max_tokens)
        got = server.outputs[number]
        assert got == expected[: len(got)], "interrupted or not, it is the same text"
        if number in server.finished:
            assert got == expected
        if number in server.expired:
            assert request.on_deadline == "drop"
    assert server.allocator.free == (setting["pages"],) * setting["shapes"].groups


@settings(max_examples=80)
@given(servers(), events, st.lists(st.integers(0, 9), min_size=3, max_size=3, unique=True).map(sorted))
def test_more_shapes_may_come_between_any_two_plans(
    setting: dict[str, Any], happening: list[Any], when: list[int]
) -> None:
    """Texts are the same, plans fit the shapes that are there, and their predicted sizes are those of the tick."""
    whole: TickShapes = setting["shapes"]
    several = whole.groups > 1
    first, *later = ShapeGrid(whole.own, whole.shared if several else None).growth
    setting = {**setting, "shapes": whole.on(first)}
    coming = dict(zip(when, later, strict=False))
    server, _, _ = serve(setting, happening, coming)
    for number in server.finished:
        request = server.requests[number]
        assert server.outputs[number] == continuation(request.prompt, request.max_tokens)
    grid, flight = first, [StepPlan(())] * whole.stages
    for at, planned in enumerate(server.plans):
        grid = coming.get(at, grid)
        if planned.step is not None:
            assert grid.own.slices
            continue
        flight = [planned.plan, *flight[:-1]]
        if any(plan.chunks for plan in flight):
            own, shared = zip(*(PlanColumns.of(plan).need for plan in flight), strict=True)
            bucket = smallest_bucket(grid.own, grid.shared, Segment.holding(own), Segment.holding(shared))
            ours, all_groups = bucket.own, bucket.shared
            assert planned.sizes == (ours.decode, ours.prefill, all_groups.decode, all_groups.prefill)


@settings(max_examples=25)
@given(servers(), events)
def test_the_same_traffic_gives_the_same_plans(setting: dict[str, Any], happening: list[Any]) -> None:
    first, second = (serve(setting, happening)[0] for _ in range(2))
    assert [planned.plan for planned in first.plans] == [planned.plan for planned in second.plans]
    assert [planned.work for planned in first.plans] == [planned.work for planned in second.plans]


@settings(max_examples=60)
@given(servers(), events)
def test_waits_stay_within_their_bounds(setting: dict[str, Any], happening: list[Any]) -> None:
    """From plan to plan: an admitted prompt, unless its policy has a bound of its own, and a decode that is due.

    A decode counts ticks; while it waits, at most `ageing_ticks` slices run between two of them. One that lacks a page
    waits for memory (docs/memory.md), and counts anew when it has it.
    """
    config = dataclasses.replace(setting["config"], chunk_preemption=True)
    server, shapes = Server(**{**setting, "config": config}), setting["shapes"]
    prompt_bound = config.ageing_ticks * (shapes.slots + 1) + shapes.stages
    decode_bound = 2 * shapes.slots + config.ageing_ticks  # that many plans may go to decodes of earlier classes
    waited: dict[tuple[str, int], int] = {}
    in_a_row = 0

    def step() -> None:
        nonlocal in_a_row
        planned = server.step()
        in_a_row = in_a_row + 1 if planned.step is not None else 0
        served = {state.number for state in planned.states}
        if planned.step is not None:
            served |= {state.number for stage in planned.step.states for state in stage}
        left = {}
        for state in server.scheduler._running.holders:
            if not state.running or state.number in served:
                continue
            kind = "prompt" if state.queued else "decode"
            if kind == "decode" and state.needs_page and not free_for(server, state):
                continue
            if kind == "prompt" or not state.in_flight:
                plans = 0 if kind == "decode" and planned.step is not None else 1
                left[kind, state.number] = waited.get((kind, state.number), 0) + plans
        waited.clear()
        waited.update(left)
        assert in_a_row <= config.ageing_ticks or all(kind == "prompt" for kind, _ in waited)
        for (kind, number), plans in waited.items():
            if kind == "decode" or config.policy != "red":
                assert plans <= (prompt_bound if kind == "prompt" else decode_bound), (kind, number)

    for event in happening:
        if isinstance(event, dict):
            stated = {**event, "deadline_s": None, "on_deadline": "continue"}
            outputs = stated.pop("n")
            try:
                server.add(SchedulerRequest(arrival_s=server.now, **stated), outputs)
            except (OutOfPagesError, QueueFullError):
                continue
        step()
    while server.scheduler.busy:
        step()


@settings(max_examples=100)
@given(servers(), events)
def test_only_the_first_prompt_chunk_may_exceed_the_target(setting: dict[str, Any], happening: list[Any]) -> None:
    config = dataclasses.replace(setting["config"], preemption=False, chunk_preemption=True)
    server, _, _ = serve({**setting, "config": config}, happening)
    stages = server.shapes.stages
    coming: list[float] = []  # tightest target of each plan's decodes and of the prompts that end in it
    for planned in server.plans:
        if planned.step is not None:
            work = planned.step.slice
            assert planned.seconds <= config.slice_s or work.past - work.first == server.shapes.slice_lengths[0]
            continue
        pairs = list(zip(planned.states, planned.plan.chunks, strict=True))
        prompts = [chunk for state, chunk in pairs if chunk.start < len(state.request.prompt)]
        decodes = [(state.tpot, chunk) for state, chunk in pairs if chunk.start >= len(state.request.prompt)]
        tightest = [*(tpot for tpot, _ in decodes), *(coming[-stages + 1 :] if stages > 1 else [])]
        limit = min(tightest, default=math.inf) / stages
        if decodes:
            only = dataclasses.replace(planned, plan=StepPlan(tuple(chunk for _, chunk in decodes)))
            alone = server.model.seconds(own_work(only, server.shapes))
            limit = limit if alone < limit else MISSED_SHARE * alone
        coming.append(min((state.tpot for state, chunk in pairs if chunk.last), default=math.inf))
        own = server.model.seconds(own_work(planned, server.shapes))
        if own > (config.idle_tick_s if limit == math.inf else limit) and prompts:
            ((state, chunk),) = [pair for pair in pairs if pair[1] in prompts]
            natural = chunk.end == len(state.request.prompt) or chunk.end % server.shapes.per_group == 0
            least = max(config.idle_tick_s, smallest_seconds(server, planned, stages))
            patient = limit == math.inf and own <= IDLE_PATIENCE * least
            assert natural or state.request.chunks or chunk.length == OWN.prefill[0] or patient


@settings(max_examples=60)
@given(
    policy=st.sampled_from(["red", "lars", "srtf"]),
    stages=st.sampled_from([1, 2]),
    slice_s=st.sampled_from([0.0005, 0.003, 1.0]),
    asked=st.lists(
        st.tuples(st.floats(0, 0.05), st.sampled_from([5, 20, 60, 390]), st.integers(2, 20)), min_size=2, max_size=4
    ),
)
def test_slices_keep_the_mean_time_per_token_of_every_answer(
    policy: str, stages: int, slice_s: float, asked: list[tuple[float, int, int]]
) -> None:
    """However late an answer begins: what was saved before its first token is not spent after it. Nobody ages here."""
    model = LinearTimeModel(fixed=2e-4, tokens=1e-5, attention=1e-6, context=1e-6).per_layer(3, 1e-4)
    config = SchedulerConfig(
        policy=policy,
        tpot_target_s=0.004 * stages,
        tpot_floor_s=1e-3,
        idle_tick_s=0.004,
        slice_s=slice_s,
        ageing_ticks=10_000,
    )
    server = Server(config, shapes_of(stages=stages, slots=16, layers=(1, 2, 3)), pages=2000, model=model)
    coming = asked[::-1]
    at = 0.0
    while coming or server.scheduler.busy:
        while coming and at + coming[-1][0] <= server.now:
            gap, prompt, tokens = coming.pop()
            at += gap
            server.ask(prompt, tokens)
        server.step()
        assert len(server.plans) < 5_000
    for number, request in server.requests.items():
        tpot = (server.finished[number] - server.first_token[number]) / (request.max_tokens - 1)
        assert tpot <= config.tpot_target_s * (1 + 1e-9)


def free_for(server: Server, state: RequestState) -> bool:
    """Whether a page is free where an admitted request's next token goes, on any group if it has none for it yet."""
    groups = state.holding.groups[state.scheduled // server.shapes.per_group :] or range(server.shapes.groups)
    return any(server.allocator.free[group] for group in groups)


def smallest_seconds(server: Server, planned: Planned, stages: int) -> float:
    """Seconds of a plan if its prompt chunk were of the smallest bucket, in a shape that holds the plans in flight."""
    at = next(number for number, one in enumerate(server.plans) if one is planned)
    ticks = [one for one in server.plans[:at] if one.step is None]
    flight = [own_work(one, server.shapes).tokens for one in ticks[max(0, len(ticks) - stages + 1) :]]
    own = own_work(planned, server.shapes, OWN.prefill[0])
    return server.model.seconds(own._replace(tokens=max(own.tokens, *flight, 0)))


def own_work(planned: Planned, shapes: TickShapes, longest: int = 2**31) -> TickWork:
    """The work of a plan by itself, counted from its chunks, of which none counts for more than `longest` tokens."""
    room = TickBudget(shapes, LinearTimeModel())
    for chunk in planned.plan.chunks:
        room.prefill(chunk.groups, chunk.start, min(chunk.length, longest), long=False)
    load = room.load
    return TickWork(sum(load.sizes), load.attention, load.context, load.rows)
