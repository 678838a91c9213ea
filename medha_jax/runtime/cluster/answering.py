"""Which process sends each chunk's result."""

from __future__ import annotations

from functools import lru_cache

import jax
from jax.sharding import Sharding

from medha_jax.runtime.packing import places
from medha_jax.runtime.tick_results import TickHandle


def answering(handle: TickHandle) -> dict[int, int]:
    """The process that sends each chunk's result, by position in the tick's leaving plan."""
    values = handle.output.values
    processes = group_processes(values.sharding, values.shape)
    groups, _ = places(handle.columns, handle.bucket)
    return {number: processes[group] for number, group in enumerate(groups)}


@lru_cache
def group_processes(sharding: Sharding, shape: tuple[int, ...]) -> tuple[int, ...]:
    """For each group, the lowest-numbered process that holds its results, whose shape is `[groups, ...]`."""
    groups = shape[0]
    lowest = [jax.process_count()] * groups
    for device, index in sharding.devices_indices_map(shape).items():
        process: int = device.process_index  # type: ignore[attr-defined]
        for group in range(groups)[index[0]]:
            lowest[group] = min(lowest[group], process)
    return tuple(lowest)
