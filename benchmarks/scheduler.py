"""How long a plan takes: `python -m benchmarks.scheduler [--policy lars] [--waiting 1000] [--running 128]`.

Requests of 50 tokens to 10 million wait while others decode. Every plan "runs" at once, and the clock follows the time
model. So cursors move, prompts end and requests arrive as in service. It prints the CPU milliseconds of `plan` and of
telling the scheduler what was computed. On a core of its own, that is also the elapsed time.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator

import numpy as np

from benchmarks.measure import machine
from medha_jax.config import POLICIES, Buckets, SchedulerConfig
from medha_jax.kv.groups import GroupedPages
from medha_jax.scheduler.request import SchedulerRequest
from medha_jax.scheduler.scheduler import Scheduler
from medha_jax.scheduler.time_model import LinearTimeModel
from medha_jax.specs.tick_shapes import TickShapes

BUCKETS = Buckets(decode=(1, 8, 32, 128), prefill=(64, 256, 512, 1024, 2048, 4096, 8192), chunks=16, slices=())
CONTEXT = 10_000_000
PAGE = 128
WARM_PLANS = 500
# assumed; about an 8B model on eight devices
MODEL = LinearTimeModel(fixed=5e-3, tokens=8e-6, attention=7e-11, context=2e-9, rows=1e-6)


def requests(rng: np.random.Generator) -> Iterator[tuple[int, int]]:
    """Prompt and output tokens; one prompt in twenty is long, up to 10M tokens."""
    while True:
        long = rng.random() < 0.05
        prompt = 10 ** rng.uniform(5, 6.999) if long else rng.integers(50, 8000)
        yield int(prompt), int(rng.integers(200, 1000))


def measure(policy: str, waiting: int, running: int, groups: int, plans: int) -> None:
    """Print the time of plans with this many requests waiting and running."""
    shapes = TickShapes(
        own=BUCKETS,
        shared=Buckets(decode=(4,), prefill=(64, 512, 2048), chunks=2, slices=()),
        groups=groups,
        per_group=2**31 if groups == 1 else 2_621_440,
        page_size=PAGE,
        stages=1,
        slots=running,
        context=CONTEXT + 1000,
    )
    pages = GroupedPages(groups, 6 * CONTEXT // PAGE, PAGE, shapes.per_group)
    config = SchedulerConfig(policy=policy, max_waiting=waiting + running, prefix_cache=False)
    scheduler = Scheduler(config, shapes, pages, MODEL)
    coming = requests(np.random.default_rng(0))
    now, planning, telling, busy = 0.0, [], [], []

    def tick() -> None:
        nonlocal now
        started = time.thread_time()
        planned = scheduler.plan(now)
        between = time.thread_time()
        now += planned.seconds
        for state, chunk in zip(planned.states, planned.plan.chunks, strict=True):
            scheduler.chunk_left(state, chunk, 1, now)
            if len(state.generated) == state.request.max_tokens:
                scheduler.cancel(state.number)
        planning.append(between - started)
        telling.append(time.thread_time() - between)
        busy.append(len(planned.states))

    for number in range(running):
        scheduler.enqueue(scheduler.next_number, SchedulerRequest(range(1000), 10 * (1 + number), now))
    while scheduler.stats.waiting:
        tick()
    for _ in range(plans + WARM_PLANS):
        while scheduler.stats.waiting < waiting:
            prompt, output = next(coming)
            scheduler.enqueue(scheduler.next_number, SchedulerRequest(range(prompt), output, now))
        tick()
    del planning[:-plans], telling[:-plans], busy[:-plans]
    milliseconds = np.array(planning) * 1e3
    print(
        f"{policy:5} {waiting:6,} waiting {running:4} running {groups} group{'s' * (groups > 1)}:"
        f" median {np.median(milliseconds):.2f} ms, p99 {np.percentile(milliseconds, 99):.2f},"
        f" most {milliseconds.max():.2f}; told in {np.median(telling) * 1e3:.2f} ms;"
        f" {np.mean(busy):.0f} chunks a plan"
    )


def main() -> None:
    """Measure and print each combination of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", choices=[*POLICIES, "all"], default="all")
    parser.add_argument("--waiting", type=int, nargs="+", default=[1000, 10_000])
    parser.add_argument("--running", type=int, default=128)
    parser.add_argument("--groups", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--plans", type=int, default=2000)
    args = parser.parse_args()
    print(machine())
    for groups in args.groups:
        for waiting in args.waiting:
            for policy in POLICIES if args.policy == "all" else [args.policy]:
                measure(policy, waiting, args.running, groups, args.plans)


if __name__ == "__main__":
    main()
