"""Figures of all requests of a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from medha_jax.results.group import LENGTHS, Figures, Group, group_of, groups, length_class
from medha_jax.results.metrics import on_time, received
from medha_jax.results.records import RequestRecord

PROBE = "probe"  # kind of the requests that measure the others; they are not in the totals
LAG_FLOOR_S, LAG_SHARE = 0.005, 0.05


@dataclass(frozen=True)
class Lateness:
    """Delay of the client's own sending, in seconds.

    Args:
        p50: median.
        p99: 99th percentile.
        most: maximum.
        allowed: limit for `p99`: the larger of 5 ms and 5 % of the mean gap between requests; None if all were due at
            once.
    """

    p50: float
    p99: float
    most: float
    allowed: float | None

    @property
    def lagged(self) -> bool:
        """Whether the load differed from the planned one."""
        return self.allowed is not None and self.p99 > self.allowed


@dataclass(frozen=True)
class Summary:
    """Figures of a run. Probes count in `kinds`, `errors` and `lateness` only.

    Args:
        duration: seconds that rates refer to.
        total: all requests.
        kinds: requests by kind.
        lengths: requests by the class of their prompt's length, shortest first.
        input_tokens: prompt tokens of finished requests.
        output_tokens: tokens that finished requests received.
        finished: requests that finished within the duration.
        good: finished requests that were on time; None if no request has an objective.
        errors: count of each message, most frequent first.
        lateness: of the client.
        concurrent: most requests at once.
    """

    duration: float
    total: Group
    kinds: Mapping[str, Group]
    lengths: Mapping[str, Group]
    input_tokens: int
    output_tokens: int
    finished: int
    good: int | None
    errors: Mapping[str, int]
    lateness: Lateness | None
    concurrent: int

    @property
    def attainment(self) -> float | None:
        """As `Group.attainment`, of all requests."""
        return self.total.attainment

    def flat(self) -> Figures:
        """Figures by name, with the names of vLLM's benchmark where it has them."""
        late = self.lateness
        return {
            "duration": self.duration,
            "total_input_tokens": self.input_tokens,
            "total_output_tokens": self.output_tokens,
            "request_throughput": self._rate(self.finished),
            "request_goodput": None if self.good is None else self._rate(self.good),
            "input_throughput": self._rate(self.input_tokens),
            "output_throughput": self._rate(self.output_tokens),
            "total_token_throughput": self._rate(self.input_tokens + self.output_tokens),
            "max_concurrent_requests": self.concurrent,
            "p50_lateness_ms": None if late is None else 1000 * late.p50,
            "p99_lateness_ms": None if late is None else 1000 * late.p99,
            "max_lateness_ms": None if late is None else 1000 * late.most,
            "allowed_lateness_ms": None if late is None or late.allowed is None else 1000 * late.allowed,
            "client_lagged": None if late is None else late.lagged,
            **self.total.flat(),
        }

    def _rate(self, count: int) -> float:
        return count / self.duration if self.duration > 0 else 0.0


def summarise(records: Sequence[RequestRecord], window: tuple[float, float] | None = None) -> Summary:
    """Compute the figures of a run.

    Args:
        records: of every request, without the warm-up.
        window: first and last second to evaluate. Rates are of requests that ended in the window, all else is of
            requests that were due in it. None for the whole run, from the first sending to the last end.
    """
    due = [record for record in records if window is None or window[0] <= record.due < window[1]]
    main = [record for record in due if record.kind != PROBE]
    if window is None:
        ended = main
        duration = max((r.ended for r in main), default=0.0) - min((r.sent for r in main), default=0.0)
    else:
        ended = [r for r in records if r.kind != PROBE and window[0] <= r.ended < window[1]]
        duration = window[1] - window[0]
    finished = [record for record in ended if record.status == "ok"]
    judged = any(r.deadline_s is not None or r.tpot_slo_s is not None for r in main)
    errors = Counter(record.error or "without a message" for record in due if record.status == "failed")
    return Summary(
        duration=duration,
        total=group_of(main),
        kinds=groups(due, lambda record: record.kind, sorted({record.kind for record in due}, key=_kind_order)),
        lengths=groups(main, lambda record: length_class(record.prompt_tokens), LENGTHS),
        input_tokens=sum(record.prompt_tokens for record in finished),
        output_tokens=sum(map(received, finished)),
        finished=len(finished),
        good=sum(on_time(record) is True for record in finished) if judged else None,
        errors=dict(errors.most_common()),
        lateness=_lateness(due),
        concurrent=_concurrent(main),
    )


def _kind_order(kind: str) -> tuple[int, str]:
    """Short ones first, probes last."""
    return ({"short": 0, "long": 1, PROBE: 3}.get(kind, 2), kind)


def _lateness(records: Sequence[RequestRecord]) -> Lateness | None:
    if not records:
        return None
    late = [record.sent - record.due for record in records]
    p50, p99, most = np.percentile(late, (50, 99, 100)).tolist()
    due = [record.due for record in records]
    gap = (max(due) - min(due)) / max(1, len(due) - 1)
    return Lateness(p50, p99, most, max(LAG_FLOOR_S, LAG_SHARE * gap) if gap > 0 else None)


def _concurrent(records: Iterable[RequestRecord]) -> int:
    """Most requests in flight at once."""
    # ends sort before starts of the same time
    moments = sorted([(r.sent, 1) for r in records] + [(r.ended, -1) for r in records])
    return int(np.cumsum([0, *(step for _, step in moments)]).max())
