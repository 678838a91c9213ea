"""The convoy: long prompts, and short requests that arrive behind them."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass
from typing import Any

from medha_jax.bench.best_alone import BestAlone
from medha_jax.bench.session import Session
from medha_jax.results import Repeat, RequestRecord, Spread
from medha_jax.results.metrics import ttft
from medha_jax.workload import ConvoyConfig, Isolated, build_convoy

SHORTS_ALONE = 3  # short requests measured alone; their median counts


@dataclass(frozen=True)
class Alone:
    """Times of a convoy's requests on the idle server, in seconds.

    Args:
        long_ttft_s: TTFT of a long request.
        long_s: the whole long request.
        best_ttft_s, best_s: the same two for the same prompt without a server, in the largest chunks; None if they
            cannot be measured there.
        short_ttft_s: median TTFT of SHORTS_ALONE short requests.
        short_s: median of the whole short requests.
    """

    long_ttft_s: float
    long_s: float
    short_ttft_s: float
    short_s: float
    best_ttft_s: float | None = None
    best_s: float | None = None


@dataclass(frozen=True)
class Convoy:
    """A convoy on one server.

    Args:
        name: of the server or its policy.
        config: of the convoy.
        alone: measured just before the convoy.
        repeat: records of the convoy.
    """

    name: str
    config: ConvoyConfig
    alone: Alone
    repeat: Repeat

    @property
    def bound_s(self) -> float | None:
        """Seconds of all requests one after the other: long ones at their best, short ones as on the idle server."""
        best, config = self.alone.best_s, self.config
        return None if best is None else config.longs * best + config.shorts * self.alone.short_s

    @property
    def longs(self) -> list[RequestRecord]:
        """Records of the long requests."""
        return [record for record in self.repeat.records if record.kind == "long"]

    @property
    def long_finishes(self) -> tuple[float | None, ...]:
        """Seconds from sending each long request to its last token; None for those that failed."""
        return tuple(_whole(record) if record.status == "ok" else None for record in self.longs)


@dataclass(frozen=True)
class Figures:
    """The compared figures of a convoy. Times are in seconds; None if unknown.

    Args:
        short_done: successful short requests.
        short_ttft: P50, P90 and P99 of their TTFT.
        short_tpot: P50, P90 and P99 of their TPOT.
        long_ttft: TTFT of each long request.
        long_finish: from sending each long request to its last token.
        alone_over_best: the long request on the idle server / at its best.
        over_best: the last long request's finish / its best.
        bound: `Convoy.bound_s`.
        over_bound: the last long request's finish / `bound`.
        output_throughput: output tokens per second of the whole convoy.
        goodput: requests per second that met their objectives.
    """

    short_done: int
    short_ttft: tuple[float, float, float] | None
    short_tpot: tuple[float, float, float] | None
    long_ttft: tuple[float | None, ...]
    long_finish: tuple[float | None, ...]
    alone_over_best: float | None
    over_best: float | None
    bound: float | None
    over_bound: float | None
    output_throughput: float
    goodput: float | None


async def run_convoy(
    session: Session, name: str, config: ConvoyConfig, by_length: bool, best: BestAlone | None = None
) -> Convoy | None:
    """Measure a convoy's requests alone, then the convoy; None if the session was stopped.

    The long prompt goes first and alone, so the server has run ticks of every context before the convoy.

    Args:
        session: with the server.
        name: of the server or its policy.
        config: of the convoy.
        by_length: derive deadlines from the times measured alone.
        best: of a long request, measured before; None if it cannot be.

    Raises:
        BackendError: a request alone failed.
    """
    long = await session.alone(config.long_prompt, config.long_output)
    shorts = [
        await session.alone(config.short_prompt, config.short_output, number) for number in range(1, SHORTS_ALONE + 1)
    ]
    known = [short for short in shorts if short is not None]
    if long is None or len(known) < SHORTS_ALONE:
        return None
    alone = Alone(
        long_ttft_s=_first(long),
        long_s=_whole(long),
        short_ttft_s=statistics.median(map(_first, known)),
        short_s=statistics.median(map(_whole, known)),
        best_ttft_s=None if best is None else best.ttft_s,
        best_s=None if best is None else best.whole_s,
    )
    if by_length:
        points = {config.short_prompt: alone.short_ttft_s, config.long_prompt: alone.long_ttft_s}
        session.deadlines_from(Isolated(list(points.items())))
    workload = build_convoy(config)
    records = await session.send(name, workload, workload.requests)
    if sum(record.kind == "long" for record in records) < config.longs:
        return None
    return Convoy(name, config, alone, Repeat(tuple(records)))


def figures(convoy: Convoy) -> Figures:
    """Compute the figures of a convoy."""
    summary = convoy.repeat.summary
    flat, short = summary.flat(), summary.kinds.get("short")
    best, bound = convoy.alone.best_s, convoy.bound_s
    finished = [seconds for seconds in convoy.long_finishes if seconds is not None]
    last = max(finished) if len(finished) == convoy.config.longs else None
    return Figures(
        short_done=0 if short is None else short.completed,
        short_ttft=None if short is None else _percentiles(short.ttft),
        short_tpot=None if short is None else _percentiles(short.tpot),
        long_ttft=tuple(map(ttft, convoy.longs)),
        long_finish=convoy.long_finishes,
        alone_over_best=None if best is None else convoy.alone.long_s / best,
        over_best=None if best is None or last is None else last / best,
        bound=bound,
        over_bound=None if bound is None or last is None else last / bound,
        output_throughput=float(flat["output_throughput"] or 0),
        goodput=None if flat["request_goodput"] is None else float(flat["request_goodput"]),
    )


def _percentiles(of: Spread | None) -> tuple[float, float, float] | None:
    return None if of is None else (of.median, of.p90, of.p99)


def json_row(one: Convoy, first: Convoy) -> dict[str, Any]:
    """The figures of a convoy for JSON; `ratio` is the median short TTFT of `first` / that of `one`."""
    found = figures(one)
    ours, theirs = found.short_ttft, figures(first).short_ttft
    ratio = theirs[0] / ours[0] if ours and theirs else None
    return {"name": one.name, "ratio": ratio, **asdict(found), "alone": asdict(one.alone)}


def _whole(record: RequestRecord) -> float:
    """Seconds from sending to the last token of a successful request."""
    return record.outputs[-1][0] - record.sent


def _first(record: RequestRecord) -> float:
    return record.outputs[0][0] - record.sent
