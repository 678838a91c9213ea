from __future__ import annotations

import dataclasses
import math

import pytest

from medha_jax.config import Buckets, MeshConfig, SchedulerConfig
from medha_jax.results.metrics import tpot, waited
from medha_jax.scheduler.time_model import TickWork
from medha_jax.simulate.cost import CostModel
from medha_jax.simulate.deployments import Deployment, deploy
from medha_jax.simulate.hardware import Link, load_hardware
from medha_jax.simulate.held_chunks import SimulationError
from medha_jax.simulate.named_models import load_model
from medha_jax.simulate.simulation import simulate
from medha_jax.specs.buckets import Bucket, padded_segment
from research.baselines.decoding import DecodePool, Decoding
from research.baselines.elastic import Instances, simulate_elastic
from research.baselines.fixed import first_come, fixed_chunks
from research.baselines.pools import simulate_apart, simulate_split
from research.baselines.ring import ring_prefill
from tests.simulate.simulated import first, request

H100, LLAMA = load_hardware("h100"), load_model("llama3-8b")
BUCKETS = Buckets(decode=(1, 8, 32), prefill=(64, 256, 512, 2048), chunks=8, slices=())
LONG, SHORT = request(0.0, 300_000, 20, "long"), request(1.0, 500, 8)


def cost(tp: int = 8) -> CostModel:
    return CostModel.of(LLAMA, MeshConfig(tp=tp, page_size=64, buckets=BUCKETS), H100)


def machine(tp: int = 8) -> Deployment:
    return deploy(cost(tp), 2**20, 32, "llama3-8b")


def alone(prompt: int) -> float:
    return machine().isolated_prefill(prompt)


def test_with_fixed_chunks_the_next_prompt_waits_for_the_end_of_the_one_before() -> None:
    server = fixed_chunks(machine(), 512)
    long, short = simulate(server, first_come(SchedulerConfig()), [LONG, SHORT]).records
    assert waited(long) == pytest.approx(server.isolated_prefill(LONG.length), rel=1e-6)
    assert first(short) > first(long)
    ours = simulate(machine(), SchedulerConfig(), [LONG, SHORT]).records[1]
    assert waited(ours) < waited(short) / 20


def test_with_fixed_chunks_decodes_ride_along() -> None:
    server = fixed_chunks(machine(), 512)
    decode, _ = simulate(server, first_come(SchedulerConfig()), [dataclasses.replace(SHORT, at=0.0), LONG]).records
    # a token in each of the long prompt's ticks, of which the last takes the longest
    longest = server.model.seconds(TickWork(1 + 512, 512 * LONG.length, LONG.length + 600, 2))
    assert (tpot(decode) or math.inf) < longest


def test_a_ring_of_one_is_the_prompt_at_once_and_more_divide_it() -> None:
    one, prompt = cost(), 100_000
    fixed = one.used.tick_s + sum(one.parts(one_shape(prompt)).values())
    assert ring_prefill(one, [prompt], 1) == pytest.approx(fixed + one.attention_s * prompt * (prompt + 1) / 2)
    times = [ring_prefill(one, [1_000_000], degree) for degree in (1, 2, 4, 8)]
    assert times == sorted(times, reverse=True)
    assert times[0] / times[-1] < 8
    # a slow link shows: seven eighths of the KV come over it
    slow = dataclasses.replace(one, hardware=dataclasses.replace(H100, far=Link(1e9, 0)))
    traffic = 7 / 8 * 1_000_000 * 2**17 / 8 / (H100.coefficients.link * 1e9)
    assert ring_prefill(slow, [1_000_000], 8) == pytest.approx(
        traffic + one.used.tick_s + sum(one.parts(one_shape(125_000)).values()), rel=1e-3
    )


def one_shape(tokens: int) -> Bucket:
    return Bucket(padded_segment(cost().sizes.mesh.buckets, 1, tokens))


def instances(count: int = 4, most: int = 4) -> Instances:
    return Instances(cost(2), count=count, most=most, tokens=800_000)


def test_an_elastic_prefill_is_not_interrupted() -> None:
    long, short = simulate_elastic(instances(), [LONG, SHORT], alone).records
    least = min(ring_prefill(cost(2), [LONG.length], degree) for degree in range(1, 5))
    assert least <= waited(long) <= 1.1 * least
    assert first(short) > first(long)
    # with instances to spare it does not wait
    free = simulate_elastic(instances(count=8), [LONG, SHORT], alone).records[1]
    assert waited(free) < 0.1


