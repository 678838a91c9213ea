"""Preset `isolated`: a cost model fitted to the isolated TTFTs of chunk 2,048, which then predicts those of chunk 512.

The measured system sends a chunk through both stages before the next one begins: TTFT grows by the same time with every
chunk, and one chunk alone takes hardly longer. So eight devices work at any time, and a chunk takes its time on a mesh
of `tp=8`. Four numbers are fitted to these measurements and nothing else: the shares of the peak for attention and for
matrix products, the host's time per layer, and a constant (client and network).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from medha_jax.config import Buckets, MeshConfig
from medha_jax.simulate.cost import CostModel
from medha_jax.simulate.deployments import Deployment, deploy
from medha_jax.simulate.hardware import Hardware, load_hardware
from medha_jax.simulate.named_models import load_model
from research.reproduce.published import KI, TPOT_2048, TTFT_512, TTFT_2048
from research.reproduce.report import Comparison, PresetRun, Reproduction

SIZES = (64, 128, 256, 512, 768, 1024, 1280, 1536, 1792, 2048)
FITTED = ("attention", "matmul", "launch_s")
START = {"attention": 0.6, "matmul": 0.6, "launch_s": 1e-3, "constant": 0.02}
SWEEPS = 60
MODEL = "llama3-8b"
TILE = 64  # queries of a thread block


@dataclass(frozen=True)
class Calibrated:
    """The measured system. `constant` is the seconds that every request takes in addition to its chunks."""

    cost: CostModel
    constant: float

    def machine(self, chunk: int, slots: int = 128) -> Deployment:
        """The system with chunks of at most `chunk` tokens."""
        mesh = dataclasses.replace(self.cost.sizes.mesh, buckets=_buckets(chunk))
        sizes = dataclasses.replace(self.cost.sizes, mesh=mesh)
        name = f"Sarathi-Serve, chunks of {chunk:,}"
        return deploy(dataclasses.replace(self.cost, sizes=sizes), 2**20 + 2**13, slots, MODEL, name)

    def ttft(self, prompt: int, chunk: int) -> float:
        """Seconds to the first token of a prompt alone."""
        return self.constant + self.machine(chunk).isolated_prefill(prompt)


def fitted() -> Calibrated:
    """The cost model of 8B on eight A100, with the coefficients that fit the TTFTs of chunk 2,048 best."""
    hardware = load_hardware("a100-80")
    mesh = MeshConfig(tp=8, page_size=64, buckets=_buckets(2048), hardware=hardware.name)
    plain = CostModel.of(load_model(MODEL), mesh, hardware)

    def system(values: Mapping[str, float]) -> Calibrated:
        changed = {name: values[name] for name in FITTED}
        coefficients = dataclasses.replace(hardware.coefficients, **changed)
        return Calibrated(dataclasses.replace(plain, coefficients=coefficients), values["constant"])

    def error(values: Mapping[str, float]) -> float:
        found = system(values)
        machine = found.machine(2048)
        logs = [math.log((found.constant + machine.isolated_prefill(n)) / ttft) for n, ttft in TTFT_2048.items()]
        return float(np.mean(np.square(logs)))

    return system(_descend(error, START))


def with_fitted_rates(hardware: Hardware) -> Hardware:
    """Devices with the fitted shares of their peaks in attention and matrix products; nothing else changes."""
    rates = fitted().cost.used
    used = dataclasses.replace(hardware.coefficients, attention=rates.attention, matmul=rates.matmul)
    return dataclasses.replace(hardware, coefficients=used)


def with_blocks(system: Calibrated) -> Calibrated:
    """The system with attention kernels that do not split the context of a chunk."""
    return dataclasses.replace(system, cost=dataclasses.replace(system.cost, query_tile=TILE))


def isolated(run: PresetRun) -> Reproduction:
    """The preset."""
    system = fitted()
    used, tiled = system.cost.used, with_blocks(system)
    rows = [
        Comparison(f"TTFT, chunk 2,048, {kilo(n)}", system.ttft(n, 2048), ttft, "s", "fitted")
        for n, ttft in TTFT_2048.items()
        if n in TTFT_512
    ]
    rows += [Comparison(f"TTFT, chunk 512, {kilo(n)}", system.ttft(n, 512), ttft, "s") for n, ttft in TTFT_512.items()]
    rows += [
        Comparison(f"TTFT, chunk 512, {kilo(n)}, blocks of {TILE} queries", tiled.ttft(n, 512), ttft, "s")
        for n, ttft in TTFT_512.items()
        if n >= 128 * KI
    ]
    rows += [Comparison(f"TPOT, {kilo(n)}", _tpot(system, n), tpot, "s") for n, tpot in TPOT_2048.items()]
    return Reproduction(
        name="isolated",
        title="Isolated requests of the measured system",
        setting="Llama-3 8B, 16 A100 as TP8 x PP2, Sarathi-Serve; fitted to the 25 TTFTs of chunk 2,048 alone",
        rows=tuple(rows),
        notes=(
            f"fitted: attention {used.attention:.2f} and matrix products {used.matmul:.2f} of the peak, "
            f"{1000 * 32 * used.launch_s:.0f} ms of the host for a chunk, {1000 * system.constant:.0f} ms a request",
            f"blocks of {TILE} queries: attention kernels that do not split the context give each block of queries and "
            "head to one core, so 512 queries of 4 heads use 32 of 108. With blocks of 128, chunks of 2,048 would need "
            "more than the peak rate; blocks of 64 fill the cores.",
            "chunk 512 up to 64K comes out too slow: the host's time for a chunk is fitted to chunks of 2,048, which "
            "cannot tell it from that of the devices. Beyond, the kernels are the difference.",
            "TPOT is not predicted: short contexts run as captured graphs without the host's time, and the decode "
            "kernel reads long contexts at a small part of the memory's rate. Neither shows in a TTFT.",
        ),
    )


def _tpot(system: Calibrated, context: int) -> float:
    machine = system.machine(2048)
    ticks = machine.model.many(*(np.array([value], float) for value in (1, 0, context, 1)))
    return float(ticks[0])


def _buckets(chunk: int) -> Buckets:
    return Buckets(decode=(1, 8, 32, 128), prefill=tuple(size for size in SIZES if size <= chunk), chunks=32, slices=())


def _descend(error: Callable[[Mapping[str, float]], float], start: Mapping[str, float]) -> dict[str, float]:
    """Positive numbers with a small error: coordinate descent with shrinking steps."""
    best, least, step = dict(start), error(start), 0.3
    for _ in range(SWEEPS):
        before = least
        for name in best:
            for factor in (1 + step, 1 / (1 + step)):
                tried = {**best, name: best[name] * factor}
                if tried[name] <= 1 and (found := error(tried)) < least:
                    best, least = tried, found
        if least == before:
            step /= 2
        if step < 1e-3:
            break
    return best


def kilo(tokens: int) -> str:
    """Tokens as text: 512, 8K, 1M."""
    if tokens < KI:
        return f"{tokens} tokens"
    return f"{tokens // KI}K tokens" if tokens < KI * KI else f"{tokens // KI // KI}M tokens"
