"""Prompts that run some layers at a time give what whole ticks give, whatever runs in between."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medha_jax.attention import GpuTarget
from medha_jax.config import Buckets, MeshConfig, RuntimeConfig
from medha_jax.inspection.hlo import COPIES, instructions, making
from medha_jax.mesh import build_mesh
from medha_jax.models import is_layer_matrix
from medha_jax.plan import Admission, Chunk, SamplingParams, Slice, StepPlan
from medha_jax.runtime import MeshExecutor
from medha_jax.runtime.packing import EMPTY
from medha_jax.runtime.programs import Programs
from medha_jax.specs.buckets import UnknownShapeError
from medha_jax.specs.layout import Layout
from medha_jax.specs.model import Architecture
from tests.runtime.sliced import Driver, Request, agree, twin
from tests.small import CONFIG, small_executor

MODEL: dict[str, Any] = {"num_hidden_layers": 5}
PAGES = 12  # of a request
SHAPES: dict[str, Any] = dict(
    buckets=Buckets(decode=(4,), prefill=(128,), slices=(16, 48), chunks=2, mixed_only=True), shared_buckets=None
)


@functools.cache
def runtime(spp: int = 1) -> MeshExecutor:
    """A runtime of five layers; of five and one of zeros with two stages."""
    return small_executor(MODEL, spp=spp, **SHAPES)


def request(slot: int, prompt: int, seed: int = 0, **sampling: Any) -> Request:
    """A random prompt, with pages of its own."""
    rng = np.random.default_rng((seed, slot))
    pages = tuple(rng.permutation(PAGES).astype(int) + slot * PAGES)
    stated = SamplingParams(temperature=0, **sampling)
    return Request(slot, tuple(rng.integers(0, 256, prompt).tolist()), (0,), (tuple(map(int, pages)),), stated)


def whole(executor: MeshExecutor, one: Request, tokens: int = 3) -> Request:
    """The request alone, its prompt in one tick."""
    driver, alone = Driver(executor), twin(one)
    driver.admit(alone)
    driver.prefill(alone, 0)
    for _ in range(tokens - 1):
        driver.decode([alone])
    return alone


def kv(executor: MeshExecutor, one: Request) -> np.ndarray:
    """Keys and values of a request's prompt: `[layers, 2, kv_heads, tokens, head_dim]`."""
    pool = np.asarray(executor._state.pool)[:, :, list(one.pages[0])]
    layers, two, _, heads, _, width = pool.shape
    return pool.transpose(0, 1, 3, 2, 4, 5).reshape(layers, two, heads, -1, width)[:, :, :, : len(one.prompt)]


@pytest.mark.parametrize("seed", range(3))
def test_a_prompt_may_pause_at_any_layer_and_others_run_meanwhile(seed: int) -> None:
    """Its KV is bit for bit that of the same chunks in one slice each; tokens and logits are those of whole ticks."""
    executor, rng = runtime(), np.random.default_rng(seed)
    long, other, short = request(0, 100, seed), request(1, 40, seed), request(2, 9, seed)
    wanted = [whole(executor, one, 8) for one in (long, other)]
    stored = kv(executor, long)
    cuts = [0, *(np.cumsum(rng.integers(10, 25, 4)) + 13).tolist()]
    chunks = [long.chunk(executor, start, past - start) for start, past in itertools.pairwise(cuts)]

    driver = Driver(executor)
    driver.admit(long)
    for chunk in chunks:
        driver.enter(chunk)
        assert driver.slice(5)
    uncut = kv(executor, long)[..., : cuts[-1], :]
    np.testing.assert_allclose(uncut, stored[..., : cuts[-1], :], rtol=0, atol=1e-4)

    executor.renew()
    driver = Driver(executor)
    for one in (long, other, short):
        driver.admit(one)
    driver.prefill(other, 0)
    for number, chunk in enumerate(chunks):
        driver.enter(chunk)
        while not driver.slice(int(rng.integers(1, 4))):
            if number == 0 and not short.tokens:
                driver.prefill(short, 0)
            elif len(other.tokens) < 8:
                driver.decode([other])
    np.testing.assert_array_equal(kv(executor, long)[..., : cuts[-1], :], uncut)
    driver.prefill(long, cuts[-1])
    while len(long.tokens) < 8:
        driver.decode([long])
    while len(other.tokens) < 8:
        driver.decode([other])
    agree(long, wanted[0])
    agree(other, wanted[1])


