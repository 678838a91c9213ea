"""A scheduler for the slots and pages of an executor."""

from __future__ import annotations

import dataclasses

from medha_jax.config import SchedulerConfig
from medha_jax.engine.executor import Executor
from medha_jax.kv.groups import GroupedPages
from medha_jax.scheduler.scheduler import Scheduler
from medha_jax.scheduler.time_model import TimeModel
from medha_jax.specs.tick_shapes import TickShapes


def scheduler_for(executor: Executor, config: SchedulerConfig, model: TimeModel, ahead: int | None = None) -> Scheduler:
    """A scheduler for all slots and pages of an executor.

    `model` predicts the seconds of a tick. `ahead` ticks are dispatched before the results of earlier ones are read;
    None takes the executor's own number.
    """
    mesh, sizes = executor.config.mesh, executor.sizes
    config = dataclasses.replace(config, prefix_cache=config.prefix_cache and executor.prefix_cacheable)
    shapes = TickShapes.of(mesh, sizes, executor.config.slots, executor.slice_lengths).on(executor.grid)
    pages = GroupedPages(
        mesh.kvp, sizes.pages, mesh.page_size, sizes.per_group, prefix_cache=config.prefix_cache, host=executor.host
    )
    return Scheduler(config, shapes, pages, model, executor.ahead if ahead is None else ahead)
