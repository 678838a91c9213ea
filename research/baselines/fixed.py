"""Fixed chunks, first come first served: chunked prefill as in Sarathi-Serve and vLLM.

A tick has all decodes, and the rest of a budget of tokens for the prompt that came first; the next one begins when that
is done, in the same tick if there is room. So a long prompt is computed chunk by chunk, its decodes keep going, and
whoever came later waits for its end. The request at the head of the queue is admitted first or nobody is.
"""

from __future__ import annotations

import dataclasses

from medha_jax.config import SchedulerConfig
from medha_jax.simulate.deployments import Deployment

NEVER_S = 1e6  # a limit that no tick reaches


def fixed_chunks(deployment: Deployment, chunk: int) -> Deployment:
    """The machine with ticks of at most `chunk` prompt tokens."""
    config = deployment.config
    buckets = config.mesh.buckets
    sizes = (*(size for size in buckets.prefill if size < chunk), chunk)
    mesh = dataclasses.replace(config.mesh, buckets=dataclasses.replace(buckets, prefill=sizes))
    changed = dataclasses.replace(config, mesh=mesh)
    return dataclasses.replace(deployment, name=f"{deployment.name}, chunks of {chunk:,}", config=changed)


def first_come(settings: SchedulerConfig) -> SchedulerConfig:
    """The scheduler as a queue: no turns, no preemption, nobody admitted past another, ticks as long as they get."""
    return dataclasses.replace(
        settings,
        policy="fcfs",
        chunk_preemption=False,
        preemption=False,
        bypass_s=0.0,
        tpot_target_s=NEVER_S,
        idle_tick_s=NEVER_S,
    )
