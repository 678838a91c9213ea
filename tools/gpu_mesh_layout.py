"""One layout of several devices, in a process of its own: right results first, then speed.

`tools.gpu_mesh_check` runs `python -m tools.gpu_mesh_layout FOLDER TP SPP KVP`, and ends it when its time is over.
Each finding is a line of JSON on standard output, as soon as it is there.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.gpu.counts import LLAMA_3_8B
from medha_jax.checkpoints import random_parameters
from medha_jax.config import Buckets, MeshConfig, RuntimeConfig
from medha_jax.engine import Completed, GenerationRequest, OfflineEngine
from medha_jax.mesh import build_mesh, parameter_sharding, request_cpu_devices
from medha_jax.models import LAYERS, ParameterSpec, parameter_specs
from medha_jax.plan import SamplingParams, TokenResult
from medha_jax.runtime import MeshExecutor
from medha_jax.runtime.parameter_placement import place_parameters
from medha_jax.specs.layout import Layout, check_layout
from medha_jax.specs.model import Architecture
from medha_jax.text import Tokenizer
from tools.gpu_loads import LARGEST_PAGE, LoadSizes, decode_times, prefill_seconds, slice_seconds

VIRTUAL = 8  # devices of a machine without a GPU
REFERENCE, SETTINGS = "one_device.npz", "settings.json"
# a model small enough for any layout of eight devices, in float32: heads, KV heads and layers divide
CHECKED: dict[str, Any] = {
    **LLAMA_3_8B,
    **dict(vocab_size=2048, hidden_size=256, intermediate_size=512, num_hidden_layers=8, max_position_embeddings=8192),
    **dict(num_attention_heads=16, num_key_value_heads=8, head_dim=64),
}
TINY: dict[str, Any] = {
    **CHECKED,
    **dict(vocab_size=256, hidden_size=64, intermediate_size=96, num_attention_heads=8, head_dim=16),
}
NEAR = 1e-3  # logits of float32, whose sums differ in order
FEW_BYTES = 2**28  # of parameters
NEW_TOKENS = 12
LONGEST = 1200  # tokens of the checked prompts
HALVES_ROWS = 16  # from which on halves of the rows take turns, where that is checked


@dataclass(frozen=True)
class MeshCheck:
    """What is checked and timed on each layout.

    Args:
        checked: the model of the comparison with one device; None to leave it out.
        timed: the model whose speed is measured; None to leave it out.
    """

    checked: dict[str, Any] | None
    timed: dict[str, Any] | None
    dtype: str
    loads: LoadSizes


FULL = MeshCheck(CHECKED, LLAMA_3_8B, "bfloat16", LoadSizes(decodes=64, context=1024, chunk=4096, chunks=6, ticks=32))
SMALL = MeshCheck(TINY, TINY, "float32", LoadSizes(decodes=2, context=32, chunk=32, chunks=3, ticks=2))


def open_random(config: RuntimeConfig, model: dict[str, Any], dtype: str, scale: float = 1.0) -> MeshExecutor:
    """A runtime with random weights on the layout of `config`.

    A small model's are made on the host, with matrices of layers `scale` times as wide as usual, in less time than the
    devices need to compile that.

    Raises:
        LayoutError: the model cannot be divided over the layout.
    """
    arch, layout, kind = Architecture.from_config(model), Layout.of(config.mesh), jnp.dtype(dtype)
    check_layout(arch, layout)
    mesh, specs = build_mesh(layout), parameter_specs(arch, kind)
    if sum(spec.nbytes for spec in specs.values()) > FEW_BYTES:
        shardings = {name: parameter_sharding(mesh, spec.axes) for name, spec in specs.items()}
        found = random_parameters(arch, dtype, shardings, seed=0)
    else:
        found = {name: _on_host(number, spec, scale) for number, (name, spec) in enumerate(specs.items())}
    return MeshExecutor(config, arch, place_parameters(found, arch, layout, mesh), mesh, lambda line: None)


def _on_host(seed: int, spec: ParameterSpec, scale: float) -> Any:
    """Normally distributed entries of a matrix, ones of a norm."""
    if len(spec.shape) < 3 and "vocab" not in spec.axes:
        return np.ones(spec.shape, spec.dtype)
    width = 0.02 * (scale if spec.axes[0] == LAYERS else 1)
    return (width * np.random.default_rng(seed).standard_normal(spec.shape, np.float32)).astype(spec.dtype)


def can_halve(layout: Layout) -> bool:
    """Whether halves of the rows are tried, too: with tp alone, where nothing else costs time."""
    return layout.tp == layout.devices > 1


def generated(layout: Layout, model: dict[str, Any], halves: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Greedy tokens of several prompts on a layout, and the logits of each prompt's first token.

    On several groups the longest ones are spread over two or more. With `halves`, those of the rows take turns.
    """
    longest = LONGEST if model is not TINY else 150
    page = 64 if longest > 1000 else 16
    own = Buckets(decode=(8,), prefill=(longest // 4,), chunks=4, slices=(), mixed_only=True)
    mesh = MeshConfig(
        tp=layout.tp,
        spp=layout.spp,
        kvp=layout.kvp,
        page_size=page,
        tokens_per_group=-(-(longest + 64) // (2 * page)) * page if layout.kvp > 1 else None,
        overlap_rows=HALVES_ROWS if halves else None,
        buckets=own,
        shared_buckets=own if layout.kvp > 1 else None,
    )
    pool = 8 * (longest + 64) // page * page
    config = RuntimeConfig(
        mesh=mesh, max_context=longest + 64, pool_tokens=pool, slots=8, keep_logits=True, compilation_cache=None
    )
    executor = open_random(config, model, "float32", scale=8)
    rng, logits = np.random.default_rng(0), dict[int, list[np.ndarray]]()

    def keep(number: int, result: TokenResult) -> None:
        logits.setdefault(number, []).append(np.asarray(result.logits))

    engine = OfflineEngine(executor, Tokenizer.from_directory(config.model), time.perf_counter, keep)
    greedy = SamplingParams(temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True)
    lengths = (longest, longest * 3 // 4, 17, 5)
    prompts = [tuple(rng.integers(1, 250, length).tolist()) for length in lengths]
    numbers = [engine.add(GenerationRequest(prompt, greedy)) for prompt in prompts]
    found: dict[int, tuple[int, ...]] = {}
    while engine.busy:
        for number, event in engine.step():
            if isinstance(event, Completed):
                found[number] = event.completion.token_ids
    return np.array([found[n] for n in numbers]), np.stack([logits[n][-NEW_TOKENS] for n in numbers])


def compared(layout: Layout, check: MeshCheck, folder: Path) -> Iterator[dict[str, Any]]:
    """Results against those of one device, which this writes if it is one itself."""
    model = check.checked
    assert model is not None

    def exactly(halves: bool) -> tuple[np.ndarray, np.ndarray]:
        with jax.default_matmul_precision("highest"):
            return generated(layout, model, halves)

    tokens, logits = exactly(halves=False)
    if layout.devices == 1:
        np.savez(folder / REFERENCE, tokens=tokens, logits=logits)
        yield dict(passed=bool(np.isfinite(logits).all()), detail="what others are compared with")
        return
    if not (folder / REFERENCE).exists():
        yield dict(passed=False, detail="one device gave no results to compare with")
        return
    wanted = np.load(folder / REFERENCE)
    found = judged(tokens, logits, wanted["tokens"], wanted["logits"])
    if found["passed"] and can_halve(layout):
        found = judged(*exactly(halves=True), wanted["tokens"], wanted["logits"])
        found["detail"] += ", with halves that take turns"
    yield found


def judged(tokens: np.ndarray, logits: np.ndarray, wanted: np.ndarray, near: np.ndarray) -> dict[str, Any]:
    """Whether all requests have the wanted tokens and nearly the wanted logits."""
    same, off = int((tokens == wanted).all(1).sum()), float(np.abs(logits - near).max())
    limit = NEAR * float(np.abs(near).max())
    passed = same == len(tokens) and off <= limit
    return dict(passed=passed, detail=f"{same} of {len(tokens)} requests equal, logits within {off:.1e} ({limit:.1e})")


def timed(layout: Layout, check: MeshCheck) -> Iterator[dict[str, Any]]:
    """Milliseconds of a tick of decodes, of the host's part, of a tick with chunks, of slices, and with halves."""
    assert check.timed is not None
    loads = check.loads
    own = Buckets(decode=(loads.decodes,), prefill=(loads.chunk,), chunks=1, slices=(loads.chunk,))
    mesh = MeshConfig(
        tp=layout.tp,
        spp=layout.spp,
        kvp=layout.kvp,
        page_size=min(LARGEST_PAGE, loads.chunk),
        buckets=own,
        shared_buckets=None,
    )
    config = RuntimeConfig(
        mesh=mesh,
        slots=loads.decodes * layout.kvp,
        max_context=max(loads.chunk * loads.chunks, loads.context + 4 * loads.ticks),
        pool_tokens=loads.pool_tokens,
        compilation_cache=None,
    )
    executor = open_random(config, check.timed, check.dtype)
    seconds, host = decode_times(executor, loads)
    yield dict(decode_ms=seconds * 1e3, host_ms=host * 1e3)
    yield dict(prefill_ms=prefill_seconds(executor, loads) * 1e3)
    yield dict(slices_ms=slice_seconds(executor, loads, 1) * 1e3, layers=executor.slice_lengths[-1])
    if can_halve(layout):
        del executor  # its pool is as large as the next one's
        halved = replace(config, mesh=replace(mesh, overlap_rows=loads.chunk))
        yield dict(halves_ms=prefill_seconds(open_random(halved, check.timed, check.dtype), loads) * 1e3)


def run_layout(layout: Layout, check: MeshCheck, folder: Path, tell: Callable[[dict[str, Any]], Any]) -> None:
    """Check and time one layout. An error ends that part only, and is told."""
    parts: list[Callable[[], Iterator[dict[str, Any]]]] = []
    if check.checked is not None:
        parts.append(lambda: compared(layout, check, folder))
    if check.timed is not None:
        parts.append(lambda: timed(layout, check))
    for part in parts:
        try:
            for found in part():
                tell(found)
        except Exception as error:  # the other part may still work
            tell(dict(error=f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"))


def main() -> None:
    """Run one layout with the settings in the folder."""
    folder, sizes = Path(sys.argv[1]), [int(size) for size in sys.argv[2:]]
    stated = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    check = SMALL if stated["small"] else FULL
    if not stated["speed"]:
        check = replace(check, timed=None)
    request_cpu_devices(VIRTUAL)
    first = jax.devices()[0]
    print(json.dumps(dict(platform=first.platform, device=first.device_kind, devices=len(jax.devices()))), flush=True)
    if first.platform == "gpu" or stated["small"]:
        run_layout(Layout(*sizes), check, folder, lambda found: print(json.dumps(found), flush=True))


if __name__ == "__main__":
    main()
