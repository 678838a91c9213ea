"""The figures of simulations that are compared."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from medha_jax.results import RequestRecord
from medha_jax.results.group import group_of
from medha_jax.results.metrics import tpot, waited
from medha_jax.simulate.deployments import Deployment
from medha_jax.simulate.simulation import Outcome


@dataclass(frozen=True)
class PolicySummary:
    """One policy under one load; every figure is simulated.

    Figures of one request are those of `medha_jax.results`. A request without a first token has its wait until the end
    as TTFT. Shares and percentiles of no requests are None.

    Args:
        load: seconds of isolated prefill that arrive in a second; at 1, prompts alone keep the machine busy.
        on_time_short, on_time_long: share with a first token within `SchedulerConfig.default_deadline_s`.
        normalised, normalised_long: P50, P90 and P99 of TTFT / isolated prefill, of all and of long requests.
        throughput: requests a second that finished while requests arrived.
        tokens_per_second: prompt and output tokens computed, over the whole simulation.
        longest_wait: largest TTFT, seconds.
        left_behind: long requests of the first third of the time: those without a first token at the end, and all.
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


def summarise(policy: str, outcome: Outcome, arriving: float) -> PolicySummary:
    """Put the figures of a simulation together; requests arrived during `arriving` seconds."""
    records = outcome.records
    long = [one for one in records if one.kind == "long"]
    short = [one for one in records if one.kind != "long"]
    early = [one for one in long if one.due < arriving / 3]
    return PolicySummary(
        policy=policy,
        load=sum(one.alone_s or 0.0 for one in records) / arriving,
        requests=len(records),
        finished=sum(one.status == "ok" for one in records),
        on_time_short=group_of(short).attainment,
        on_time_long=group_of(long).attainment,
        normalised=percentiles(_normalised(records), (50, 90, 99)),
        normalised_long=percentiles(_normalised(long), (50, 90, 99)),
        throughput=sum(one.status == "ok" and one.ended <= arriving for one in records) / arriving,
        tokens_per_second=outcome.totals.tokens / outcome.end if outcome.end else 0.0,
        longest_wait=group_of(records).longest_wait,
        left_behind=(sum(not one.outputs for one in early), len(early)),
        tpot=percentiles(tpots(records), (50, 99)),
        seconds=outcome.end,
    )


def _normalised(records: Iterable[RequestRecord]) -> list[float]:
    """TTFT of each, or its wait until the end, as a multiple of its isolated prefill."""
    return [waited(one) / one.alone_s for one in records if one.alone_s]


def tpots(records: Iterable[RequestRecord]) -> list[float]:
    """Seconds per output token of each request that has more than one."""
    return [each for one in records if (each := tpot(one)) is not None]


def percentiles(values: Sequence[float], wanted: Sequence[float]) -> tuple[float, ...] | None:
    """Percentiles of some values, None if there are no values."""
    return tuple(np.percentile(values, wanted).tolist()) if values else None


@dataclass(frozen=True)
class ConvoySummary:
    """One policy on a convoy of one long request and many short ones; times in seconds, simulated.

    Args:
        short_ttft: median and P99.
        short_tpot: median and largest.
        long_finished: when the last token of the long request came.
        long_alone: seconds of the long request with nobody else, in the largest chunks.
        long_bound: seconds of all requests one after the other, prefills and output tokens.
        longest: seconds of the longest tick or slice: a newcomer waits for the end of one.
    """

    policy: str
    short_ttft: tuple[float, ...]
    short_tpot: tuple[float, ...]
    long_ttft: float
    long_finished: float | None
    long_alone: float
    long_bound: float
    longest: float


def summarise_convoy(policy: str, outcome: Outcome, deployment: Deployment) -> ConvoySummary:
    """Put the figures of a convoy together; its first request is the long one."""
    long, *short = outcome.records
    ttft, each = percentiles([waited(one) for one in short], (50, 99)), percentiles(tpots(short), (50, 100))
    if ttft is None or each is None:
        raise ValueError("a convoy needs short requests with at least two output tokens")
    alone = [isolated_seconds(one, deployment) for one in outcome.records]
    return ConvoySummary(
        policy=policy,
        short_ttft=ttft,
        short_tpot=each,
        long_ttft=waited(long),
        long_finished=long.ended if long.status == "ok" else None,
        long_alone=alone[0],
        long_bound=sum(alone),
        longest=outcome.totals.longest,
    )


def isolated_seconds(record: RequestRecord, deployment: Deployment) -> float:
    """Seconds from a request's arrival to its last token, if it is alone."""
    prompt = record.prompt_tokens
    contexts = np.arange(prompt + 1, prompt + record.output_tokens, dtype=np.float64)
    rows = np.full_like(contexts, deployment.config.mesh.buckets.fewest_decodes)
    ticks = deployment.model.many(rows, np.zeros_like(contexts), contexts, np.ones_like(contexts))
    return deployment.isolated_prefill(prompt) + deployment.config.mesh.spp * float(ticks.sum())
