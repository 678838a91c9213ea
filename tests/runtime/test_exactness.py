"""Every layout gives what one device gives: tokens equal, logits within 1e-4 in fp32."""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medha_jax.config import Buckets
from medha_jax.engine import (
    Completed,
    Engine,
    GenerationRequest,
    OfflineEngine,
    scheduler_for,
    text_outputs,
)
from medha_jax.engine.offline import OFFLINE
from medha_jax.plan import SamplingParams, Slice, TokenResult
from medha_jax.runtime import MeshExecutor
from medha_jax.scheduler.time_model import LinearTimeModel, TimeModel
from medha_jax.text import Tokenizer
from tests.runtime import sliced
from tests.small import small_executor

# 9 layers and 250 entries divide by nothing that matters, 2 KV heads are fewer than tp=4 and tp=8
MODEL = {"num_hidden_layers": 9, "num_attention_heads": 8, "vocab_size": 250, "intermediate_size": 64}
PER_GROUP = {1: None, 2: 512, 4: 256, 8: 128}
LAYOUTS = [
    (tp, spp, kvp)
    for devices in (1, 2, 4, 8)
    for tp, spp, kvp in itertools.product((1, 2, 4, 8), repeat=3)
    if tp * spp * kvp == devices
]


@dataclass(frozen=True)
class Arrival:
    """A request that comes when `tick` ticks have run."""

    tick: int
    request: GenerationRequest


def request(
    rng: np.random.Generator, prompt: int, tokens: int, chunks: Any = None, **sampling: Any
) -> GenerationRequest:
    ids = tuple(rng.integers(0, MODEL["vocab_size"], prompt).tolist())
    greedy = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, **sampling)
    return GenerationRequest(ids, greedy, chunks=chunks)


def mix() -> list[Arrival]:
    """One request that spreads over every group, one that grows over a border while decoding, short ones in between.

    Each output is long enough to pass a border of pages or groups, and no longer: a tick of eight stages is dear.
    """
    rng = np.random.default_rng(0)
    return [
        Arrival(0, request(rng, 30, 12, logit_bias=((3, -100.0), (200, 1.5)))),
        Arrival(0, request(rng, 960, 12)),
        Arrival(1, request(rng, 120, 12, chunks=(1, 7, 64), frequency_penalty=0.5)),
        Arrival(4, request(rng, 3, 15, chunks=(1,), allowed_token_ids=tuple(range(0, 250, 2)))),
        Arrival(9, request(rng, 500, 14, chunks=(60, 33), repetition_penalty=1.2)),
        Arrival(15, request(rng, 64, 5, chunks=(64,))),
    ]


def unstated() -> list[Arrival]:
    """The same requests without stated chunk sizes, so the scheduler chooses lanes and lengths."""
    return [Arrival(one.tick, alone(one.request)) for one in mix()]


@dataclass(frozen=True)
class Outcome:
    """What each request got: its tokens, and the logits they were chosen from."""

    tokens: dict[int, tuple[int, ...]]
    logits: dict[int, np.ndarray]
    ticks: int


# Ticks have a price and slices none, so every prompt that does not end in its first tick runs in slices.
FREE_SLICES = LinearTimeModel(tokens=1e-3, of_slices=LinearTimeModel())


def serve(
    executor: MeshExecutor, tokenizer: Tokenizer, arrivals: list[Arrival], model: TimeModel | None = None
) -> Outcome:
    """Serve requests that come at given steps; `model` decides between ticks and slices."""
    logits: dict[int, list[np.ndarray]] = {}

    def keep(number: int, result: TokenResult) -> None:
        logits.setdefault(number, []).append(result.logits)

    clock = itertools.count().__next__
    engine: Engine = OfflineEngine(executor, tokenizer, clock, keep)
    if model is not None:
        scheduler = scheduler_for(executor, OFFLINE, model)
        engine = Engine(executor, scheduler, model, clock, text_outputs(tokenizer), on_result=keep)
    waiting, tokens, tick = list(arrivals), {}, 0
    while waiting or engine.busy:
        while waiting and waiting[0].tick <= tick:
            engine.add(waiting.pop(0).request)
        for number, event in engine.step():
            if isinstance(event, Completed):
                tokens[number] = event.completion.token_ids
        tick += 1
        assert tick < 5000, "the engine makes no progress"
    assert sum(engine.load.free_pages) == executor.sizes.pages * executor.config.mesh.kvp
    return Outcome(tokens, {n: np.stack(rows[-len(tokens[n]) :]) for n, rows in logits.items()}, tick)


@functools.cache
def one_device() -> MeshExecutor:
    return small_executor(MODEL, pool_tokens=6144, buckets=Buckets(decode=(8,), prefill=(1024,), chunks=8, slices=()))


@functools.cache
def expected(tokenizer: Tokenizer) -> Outcome:
    return serve(one_device(), tokenizer, [Arrival(0, alone(a.request)) for a in mix()])


@functools.cache
def in_one_tick() -> list[sliced.Request]:
    """What one device gives to each request of `sliced.mixed`, its prompt in one tick."""
    return [sliced.alone(one_device(), one) for one in sliced.mixed(one_device(), MODEL["vocab_size"])]


def alone(one: GenerationRequest) -> GenerationRequest:
    """The same request in one chunk."""
    return GenerationRequest(one.prompt_ids, one.sampling)


def agree(got: Outcome, wanted: Outcome) -> None:
    assert got.tokens == wanted.tokens
    for number, logits in wanted.logits.items():
        np.testing.assert_allclose(got.logits[number], logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("tp", "spp", "kvp"), LAYOUTS, ids=lambda n: str(n))
