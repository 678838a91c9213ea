"""Figures of one class of requests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from medha_jax.results.metrics import e2el, gaps, on_time, tpot, ttft, waited
from medha_jax.results.records import RequestRecord
from medha_jax.results.spread import Spread, spread

Figures = dict[str, float | int | bool | None]

_EDGES = (256, 1024, 4096, 16_384, 65_536, 262_144, 1_048_576)
LENGTHS = ("< 256", "256 - 1K", "1K - 4K", "4K - 16K", "16K - 64K", "64K - 256K", "256K - 1M", ">= 1M")


@dataclass(frozen=True)
class Group:
    """Figures of one class of requests. Times are of completed requests, in seconds; None if there are none.

    Args:
        requests: number of requests.
        completed: requests that ended well.
        failed: requests that failed.
        cancelled: requests that the client cancelled.
        unfinished: requests in flight when the run ended.
        ttft: sending to the first output.
        tpot: time for each token after the first.
        itl: time between outputs.
        e2el: sending to the last output.
        normalised: TTFT / time of the prefill alone, if known.
        queue: wait in the server before the first chunk, if the server reports it.
        on_time: requests that met their objectives.
        judged: requests that have objectives and can be judged.
        longest_wait: most seconds to the first output, or to the end without one, over all requests.
        preemptions: of all requests; None if no server reports them.
        cached_tokens: of all prompts; None if no server reports them.
    """

    requests: int
    completed: int
    failed: int
    cancelled: int
    unfinished: int
    ttft: Spread | None
    tpot: Spread | None
    itl: Spread | None
    e2el: Spread | None
    normalised: Spread | None
    queue: Spread | None
    on_time: int
    judged: int
    longest_wait: float
    preemptions: int | None
    cached_tokens: int | None

    @property
    def attainment(self) -> float | None:
        """Share of the judged requests that were on time; None if none was judged."""
        return self.on_time / self.judged if self.judged else None

    def flat(self) -> Figures:
        """Figures by name, with the names of vLLM's benchmark where it has them; `_ms` are milliseconds."""
        found: Figures = {
            "requests": self.requests,
            "completed": self.completed,
            "failed": self.failed,
            "cancelled": self.cancelled,
            "unfinished": self.unfinished,
        }
        for name, times in (("ttft", self.ttft), ("tpot", self.tpot), ("itl", self.itl), ("e2el", self.e2el)):
            found |= _named(times, f"{name}_ms", 1000)
        found |= _named(self.normalised, "normalised_ttft", 1) | _named(self.queue, "queue_ms", 1000)
        return found | {
            "attainment": self.attainment,
            "longest_wait_s": self.longest_wait,
            "preemptions": self.preemptions,
            "cached_tokens": self.cached_tokens,
        }


def length_class(tokens: int) -> str:
    """The class of a prompt's tokens, one of `LENGTHS`; each limit is four times the one before."""
    return LENGTHS[sum(tokens >= edge for edge in _EDGES)]


def groups(
    records: Sequence[RequestRecord], key: Callable[[RequestRecord], str], names: Iterable[str]
) -> dict[str, Group]:
    """The non-empty groups, in the order of `names`; `key` gives the name of a record's group."""
    members: dict[str, list[RequestRecord]] = {}
    for record in records:
        members.setdefault(key(record), []).append(record)
    return {name: group_of(members[name]) for name in names if name in members}


def group_of(records: Sequence[RequestRecord]) -> Group:
    """Compute the figures of requests."""
    finished = [record for record in records if record.status == "ok"]
    verdicts = [on_time(record) for record in records]
    ended = Counter(record.status for record in records)
    known = [(first, r.alone_s) for r in finished if (first := ttft(r)) is not None and r.alone_s]
    return Group(
        requests=len(records),
        completed=ended["ok"],
        failed=ended["failed"],
        cancelled=ended["cancelled"],
        unfinished=ended["unfinished"],
        ttft=_of(finished, ttft),
        tpot=_of(finished, tpot),
        itl=spread(np.concatenate([gaps(record) for record in finished])) if finished else None,
        e2el=_of(finished, e2el),
        normalised=spread([first / alone for first, alone in known]),
        queue=_of(finished, lambda record: record.queue_s),
        on_time=verdicts.count(True),
        judged=len(verdicts) - verdicts.count(None),
        longest_wait=max(map(waited, records), default=0.0),
        preemptions=_sum(record.preemptions for record in records),
        cached_tokens=_sum(record.cached_tokens for record in records),
    )


def _of(records: Iterable[RequestRecord], metric: Callable[[RequestRecord], float | None]) -> Spread | None:
    return spread([value for record in records if (value := metric(record)) is not None])


def _sum(values: Iterable[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _named(times: Spread | None, name: str, factor: float) -> Figures:
    """The parts of a spread by name, such as `p99_ttft_ms`."""
    parts = {"mean": "mean", "median": "median", "std": "std", "p90": "p90", "p95": "p95", "p99": "p99", "max": "most"}
    return {
        f"{part}_{name}": None if times is None else factor * getattr(times, field) for part, field in parts.items()
    }
