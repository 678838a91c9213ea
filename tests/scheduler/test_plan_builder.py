"""Ticks and slices, built from who is there: which chunks come together."""

from __future__ import annotations

import itertools

from medha_jax.config import SchedulerConfig
from medha_jax.scheduler.request import Slo
from medha_jax.scheduler.time_model import LinearTimeModel
from tests.scheduler.device import continuation
from tests.scheduler.serving import Server, shapes_of


def test_a_group_that_comes_after_a_preemption_has_one_chunk_in_a_round_of_slices() -> None:
    """Which group a prompt gets is a guess until others have lost their pages, and another chunk may be there."""
    config = SchedulerConfig(
        policy="red",
        tpot_target_s=0.01,
        tpot_floor_s=0.001,
        idle_tick_s=0.002,
        slice_s=1.0,
        ttft_floor_s=0.01,
        long_tokens=30,
        ageing_ticks=1,
        deadline_margin=0.5,
        max_preemptions=1,
        bypass_s=0.0,
        prefix_cache=False,
    )
    server = Server(config, shapes_of(groups=2, per_group=40, layers=(1, 2, 3)), pages=33)
    for _ in range(5):
        server.step()
    asked = []
    for prompt, stated in [(33, {"chunks": (1,)}), (13, {"slo": Slo(0.02, None)}), (30, {}), (9, {}), (23, {})]:
        asked.append(server.ask(prompt, 1, **stated))
        server.step()
    server.run()
    for number in asked:
        assert server.outputs[number] == continuation(server.requests[number].prompt, 1)
    guessed = [plan for plan in server.plans if plan.step is not None and plan.preempted]
    assert [state.owners for plan in guessed for state in plan.admitted], "the case arises"
    for plan in server.plans:
        for stage in plan.step.slice.stages if plan.step is not None else ():
            groups = list(itertools.chain.from_iterable(chunk.groups for chunk in stage.chunks))
            assert len(set(groups)) == len(groups)


def test_a_prompt_that_begins_elsewhere_than_expected_keeps_its_pages_in_the_plan_that_admits_it() -> None:
    """Its slice waits for the next plan, and a decode that lacks a page in this one takes none of what it has just got.

    What had been found of its prefix has partly left the cache meanwhile, so its chunk is not the one that was planned.
    """
    config = SchedulerConfig(policy="fcfs", growth_pages=0, tpot_target_s=0.01, idle_tick_s=0.01, long_tokens=1000)
    model = LinearTimeModel(fixed=1e-3, tokens=1e-3, of_slices=LinearTimeModel())
    server = Server(config, shapes_of(layers=(1,)), pages=16, model=model)
    server.ask(16, 1)
    server.run()  # four pages stay in the cache
    grows = server.ask(7, 30, first=500)
    other = server.ask(28, 30, first=700)
    while not all(server.outputs[number] for number in (grows, other)):
        server.step()
    late = server.ask(44, 2)
    state = server.scheduler.state(grows)
    while not (state.holding is not None and state.needs_page and state.scheduled == 16):
        server.step()
    assert server.scheduler.state(late).cached_by_group == (16,)
    server.scheduler.cancel(other)
    planned = server.step()
    assert [one.number for one in planned.admitted] == [late], "the case arises"
    assert not set(planned.preempted) & set(planned.admitted)
    server.run()
    for number in (grows, late):
        assert server.outputs[number] == continuation(server.requests[number].prompt, len(server.outputs[number]))