@pytest.mark.parametrize("spp", [1, 2, 4, 8])
def test_chunks_of_a_lone_prompt_fill_the_pipeline(spp: int) -> None:
    """N chunks are done after N + spp - 1 rounds."""
    shapes = dict(SHAPES, buckets=Buckets(decode=(1,), prefill=(16,), slices=(16,), chunks=1, mixed_only=True))
    executor = small_executor({"num_hidden_layers": 9}, spp=spp, **shapes)
    assert executor.slice_lengths == tuple(range(1, -(-9 // spp) + 1))
    lone = request(0, 7 * 16 + 5)
    wanted = whole_in_chunks(executor, lone)
    driver = Driver(executor)
    driver.admit(lone)
    for start in range(0, 7 * 16, 16):
        driver.enter(lone.chunk(executor, start, 16))
        while not driver.slice(2):
            pass
    while driver.busy:
        driver.slice(1)
    assert driver.rounds == 7 + spp - 1
    driver.prefill(lone, 7 * 16)
    agree(lone, wanted)


def whole_in_chunks(executor: MeshExecutor, one: Request) -> Request:
    """The request alone, its prompt in ticks of 16 tokens."""
    driver, alone = Driver(executor), twin(one)
    driver.admit(alone)
    last = len(one.prompt) - len(one.prompt) % 16
    for start in range(0, last, 16):
        driver.tick([alone.chunk(executor, start, 16)])
    driver.prefill(alone, last)
    return alone


@pytest.mark.parametrize("spp", [1, 2])
@pytest.mark.parametrize("dropped_after", range(1, 7))
def test_a_chunk_dropped_at_any_slice_leaves_its_pages_to_others(spp: int, dropped_after: int) -> None:
    """Its pages go to another request at once, while chunks of a third one go on in the same slices."""
    executor = runtime(spp)
    gone, kept, heir = request(0, 90), request(1, 60), request(2, 50)
    heir.pages = (tuple(reversed(gone.pages[0])),)
    wanted_kept, wanted_heir = whole(executor, kept), whole(executor, heir)
    stored = kv(executor, heir)
    driver = Driver(executor)
    for one in (gone, kept):
        driver.admit(one)
    # on two stages the first two chunks are in flight together, then the last two
    waiting = [gone.chunk(executor, 0, 40), kept.chunk(executor, 0, 30), kept.chunk(executor, 30, 20)]
    slices = 0
    while waiting or driver.busy:
        if not driver.at:
            driver.enter(*waiting[:1])
            waiting = waiting[1:]
        driver.slice(1)
        slices += 1
        if slices == dropped_after:
            driver.drop(gone.slot)
            driver.admit(heir)
            driver.prefill(heir, 0)
            np.testing.assert_array_equal(kv(executor, heir), stored)
    driver.prefill(kept, 50)
    for _ in range(2):
        driver.decode([heir, kept])
    np.testing.assert_array_equal(kv(executor, heir), stored)
    agree(kept, wanted_kept)
    agree(heir, wanted_heir)


@pytest.mark.parametrize("spp", [1, 2])
def test_penalties_count_the_prompt_of_slices_once(spp: int) -> None:
    executor = runtime(spp)

    def counts(in_slices: bool) -> tuple[list[int], np.ndarray, np.ndarray]:
        one = request(0, 60, repetition_penalty=1.5, frequency_penalty=0.7)
        driver = Driver(executor)
        # tokens from position 40 on were generated before and are computed again
        executor.admit(Admission(0, one.sampling, 40))
        if in_slices:
            driver.enter(one.chunk(executor, 0, 48))
            while driver.busy:
                driver.slice(1)
        else:
            driver.tick([one.chunk(executor, 0, 48)])
        slots = executor._state.slots
        noted = np.asarray(slots.generated)[0, 0], np.asarray(slots.prompted)[0, 0]
        driver.prefill(one, 48)
        for _ in range(3):
            driver.decode([one])
        return one.tokens, *noted

    tokens, generated, prompted = counts(True)
    assert generated.sum() == 8 and prompted.sum() > 30
    for mine, theirs in zip((tokens, generated, prompted), counts(False), strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize(("tp", "spp"), [(1, 1), (2, 2)])
def test_slices_of_stated_lengths_give_the_same(monkeypatch: pytest.MonkeyPatch, tp: int, spp: int) -> None:
    """The programs that accelerators run, one for each number of layers, here on CPUs."""
    one = request(0, 60)
    wanted = whole(runtime(), one)
    monkeypatch.setattr(Programs, "unrolled", True)
    shapes = dict(SHAPES, buckets=Buckets(decode=(1,), prefill=(16,), slices=(48,), chunks=1, mixed_only=True))
    executor = small_executor(MODEL, tp=tp, spp=spp, **shapes)
    assert executor.slice_lengths == ((1, 2, 5) if spp == 1 else (1, 3))
    for lengths in [(1, 2, 2), (2, 1, 2), (5,)] if spp == 1 else [(1, 1, 1), (3,)]:
        driver, mine = Driver(executor), twin(one)
        driver.admit(mine)
        driver.enter(mine.chunk(executor, 0, 47))
        while driver.busy:
            for length in lengths:
                driver.slice(length)
        driver.prefill(mine, 47)
        for _ in range(2):
            driver.decode([mine])
        agree(mine, wanted)


@pytest.mark.parametrize("spp", [1, 2])
def test_no_constant_array_is_hidden_in_a_program(spp: int) -> None:
    """XLA for several GPUs crashed on an empty one, in every slice."""
    programs = runtime(spp).programs
    for shape in (*programs.buckets, *programs.slices):
        assert programs.trace(shape).jaxpr.consts == [], shape


@functools.cache
def alone(spp: int, slot: int, prompt: int, seed: int) -> Request:
    return whole(runtime(spp), request(slot, prompt, seed))


@settings(max_examples=50, derandomize=True)
@given(st.sampled_from([1, 2]), st.data())
def test_any_plan_of_slices_ticks_and_drops_gives_the_same_tokens(spp: int, data: st.DataObject) -> None:
    """Prompts come in random chunks and lengths; some are dropped at any slice and begin again on other pages."""
    executor, driver = runtime(spp), Driver(runtime(spp))
    sizes = data.draw(st.lists(st.integers(4, 100), min_size=2, max_size=3), label="prompts")
    requests = [request(slot, size, slot) for slot, size in enumerate(sizes)]
    wanted = [alone(spp, slot, size, slot) for slot, size in enumerate(sizes)]
    spare = [tuple(range(n * PAGES, (n + 1) * PAGES)) for n in range(len(requests), 12)]
    fed = [0] * len(requests)  # tokens that entered
    for one in requests:
        driver.admit(one)

    def begin() -> None:
        ready = [n for n, one in enumerate(requests) if not one.tokens and fed[n] < len(one.prompt) - 2]
        chosen = data.draw(st.sampled_from([None, *ready]), label="enters") if ready else None
        if chosen is not None:
            most = min(48, len(requests[chosen].prompt) - 1 - fed[chosen])
            length = data.draw(st.integers(2, most), label="tokens")
            driver.enter(requests[chosen].chunk(executor, fed[chosen], length))
            fed[chosen] += length

    def tick() -> None:
        in_flight = {chunk.slot for plan in driver.held for chunk in plan.chunks}
        ready = [n for n in range(len(requests)) if n not in in_flight and len(requests[n].tokens) < 3]
        if ready:
            chosen = requests[data.draw(st.sampled_from(ready), label="ticks")]
            if chosen.tokens:
                driver.decode([chosen])
            else:
                driver.prefill(chosen, fed[chosen.slot])

    def drop() -> None:
        in_flight = sorted({chunk.slot for plan in driver.held for chunk in plan.chunks})
        if in_flight and spare:
            chosen = data.draw(st.sampled_from(in_flight), label="drops")
            driver.drop(chosen)
            requests[chosen].pages, fed[chosen] = (spare.pop(),), 0
            driver.admit(requests[chosen])

    for _ in range(data.draw(st.integers(5, 25), label="steps")):
        action = data.draw(st.sampled_from(["slice", "slice", "tick", "drop"]), label="action")
        if action == "tick":
            tick()
        elif action == "drop":
            drop()
        else:
            if not driver.at:
                begin()
            if driver.busy:
                driver.slice(data.draw(st.integers(1, 5), label="layers"))
    while driver.busy:
        driver.slice(2)
    for number, one in enumerate(requests):
        if not one.tokens:
            driver.prefill(one, fed[number])
        while len(one.tokens) < 3:
            driver.decode([one])
        agree(one, wanted[number])


@pytest.mark.parametrize("spp", [1, 2])
def test_neither_the_pool_nor_the_weights_are_copied(spp: int) -> None:
    executor = runtime(spp)
    pool = executor.programs.state_shapes.pool
    elements = pool.size // spp
    shapes = executor.programs.parameter_shapes.items()
    matrices = {(1, *array.shape[1:]) for name, array in shapes if is_layer_matrix(name)}
    for shape in executor.executables.shapes:
        compiled = executor.executables.compiled(shape)
        memory, text = compiled.memory_analysis(), instructions(compiled.as_text())
        assert memory.alias_size_in_bytes >= elements * pool.dtype.itemsize
        assert memory.temp_size_in_bytes < elements * pool.dtype.itemsize
        assert making(text, COPIES, elements) == (), shape
        made = {array.dims for one in text if one.opcode == "dynamic-slice" for array in one.shapes}
        assert made and not made & matrices, shape


def test_nothing_is_compiled_by_slices() -> None:
    compiled: list[str] = []

    def count(event: str, *_: object, **__: object) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    driver, rng, one = Driver(runtime()), np.random.default_rng(0), request(0, 100)
    jax.clear_caches()
    jax.monitoring.register_event_duration_secs_listener(count)
    try:
        driver.admit(one)
        for _ in range(20):
            driver.enter(one.chunk(driver.executor, 0, int(rng.integers(2, 49))))
            while not driver.slice(int(rng.integers(1, 6))):
                driver.tick([])
    finally:
        jax.monitoring.clear_event_listeners()
    assert compiled == []


@pytest.mark.parametrize(
    ("chunks", "first", "past", "message"),
    [
        ([49], 0, 1, "a slice of 49 tokens is beyond the compiled ones"),
        ([5, 5], 0, 1, "for each stage at most one"),
        ([1], 0, 1, "chunks of at least two tokens"),
        ([5], 0, 6, "a slice of layers 0 to 6; a stage has 5"),
        ([5], 3, 3, "a slice of layers 3 to 3"),
        ([], 0, 1, "a slice has chunks"),
    ],
)
def test_what_no_shape_holds_is_refused_and_nothing_runs(
    chunks: list[int], first: int, past: int, message: str
) -> None:
    executor = runtime()
    plan = StepPlan(tuple(Chunk(slot, 0, n, (1,) * n, False, 0, (slot,)) for slot, n in enumerate(chunks)))
    with pytest.raises(UnknownShapeError, match=message):
        executor.submit_slice(Slice((plan,), first, past))
    assert executor.usable()


def test_after_a_lost_state_slices_begin_again() -> None:
    executor = runtime()
    one = request(0, 30)
    wanted = whole(executor, one, 1)
    driver = Driver(executor)
    driver.admit(one)
    driver.enter(one.chunk(executor, 0, 20))
    driver.slice(2)
    jax.tree.leaves(executor._state.held)[0].delete()
    assert not executor.usable()
    executor.renew()
    assert executor.usable() and not np.asarray(executor._state.held).any()
    driver = Driver(executor)
    driver.admit(one)
    driver.enter(one.chunk(executor, 0, 20))
    while driver.busy:
        driver.slice(2)
    driver.prefill(one, 20)
    agree(one, wanted)
    assert driver.held == [EMPTY]


@pytest.mark.parametrize(
    ("layers", "spp", "lengths"), [(80, 4, (1, 2, 5, 20)), (32, 1, (1, 2, 8, 32)), (4, 1, (1, 4)), (9, 4, (1, 3))]
)
def test_accelerators_have_a_program_for_a_few_lengths(layers: int, spp: int, lengths: tuple[int, ...]) -> None:
    """They are counted for a GPU that is not there; CPUs have one program for all lengths."""
    arch = Architecture.from_config({**CONFIG, "num_hidden_layers": layers})
    mesh = MeshConfig(spp=spp, page_size=16, buckets=SHAPES["buckets"])
    config, dtype = RuntimeConfig(mesh=mesh, slots=4), jnp.dtype("float32")
    devices = build_mesh(Layout(spp=spp))
    gpu = Programs(config, arch, dtype, devices, GpuTarget("NVIDIA H200", 90, 132))
    assert gpu.slice_lengths == lengths
    assert [shape.length for shape in gpu.slices] == [*lengths, *lengths]
    assert str(gpu.slices[1]) == f"slice 0+16 of {lengths[1]} layers"
    cpu = Programs(config, arch, dtype, devices)
    assert cpu.slice_lengths == tuple(range(1, lengths[-1] + 1))
    assert [str(shape) for shape in cpu.slices] == ["slice 0+16", "slice 0+48"]