def test_every_layout_gives_what_one_device_gives(tp: int, spp: int, kvp: int, byte_tokenizer: Tokenizer) -> None:
    executor = small_executor(
        MODEL,
        tp=tp,
        spp=spp,
        kvp=kvp,
        tokens_per_group=PER_GROUP[kvp],
        pool_tokens=4096,
        # with shared rows, tiles of one size: each size is compiled into every program
        buckets=Buckets(decode=(8,), prefill=(64,), slices=(48,), chunks=4, mixed_only=True),
        shared_buckets=Buckets(decode=(4,), prefill=(64,), slices=(32,), chunks=2, mixed_only=True),
    )
    agree(serve(executor, byte_tokenizer, mix()), expected(byte_tokenizer))
    agree(serve(executor, byte_tokenizer, unstated(), FREE_SLICES), expected(byte_tokenizer))
    for got, wanted in zip(sliced.serve_mixed(executor, MODEL["vocab_size"], seed=tp), in_one_tick(), strict=True):
        sliced.agree(got, wanted)


@st.composite
def deployments(draw: st.DrawFn) -> dict[str, Any]:
    tp, spp, kvp = draw(st.sampled_from([layout for layout in LAYOUTS if layout != (1, 1, 1)]))
    page = draw(st.sampled_from([1, 8, 32]))
    return dict(
        tp=tp,
        spp=spp,
        kvp=kvp,
        page_size=page,
        tokens_per_group=None if kvp == 1 else draw(st.integers(3, 8)) * 32,
        pool_tokens=2048,
        max_context=draw(st.sampled_from([300, 500])) if kvp == 1 else None,
        buckets=Buckets(
            slices=(),
            decode=(draw(st.integers(2, 8)),),
            prefill=(draw(st.integers(20, 100)),),
            chunks=3,
            mixed_only=True,
        ),
        shared_buckets=Buckets(
            slices=(),
            decode=(draw(st.integers(1, 3)),),
            prefill=(draw(st.integers(10, 60)),),
            chunks=2,
            mixed_only=True,
        ),
    )


@settings(max_examples=5, derandomize=True)
@given(deployments(), st.integers(0, 2**32))
def test_random_deployments_and_arrivals(byte_tokenizer: Tokenizer, deployment: dict[str, Any], seed: int) -> None:
    executor = small_executor(MODEL, **deployment)
    rng = np.random.default_rng(seed)
    arrivals, tick = [], 0
    largest = deployment["buckets"].prefill[-1]
    for _ in range(int(rng.integers(3, 9))):
        tick += int(rng.integers(0, 6))
        tokens = int(rng.integers(1, 20))
        prompt = int(rng.integers(1, min(executor.sizes.context, 900) - tokens))
        chunks = tuple(rng.integers(1, largest + 1, 3).tolist()) if rng.random() < 0.7 else None
        penalty = float(rng.choice([0, 0.3]))
        arrivals.append(Arrival(tick, request(rng, prompt, tokens, chunks, presence_penalty=penalty)))
    wanted = serve(one_device(), byte_tokenizer, [Arrival(0, alone(a.request)) for a in arrivals])
    agree(serve(executor, byte_tokenizer, arrivals), wanted)


@pytest.mark.parametrize("spp", [1, 2, 4, 8])
def test_chunks_of_a_lone_prompt_leave_one_a_tick(spp: int, byte_tokenizer: Tokenizer) -> None:
    executor = small_executor(
        MODEL, spp=spp, buckets=Buckets(decode=(1,), prefill=(16,), chunks=1, mixed_only=True, slices=())
    )
    for chunks in (1, 5, 12):
        lone = request(np.random.default_rng(1), 16 * chunks, 1)
        assert serve(executor, byte_tokenizer, [Arrival(0, lone)]).ticks == chunks + spp - 1


@pytest.mark.usefixtures("for_many_ticks")
def test_nothing_compiles_in_a_long_random_schedule(byte_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """An hour at a plan a second on one device, and two minutes of it on eight that share two cores.

    Half of the requests state their chunks. The others run in slices where these do better.
    """
    one = small_executor(buckets=Buckets(decode=(8,), prefill=(64,), chunks=4, slices=(16, 64)))
    eight = small_executor(
        MODEL,
        tp=2,
        spp=2,
        kvp=2,
        tokens_per_group=512,
        buckets=Buckets(decode=(8,), prefill=(64,), chunks=4, mixed_only=True, slices=(64,)),
        shared_buckets=Buckets(decode=(2,), prefill=(64,), chunks=1, mixed_only=True, slices=()),
    )
    compiled: list[str] = []
    runs: list[MeshExecutor] = []
    submit = MeshExecutor.submit_slice

    def count(event: str, *_: object, **__: object) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    def counted(self: MeshExecutor, part: Slice) -> Any:
        runs.append(self)
        return submit(self, part)

    monkeypatch.setattr(MeshExecutor, "submit_slice", counted)
    rng = np.random.default_rng(3)
    jax.monitoring.register_event_duration_secs_listener(count)
    try:
        for runtime, plans in ((one, 3600), (eight, 120)):
            engine = OfflineEngine(runtime, byte_tokenizer, itertools.count().__next__)
            for _ in range(plans):
                if rng.random() < 0.1:
                    chunks = (int(rng.integers(1, 64)),) if rng.random() < 0.5 else None
                    engine.add(request(rng, int(rng.integers(1, 700)), int(rng.integers(1, 30)), chunks))
                engine.step()
    finally:
        jax.monitoring.clear_event_listeners()
    assert compiled == []
    assert runs.count(one) > 20 and runs.count(eight) > 5
