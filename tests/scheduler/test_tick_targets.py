from __future__ import annotations

import dataclasses
import math

import pytest

from medha_jax.config import SchedulerConfig
from medha_jax.scheduler.tick_targets import CHARGE, TickTarget, TickTargets
from medha_jax.scheduler.time_model import LinearTimeModel
from tests.scheduler.serving import Server, shapes_of

CONFIG = SchedulerConfig(idle_tick_s=0.2, ageing_ticks=10)


def test_without_decodes_the_idle_limit_holds_and_the_smallest_chunk_always_runs() -> None:
    assert TickTargets(CONFIG, 2).target(math.inf, 0.0) == TickTarget(0.2, math.inf, patience=2.0)


def test_prompts_that_run_to_their_end_have_no_limit() -> None:
    config = SchedulerConfig(chunk_preemption=False)
    assert TickTargets(config, 1).target(0.05, 0.01) == TickTarget(math.inf, math.inf)


def test_a_pipeline_divides_the_target_and_remembers_who_is_in_it() -> None:
    targets = TickTargets(CONFIG, 2)
    assert targets.target(0.05, 0.01).seconds == 0.025
    targets.planned(0.05, math.inf, 0.02)
    assert targets.target(math.inf, 0.0).seconds == 0.025, "its decode is in the second stage"
    targets.planned(math.inf, math.inf, 0.02)
    assert targets.target(math.inf, 0.0).seconds == 0.2
    targets.planned(math.inf, 0.03, 0.02)
    assert targets.target(0.05, 0.0).seconds == 0.015, "a prompt that ends counts as a decode"


def test_what_ticks_save_may_be_spent_on_a_smallest_chunk() -> None:
    targets = TickTargets(CONFIG, 1)
    for _ in range(3):
        targets.planned(0.05, math.inf, 0.02)
    assert targets.target(0.05, 0.02).at_most == pytest.approx(0.05 + 3 * 0.03)
    targets.planned(0.05, math.inf, 0.12)
    assert targets.target(0.05, 0.02).at_most == pytest.approx(0.05 + 0.02)
    for _ in range(1000):
        targets.planned(0.05, math.inf, 0.02)
    assert targets.target(0.05, 0.02).at_most == pytest.approx(0.05 + 10 * 0.05), "not for ever"
    targets.planned(math.inf, math.inf, 0.1)
    assert targets.target(0.05, 0.02).at_most == pytest.approx(0.05), "nobody was promised anything meanwhile"


def test_beside_decodes_that_take_too_long_by_themselves_prompts_get_twice_their_time() -> None:
    targets = TickTargets(CONFIG, 1)
    assert targets.target(0.05, 0.06) == TickTarget(0.18, math.inf)
    assert targets.target(0.05, 0.05).seconds == pytest.approx(0.15)
    assert targets.target(0.05, 0.049).seconds == 0.05
    targets.planned(0.05, math.inf, 0.12, decodes=0.06)
    assert targets.next == TickTarget(0.18, math.inf), "so short prompts stay in ticks"
    targets.sliced(0.05)
    assert targets.next == TickTarget(0.18, math.inf)
    targets.planned(0.05, math.inf, 0.05, decodes=0.03)
    assert targets.next.seconds == 0.05


def test_the_mean_time_per_token_is_kept_beside_a_prompt_whose_chunks_are_all_too_long() -> None:
    """Reading its context takes 6 to 10 ms, and 4 ms are promised; a tick without it takes 1 ms."""
    model = LinearTimeModel(fixed=1e-3, context=4e-5)
    config = SchedulerConfig(policy="srtf", preemption=False, tpot_target_s=4e-3, tpot_floor_s=1e-3, ageing_ticks=1000)
    server = Server(config, shapes_of(), pages=200, model=model)
    server.ask(390, 1)
    while server.scheduler.state(0).scheduled < 100:
        server.step()
    short = server.ask(2, 30)
    server.run()
    tokens = [planned for planned in server.plans if short in {state.number for state in planned.states}]
    tpot = (server.finished[short] - server.first_token[short]) / 29
    assert 3e-3 < tpot <= 4.2e-3
    assert max(planned.seconds for planned in tokens) > 6e-3, "single ticks are longer"


