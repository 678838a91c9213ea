"""The comparison of policies: what is counted, and what each condition changes."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.policies import MACHINE, SETTINGS, Condition, Count, arriving, count, counted, table, with_pool
from medha_jax.config import POLICIES
from medha_jax.simulate.simulation import alone

SECONDS = 60.0


def work(tokens: int) -> float:
    return tokens / 5000


def test_bursts_are_the_same_requests_with_other_gaps() -> None:
    even, bursts = (arriving(Condition(0.9, burstiness=shape), 3, 600.0, work) for shape in (1.0, 0.25))
    assert [one.length for one in even] == [one.length for one in bursts]
    spread = [np.diff([one.at for one in some]) for some in (even, bursts)]
    assert spread[1].std() > 1.3 * spread[0].std()
    assert 0 <= bursts[0].at <= bursts[-1].at <= 600


def test_a_slower_machine_makes_more_requests_late_and_every_request_is_counted() -> None:
    usual, slow = (count(Condition(0.9, slowed=times), 1, "fcfs", SECONDS) for times in (1.0, 4.0))
    assert (usual.short, usual.long) == (slow.short, slow.long)
    assert usual.short + usual.long == len(arriving(Condition(0.9), 1, SECONDS, alone(MACHINE.chunks_only, SETTINGS)))
    assert slow.longest_wait > usual.longest_wait
    assert slow.short_late + slow.long - slow.long_on_time > usual.short_late + usual.long - usual.long_on_time


def test_every_policy_under_every_condition_and_seed() -> None:
    conditions = [Condition(0.5), Condition(0.5, mix="0")]
    found = list(counted(conditions, [1, 2], SECONDS / 6, processes=1))
    assert [(one.condition, one.seed, one.policy) for one in found] == [
        (str(condition), seed, policy) for condition in conditions for seed in (1, 2) for policy in POLICIES
    ]


def test_slices_serve_the_same_requests() -> None:
    whole, sliced = (count(Condition(0.9), 1, "red", SECONDS, one) for one in (MACHINE.chunks_only, MACHINE))
    assert (whole.short, whole.long) == (sliced.short, sliced.long)
    assert sliced.long_on_time <= sliced.long_in_twice <= sliced.long
    assert sliced.longest < whole.longest


def test_a_part_of_the_pool() -> None:
    assert with_pool(MACHINE, 0.25).config.pool_tokens == pytest.approx(MACHINE.config.pool_tokens / 4, abs=1)


def test_the_table_adds_seeds_up_and_marks_the_best() -> None:
    counts = [
        Count("load 1", seed, policy, 10, int(policy != "red"), 5, 2 if policy == "srtf" else 1, 3, 7.0, (), (), 0.0)
        for policy in POLICIES
        for seed in (1, 2)
    ]
    row = list(table(counts))[2]
    assert row.startswith("| load 1 | 20 | 10 |")
    assert "**0** / 2 / 7 s" in row and "2 / **4** / 7 s" in row
