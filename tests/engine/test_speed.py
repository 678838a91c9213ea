"""Ticks are timed on a simulated mesh, where what they take is known."""

import pytest

from medha_jax.cli.bench_tables import print_engine
from medha_jax.config import Buckets, ConfigError, MeshConfig, RuntimeConfig
from medha_jax.engine.speed import UNTIMED, EngineSpeed, StartWatch, decode_output
from medha_jax.scheduler.time_model import LinearTimeModel, TickWork
from medha_jax.simulate.clock import VirtualClock
from medha_jax.simulate.executor import SimulatedExecutor
from medha_jax.simulate.times import SummedTimes

MODEL = LinearTimeModel(fixed=0.004, tokens=1e-5, attention=2e-9, context=1e-8, rows=1e-4)
CONTEXT = 4096


def simulated(byte_tokenizer, spp=1, on_tick=lambda what: None):
    buckets = Buckets(decode=(1, 8), prefill=(16, 64), chunks=2, slices=())
    config = RuntimeConfig(mesh=MeshConfig(spp=spp, page_size=16, buckets=buckets), slots=8, pool_tokens=16 * 1024)
    clock = VirtualClock()
    executor = SimulatedExecutor(config, CONTEXT, SummedTimes(MODEL), clock, vocab=256)
    return EngineSpeed(executor, byte_tokenizer, clock, on_tick)


@pytest.mark.parametrize("chunk, context", [(64, 0), (64, 1000), (16, 1000), (2, 512)])
def test_a_prompt_chunk_takes_what_it_takes(byte_tokenizer, chunk, context):
    speed = simulated(byte_tokenizer)
    found = speed.prefill(chunk, context, 1)
    start = context + UNTIMED * chunk
    rows = 1 + (64 if chunk == 64 else 16)
    attention = chunk * (start + start + chunk + 1) / 2
    assert found.seconds == pytest.approx(MODEL.seconds(TickWork(rows, attention, start + chunk, 1)))
    assert (found.rows, found.context, found.ticks) == (chunk, context, 1)
    assert found.tokens_per_second == pytest.approx(chunk / found.seconds)


@pytest.mark.parametrize("batch, spp", [(1, 1), (3, 1), (8, 1), (8, 2)])
def test_decodes_are_timed_when_all_of_them_decode(byte_tokenizer, batch, spp):
    speed = simulated(byte_tokenizer, spp)
    found = speed.decode(batch, 200, 5)
    assert (found.rows, found.ticks, found.turn) == (batch, 5, spp)
    bucket = 1 if batch == 1 else 8
    least = MODEL.seconds(TickWork(bucket, 0, batch * 200 / spp, batch / spp))
    most = MODEL.seconds(TickWork(bucket, 0, batch * (200 + decode_output(batch, 200, 5, 64)), batch))
    assert least <= found.seconds <= most
    assert found.tokens_per_second == pytest.approx(batch / found.seconds / spp)
    # what was given up when it was timed holds nothing, so there is room for the most that fits
    assert speed.prefill(64, 3000, 4).ticks == 4


def test_the_time_model_is_judged_by_ticks_that_it_has_not_seen(byte_tokenizer):
    ran = []
    speed = simulated(byte_tokenizer, on_tick=ran.append)
    assert speed.host is None and speed.prediction() is None
    for context in (0, 700, 2000):
        for chunk in (16, 64):
            speed.prefill(chunk, context, 8)
    for batch in (1, 4, 8):
        speed.decode(batch, 300, 8)
    found = speed.prediction()
    assert found is not None and found.ticks > 50
    assert found.median < 1e-6 and found.p90 < 1e-3
    assert found.coefficients.fixed == pytest.approx(MODEL.fixed, rel=0.01)
    host = speed.host
    assert host is not None and host.ticks == len(ran) and (host.schedule, host.submit) == (0, 0) and host.wait > 0
    assert {"prefill 64 at 700", "decode 8 at 300"} < set(ran)


@pytest.mark.parametrize(
    "kind, given, message",
    [
        ("prefill", (128, 0, 1), "a chunk of 128 tokens; allowed are 2 to 64"),
        ("prefill", (1, 0, 1), "allowed are 2 to 64"),
        ("prefill", (64, 4090, 1), "the runtime's context is 4,096 tokens"),
        ("decode", (9, 10, 1), "9 decodes in a tick; allowed are 1 to 8"),
        ("decode", (8, 3000, 1), "need 1,.* pages of 16; the pool has 1,024"),
        ("decode", (1, 4095, 4), "decodes at 4,095 tokens; the runtime's context is 4,096 tokens"),
    ],
)
def test_what_does_not_fit_is_refused(byte_tokenizer, kind, given, message):
    speed = simulated(byte_tokenizer)
    with pytest.raises(ConfigError, match=message):
        getattr(speed, kind)(*given)


def test_what_was_measured_is_printed(byte_tokenizer, capsys):
    speed = simulated(byte_tokenizer)
    found = [speed.prefill(64, 0, 30), speed.prefill(16, 0, 30)], [speed.decode(1, 10, 8), speed.decode(8, 10, 8)]
    start = StartWatch(print)
    start.told("compiling 2 shapes")
    start.told("compiled 1/2: a in 1 s (from the cache)")
    start.ready()
    print_engine(speed, *found, start)
    out = capsys.readouterr().out
    assert "Prompt chunks" in out and "of 1" in out and "1.0x" in out
    assert "Host: scheduling and delivering 0 s a tick" in out and "is 0.0 % in the median" in out
    assert "compiling 1 programs (1 from the cache)" in out


def test_a_start_is_timed_by_what_it_tells():
    heard = []
    watch = StartWatch(heard.append)
    for line in ("loaded", "compiling 2 shapes", "compiled 1/2: a in 1 s (from the cache)", "compiled 2/2: b in 2 s"):
        watch.told(line)
    watch.ready()
    assert (watch.programs, watch.from_cache) == (2, 1)
    assert 0 <= watch.compile_s <= watch.start_s
    assert heard[0] == "loaded" and len(heard) == 4