def test_slices_run_in_the_time_that_ticks_have_saved() -> None:
    targets = TickTargets(dataclasses.replace(CONFIG, slice_s=0.04), 1)
    assert targets.of_slice(owed=False) == TickTarget(0.04, math.inf), "nobody waits for a token"
    targets.planned(0.05, math.inf, 0.02, decodes=0.02)
    assert targets.of_slice(owed=False) == TickTarget(pytest.approx(0.03), pytest.approx(0.03))
    targets.sliced(0.02)
    assert targets.of_slice(owed=False).seconds == pytest.approx(0.03 - CHARGE * 0.02)
    assert targets.of_slice(owed=True).at_most == math.inf
    targets.planned(math.inf, math.inf, 0.02)
    assert targets.of_slice(owed=False) == TickTarget(0.04, math.inf)


def test_where_decodes_alone_miss_their_target_one_slice_runs_after_each_tick() -> None:
    targets = TickTargets(dataclasses.replace(CONFIG, slice_s=0.07), 1)
    targets.planned(0.05, math.inf, 0.06, decodes=0.06)
    assert targets.of_slice(owed=False) == TickTarget(0.06, math.inf)
    targets.sliced(0.1)
    assert targets.of_slice(owed=False).at_most == 0
    targets.planned(0.05, math.inf, 0.06, decodes=0.06)
    assert targets.of_slice(owed=False).at_most == math.inf


def test_a_slice_longer_than_the_most_that_ticks_can_save_runs_once_that_is_saved() -> None:
    targets = TickTargets(CONFIG, 1)
    for _ in range(2 * CONFIG.ageing_ticks):
        assert targets.of_slice(owed=False).at_most < CONFIG.ageing_ticks * 0.05 or targets.of_slice(False).at_most > 9
        targets.planned(0.05, math.inf, 0.01, decodes=0.01)
    assert targets.of_slice(owed=False).at_most == math.inf


def test_free_slices_do_not_keep_decodes_waiting() -> None:
    """A time model that predicts nothing: still a tick comes after `ageing_ticks` slices."""
    targets = TickTargets(CONFIG, 2)
    targets.planned(0.05, math.inf, 0.0)
    for _ in range(CONFIG.ageing_ticks):
        assert targets.of_slice(owed=False).at_most >= 0
        targets.sliced(0.0)
    assert targets.of_slice(owed=True).at_most < 0
    targets.planned(math.inf, math.inf, 0.0)
    assert targets.of_slice(owed=False).at_most >= 0


@pytest.mark.parametrize("stages", [1, 2, 4])
def test_nothing_is_saved_for_an_answer_before_its_first_token(stages: int) -> None:
    """Its first token leaves the last stage. What was saved before does not make up for slices after it."""
    targets = TickTargets(CONFIG, stages)
    for _ in range(5):
        targets.planned(0.05, math.inf, 0.0)
    targets.planned(0.05, 0.05, 0.0)
    for _ in range(stages - 1):
        assert targets.of_slice(owed=False).at_most > 0
        targets.planned(0.05, math.inf, 0.0)
    assert targets.of_slice(owed=False).at_most == 0
    targets.planned(0.05, math.inf, 0.0)
    assert targets.of_slice(owed=False).at_most == pytest.approx(0.05 / stages)


def test_at_most_one_slice_comes_between_the_stages_of_a_prompt_that_ends() -> None:
    targets = TickTargets(CONFIG, 3)
    targets.planned(0.05, 0.05, 0.0)
    for _ in range(2):
        targets.sliced(0.001)
        assert targets.of_slice(owed=True).at_most < 0
        targets.planned(0.05, math.inf, 0.0)
    targets.sliced(0.001)
    assert targets.of_slice(owed=False).at_most >= 0
