"""Fixed chunks, first come first served: chunked prefill as in Sarathi-Serve and vLLM.

A tick has all decodes; the rest of a token budget goes to the oldest prompt, and then to the next one if room is left.
So decodes keep going during a long prompt, but later prompts wait for its end. No request is admitted before the head
of the queue.
"""

from __future__ import annotations

import dataclasses

from medha_jax.config import SchedulerConfig
from medha_jax.simulate.deployments import Deployment

NEVER_S = 1e6  # a limit that no tick reaches


def fixed_chunks(deployment: Deployment, chunk: int) -> Deployment:
    """The machine with at most `chunk` prompt tokens a tick."""
    config = deployment.config
    buckets = config.mesh.buckets
    sizes = (*(size for size in buckets.prefill if size < chunk), chunk)
    mesh = dataclasses.replace(config.mesh, buckets=dataclasses.replace(buckets, prefill=sizes))
    changed = dataclasses.replace(config, mesh=mesh)
    return dataclasses.replace(deployment, name=f"{deployment.name}, chunks of {chunk:,}", config=changed)


def first_come(settings: SchedulerConfig) -> SchedulerConfig:
    """The scheduler as a queue: no turns, no preemption, no overtaking, no limit on the time of a tick."""
    return dataclasses.replace(
        settings,
        policy="fcfs",
        chunk_preemption=False,
        preemption=False,
        bypass_s=0.0,
        tpot_target_s=NEVER_S,
        idle_tick_s=NEVER_S,
    )