def test_elastic_instances_serve_everybody_once() -> None:
    arrivals = [request(0.2 * n, 700 + 9_000 * (n % 7 == 0), 1 + n % 30) for n in range(60)]
    outcome = simulate_elastic(instances(count=2, most=2), arrivals, alone)
    assert all(one.status == "ok" for one in outcome.records)
    assert all(one.due < first(one) <= one.ended <= outcome.end for one in outcome.records)
    assert outcome.totals.tokens == sum(arrival.length for arrival in arrivals)
    assert outcome.totals.attention == sum(one.length * (one.length + 1) / 2 for one in arrivals)
    cut = simulate_elastic(instances(count=2, most=2), arrivals, alone, until=5.0)
    assert cut.end == 5.0
    assert sum(not one.outputs for one in cut.records) < len(cut.records) <= 26
    with pytest.raises(SimulationError, match="fit no 2 instances"):
        simulate_elastic(instances(count=2), [request(0.0, 2_000_000, 1)], alone)


def test_decodes_in_closed_form_are_the_rounds_one_by_one() -> None:
    def seconds(count: int, context: float) -> float:
        return 0.01 + 0.001 * count + 1e-7 * context

    requests = [Decoding(0, 1000, 50), Decoding(1, 200_000, 7), Decoding(2, 30, 90)]
    pool = DecodePool(seconds, 10**6, 8)
    for one in requests:
        pool.add(dataclasses.replace(one))
    ended = dict(pool.run(float("inf")))
    now, state = 0.0, {one.number: [one.context, one.left] for one in requests}
    wanted = {}
    while state:
        now += seconds(len(state), sum(context for context, _ in state.values()))
        for number in list(state):
            state[number][0] += 1
            state[number][1] -= 1
            if not state[number][1]:
                wanted[number] = now
                del state[number]
    assert ended == pytest.approx(wanted)
    assert pool.rounds == 90


def test_decodes_wait_for_room_and_stop_when_they_are_told() -> None:
    pool = DecodePool(lambda count, context: 1.0, tokens=150, slots=8)
    pool.add(Decoding(0, 90, 10))
    pool.add(Decoding(1, 90, 10))
    assert pool.run(4.5) == []
    assert pool.now == 5.0
    assert pool.run(1000.0) == [(0, 10.0), (1, 20.0)]
    assert pool.now == 1000.0


def test_split_pools_send_the_kv_between_the_first_token_and_the_second() -> None:
    prefill, decode = fixed_chunks(machine(4), 2048), machine(4)
    settings = first_come(SchedulerConfig())
    (one,) = simulate_split(prefill, decode, cost(4), settings, [dataclasses.replace(SHORT, at=0.0)], alone).records
    assert first(one) == pytest.approx(prefill.isolated_prefill(500))
    used = cost(4).used
    sending = 500 * 2**17 / 4 / (used.link * H100.far.bandwidth)
    tokens = sum(cost(4).shape_seconds(1) + cost(4).context_s * (501 + n) + used.tick_s for n in range(7))
    assert one.status == "ok"
    assert one.ended - first(one) == pytest.approx(sending + tokens, rel=0.01)
    long, short = simulate_split(prefill, decode, cost(4), settings, [LONG, SHORT], alone).records
    assert first(short) >= first(long)


def test_short_requests_of_a_pool_of_their_own_do_not_see_long_ones() -> None:
    arrivals = [LONG, SHORT, dataclasses.replace(SHORT, at=1.01), dataclasses.replace(LONG, at=2.0)]
    settings = first_come(SchedulerConfig())
    both = simulate_apart(machine(4), machine(4), settings, arrivals, alone)
    only = simulate(machine(4), settings, arrivals[1:3], isolated=alone)
    assert [(one.due, one.prompt_tokens) for one in both.records] == [(one.at, one.length) for one in arrivals]
    assert [first(one) for one in both.records[1:3]] == [first(one) for one in only.records]
    assert both.totals.tokens == sum(one.length + one.output_tokens - 1 for one in arrivals)
