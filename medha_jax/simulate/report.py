"""What simulations gave, in the numbers that are compared."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from medha_jax.simulate.deployments import Deployment
from medha_jax.simulate.run import Outcome, Served


@dataclass(frozen=True)
class Summary:
    """One policy under one load; every figure is simulated.

    TTFT of a request without a first token is the time until the simulation ended. Shares and percentiles of nothing
    are None.

    Args:
        policy: its name.
        load: seconds of isolated prefill that arrived in a second; where it is 1, prompts alone keep the machine busy.
        requests: that arrived.
        finished: of these.
        on_time_short: share of the short ones whose first token came within `max(1.5 x isolated prefill, 0.5 s)`.
        on_time_long: of the long ones.
        normalised: P50, P90 and P99 of TTFT / isolated prefill.
        normalised_long: the same of the long ones.
        throughput: requests that finished while requests arrived, a second.
        tokens_per_second: prompt and output tokens that were computed, over the whole simulation.
        longest_wait: largest TTFT, seconds.
        left_behind: long requests that came in the first third of the time and had no first token at the end, of all
            that came then.
        tpot: P50 and P99 of the time per output token after the first, seconds.
        seconds: simulated.
    """

    policy: str
    load: float
    requests: int
    finished: int
    on_time_short: float | None
    on_time_long: float | None
    normalised: tuple[float, ...] | None
    normalised_long: tuple[float, ...] | None
    throughput: float
    tokens_per_second: float
    longest_wait: float
    left_behind: tuple[int, int]
    tpot: tuple[float, ...] | None
    seconds: float


def summarise(policy: str, outcome: Outcome, arriving: float) -> Summary:
    """Put the figures of a simulation together.

    Args:
        policy: its name.
        outcome: of `simulate`.
        arriving: seconds in which requests arrived.
    """
    served = outcome.served
    long = [one for one in served if one.arrival.long]
    short = [one for one in served if not one.arrival.long]
    early = [one for one in long if one.arrival.at < arriving / 3]
    within = sum(one.finished is not None and one.finished <= arriving for one in served)
    return Summary(
        policy=policy,
        load=sum(one.isolated for one in served) / arriving,
        requests=len(served),
        finished=sum(one.finished is not None for one in served),
        on_time_short=on_time(short),
        on_time_long=on_time(long),
        normalised=percentiles([one.normalised for one in served], (50, 90, 99)),
        normalised_long=percentiles([one.normalised for one in long], (50, 90, 99)),
        throughput=within / arriving,
        tokens_per_second=outcome.totals.tokens / outcome.end if outcome.end else 0.0,
        longest_wait=max((one.ttft for one in served), default=0.0),
        left_behind=(sum(one.first is None for one in early), len(early)),
        tpot=percentiles([one.tpot for one in served if one.tpot is not None], (50, 99)),
        seconds=outcome.end,
    )


def on_time(served: Iterable[Served]) -> float | None:
    """Share of the requests whose first token came by their default deadline, of those where that is known."""
    known = [one.on_time for one in served if one.on_time is not None]
    return sum(known) / len(known) if known else None


def percentiles(values: Sequence[float], wanted: Sequence[float]) -> tuple[float, ...] | None:
    """Percentiles of some values, None if there are none."""
    return tuple(np.percentile(values, wanted).tolist()) if values else None


@dataclass(frozen=True)
class ConvoySummary:
    """One policy on a convoy of one long request and many short ones; times in seconds, simulated.

    Args:
        policy: its name.
        short_ttft: median and P99 of the short requests.
        short_tpot: median and largest of the short requests.
        long_ttft: of the long request.
        long_finished: when its last token came.
        long_bound: what it takes alone and what the short ones take, one after the other: prefills and output tokens.
    """

    policy: str
    short_ttft: tuple[float, ...]
    short_tpot: tuple[float, ...]
    long_ttft: float
    long_finished: float | None
    long_bound: float


def summarise_convoy(policy: str, outcome: Outcome, deployment: Deployment) -> ConvoySummary:
    """Put the figures of a convoy together; its first request is the long one."""
    long, *short = outcome.served
    ttft = percentiles([one.ttft for one in short], (50, 99))
    tpot = percentiles([one.tpot for one in short if one.tpot is not None], (50, 100))
    if ttft is None or tpot is None:
        raise ValueError("a convoy needs short requests with at least two output tokens")
    return ConvoySummary(
        policy=policy,
        short_ttft=ttft,
        short_tpot=tpot,
        long_ttft=long.ttft,
        long_finished=long.finished,
        long_bound=sum(isolated_seconds(one, deployment) for one in outcome.served),
    )


def isolated_seconds(served: Served, deployment: Deployment) -> float:
    """Seconds from a request's arrival to its last token if it were alone."""
    arrival = served.arrival
    contexts = np.arange(arrival.prompt + 1, arrival.prompt + arrival.output, dtype=np.float64)
    rows = np.full_like(contexts, deployment.config.mesh.buckets.decode[0])
    ticks = deployment.model.many(rows, np.zeros_like(contexts), contexts, np.ones_like(contexts))
    return deployment.isolated_prefill(arrival.prompt) + deployment.config.mesh.spp * float(ticks.sum())
