"""How a tick is shared where its decodes alone miss their TPOT target: `python -m research.shares`.

Every figure is simulated: closed loops of equal requests on one CPU device with the default shapes. Its times are those
that a server of the 26M model learnt on a 2-core machine with AVX-512.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from unittest.mock import patch

from medha_jax.config import Buckets, MeshConfig, RuntimeConfig, SchedulerConfig
from medha_jax.results.metrics import ttft
from medha_jax.scheduler import tick_targets
from medha_jax.scheduler.time_model import LinearTimeModel
from medha_jax.simulate.deployments import Deployment, slice_lengths
from medha_jax.simulate.simulation import simulate
from medha_jax.simulate.summaries import percentiles, tpots
from medha_jax.workload import WorkloadRequest

LAYERS, CONTEXT, POOL = 8, 16_384, 262_144
TICKS = LinearTimeModel(
    fixed=7.9e-3,
    tokens=3.7e-4,
    attention=1.9e-7,
    rows=3.7e-4,
    of_slices=LinearTimeModel(fixed=2.9e-3, tokens=3.1e-5, attention=1.2e-8, context=1.3e-6, rows=2.1e-3),
)
SHARES = (1.0, 1.5, 2.0, 3.0, 8.0)
MIXES = ((128, 128), (1024, 128), (128, 512), (4096, 32))
TARGETS_MS = (50, 20)


@dataclass(frozen=True)
class Shared:
    """What a closed loop gets: output tokens a second, and medians in seconds."""

    rate: float
    ttft: float
    tpot: float


def machine(batch: int) -> Deployment:
    """The CPU, with decode shapes up to a batch."""
    buckets = Buckets(decode=tuple(size for size in (1, 8, 32, 64) if size <= batch))
    config = RuntimeConfig(mesh=MeshConfig(buckets=buckets), slots=batch, pool_tokens=POOL, max_context=CONTEXT)
    lengths = slice_lengths(LAYERS, "cpu")
    return Deployment("cpu", "26M parameters on two cores", TICKS, config, CONTEXT, slice_lengths=lengths)


def shared(batch: int, prompt: int, output: int, target_ms: float, share: float) -> Shared:
    """A closed loop in which a tick takes up to `share` times its decodes' time if they alone miss their target."""
    requests = [WorkloadRequest(number, 0.0, "", prompt, output) for number in range(4 * batch)]
    settings = SchedulerConfig(tpot_target_s=target_ms / 1000)
    with patch.object(tick_targets, "MISSED_SHARE", share):
        outcome = simulate(machine(batch), settings, requests, most=batch)
    first = percentiles([found for one in outcome.records if (found := ttft(one)) is not None], (50,))
    each = percentiles(tpots(outcome.records), (50,))
    assert first is not None and each is not None
    return Shared(len(requests) * output / outcome.end, first[0], each[0])


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table: a row for each batch, mix and target; a column for each share."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 32, 64])
    given = parser.parse_args(arguments)
    print(f"| at a time | prompt/output | target | {' | '.join(f'x {share:g}' for share in SHARES)} |")
    print("|---" * (3 + len(SHARES)) + "|")
    for batch, (prompt, output), target in itertools.product(given.batches, MIXES, TARGETS_MS):
        cells = []
        for share in SHARES:
            found = shared(batch, prompt, output, target, share)
            cells.append(f"{found.rate:.0f}, {found.ttft:.2f} s, {1000 * found.tpot:.0f} ms")
        print(f"| {batch} | {prompt}/{output} | {target} ms | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
