"""Layered prefill on the machine of the tables, against closed forms; the floor of a convoy."""

from __future__ import annotations

from dataclasses import replace

import pytest

from medha_jax.config import SchedulerConfig
from medha_jax.results.metrics import tpot, waited
from medha_jax.scheduler.time_model import LinearTimeModel, TickWork
from medha_jax.simulate.deployments import DEPLOYMENTS
from medha_jax.simulate.simulation import simulate
from medha_jax.workload import build_convoy
from research.baselines.layered import simulate_layered
from research.slices import CONVOY, floor
from tests.simulate.simulated import request

MACHINE = DEPLOYMENTS["a100-16"]
CHUNK = MACHINE.config.mesh.buckets.prefill[-1]


@pytest.mark.parametrize("groups", [1, 4, 16])
def test_a_lone_prompt_takes_its_chunks_and_a_tick_for_every_group(groups: int) -> None:
    """Its rows take what they take in whole ticks; every further group adds a tick with an empty decode row."""
    (served,) = simulate_layered(MACHINE, [request(3.0, 10 * CHUNK, 5)], groups, MACHINE.isolated_prefill).records
    assert isinstance(MACHINE.model, LinearTimeModel)
    empty = MACHINE.model.fixed + MACHINE.model.tokens
    wanted = MACHINE.isolated_prefill(10 * CHUNK) + 11 * (groups - 1) * empty
    assert waited(served) == pytest.approx(wanted)
    assert tpot(served) == pytest.approx(2 * MACHINE.model.seconds(TickWork(1, 0.0, 10 * CHUNK + 3, 1)), rel=0.01)


def test_every_waiting_prompt_runs_in_every_tick() -> None:
    """Two equal prompts take their rows together; a third one that comes later is not behind them."""
    alone = simulate_layered(MACHINE, [request(0.0, CHUNK, 2)], 4, MACHINE.isolated_prefill)
    both = simulate_layered(MACHINE, [request(0.0, CHUNK, 2)] * 2, 4, MACHINE.isolated_prefill)
    assert both.totals.ticks == alone.totals.ticks
    first, second = map(waited, both.records)
    assert waited(alone.records[0]) < first == second < 2 * waited(alone.records[0])
    long, short = simulate_layered(
        MACHINE, [request(0.0, 500_000, 2), request(10.0, 500, 2)], 16, MACHINE.isolated_prefill
    ).records
    assert waited(short) < waited(long) / 20


def test_requests_wait_for_pages_in_order_and_stop_at_the_end() -> None:
    pool = MACHINE.config.pool_tokens
    assert pool is not None
    arrivals = [request(float(number), pool // 5 - 100, 100) for number in range(6)] + [request(6.0, 100, 1)]
    outcome = simulate_layered(MACHINE, arrivals, 4, MACHINE.isolated_prefill, until=500.0)
    assert outcome.end >= 500
    assert not outcome.records[-1].outputs  # behind the sixth long one, which has no pages
    assert outcome.records[-1].status == "unfinished"


def test_the_floor_of_a_convoy_is_below_what_is_simulated() -> None:
    """With weights read once it is lower by what a round's weights take, over the share of the time that is left."""
    requests = build_convoy(replace(CONVOY, long_prompt=300_000, shorts=30)).requests
    found = floor(MACHINE, requests, 3)
    (long, *_) = simulate(MACHINE, SchedulerConfig(), requests).records
    assert found.best < found.riding < found.two_lanes <= 1.02 * waited(long)
