"""RED: relegation, and earliest deadline first among the requests that can be on time."""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass

import numpy as np

from medha_jax.scheduler.policies.base import LEAST_WORK_S, NO_REQUESTS, NONE, Columns

GAP = 0.25  # share of the slack of all requests before it that a request may use up to go first
LEAST_GAP_S = 0.05  # least slack that may be used that way
DEAREST_TOKENS = 1e5  # shorter requests do not become cheaper to keep, so long ones are set aside first
ADVANCE_S = 10.0  # most debt from work done for the oldest relegated request beyond its credit
GOOD_S = 0.05  # an order is used again for this long, if no request comes, goes or is admitted
MEMORY_S = 20.0  # as long as a typical decode in the trace of Medha's authors
SPEED_MARGIN = 0.95  # share of the measured speed to count on; the rest is for short requests still to come
LEAST_SPEED = 0.3


class Relegation:
    """Serves requests that can be on time as if there were no others, and all others within a bound.

    A request that cannot be on time even at the predicted speed is *relegated* for good. Of the others as many as
    possible are kept *on time* (`on_time_together`, at the measured speed). The rest are *aside* and may return.
    The order is:

    1. the oldest relegated request, if the relegated are owed service;
    2. short relegated requests that delay no on-time request;
    3. on-time requests: first those whose work fits the slack of all before them, shortest first; then the others,
       earliest deadline first;
    4. requests aside, shortest remaining time first;
    5. the relegated, longest wait relative to its work first.

    *Owed*: the relegated get a share φ of the time. While there are any, they gain φ seconds of credit each second.
    Predicted seconds of work done for the oldest are taken off. It goes first while there is credit. The oldest is
    the earliest arrival when the one before it was done. It stays the oldest to its end, and keeps its pages.

    So the wait for a first token has a bound, and later requests do not raise it. docs/scheduling.md#the-bound states
    and proves it.

    From Moore and Hodgson 1968; relegation as in Niyama (arXiv 2503.22562), which has no bound.

    Args:
        share: φ, above 0 and below 1.
        tokens: KV tokens that relegated prompts may keep, without the oldest; beyond it the prompts with the least
            work done lose their pages.
        long_tokens: requests with fewer are short.
    """

    bounds_waits = True

    def __init__(self, share: float, tokens: float, long_tokens: int) -> None:
        self._share, self._most, self._long = share, tokens, long_tokens
        self._speed = MeasuredSpeed()
        self._relegated = NO_REQUESTS  # numbers
        self._oldest = NONE
        self._credit = 0.0
        self._made: _Made | None = None

    @property
    def oldest(self) -> float:
        """Number of the oldest relegated request; `NONE` if none is."""
        return self._oldest

    @property
    def owed(self) -> bool:
        """Whether the oldest is owed service."""
        return self._oldest != NONE and self._credit > 0

    def order(self, requests: Columns, now: float) -> np.ndarray:
        """Priorities by the order of the class; infinite for relegated requests whose pages would be too many."""
        if not len(requests.number):
            return NO_REQUESTS
        passed = self._speed.passed(requests.number, now)
        if len(self._relegated):
            self._credit += self._share * passed
        owed = self._credit > 0
        made = self._made
        if made is None or not made.good(requests, now, owed):
            made = self._made = self._make(requests, now, owed)
        return made.priorities

    def urgency(self, requests: Columns, now: float) -> np.ndarray:
        """Relegated requests give way to all others, requests aside to those on time, and all to the oldest.

        Requests of one class never preempt each other: work would be lost for nothing. The oldest and decodes
        keep their pages.
        """
        made, number = self._made, requests.number
        found = np.full(len(number), -math.inf)
        if made is None:
            return found
        found[np.isin(number, made.on_time)] = -0.5  # behind the oldest, before all others
        found[np.isin(number, made.aside)] = made.first_aside - 0.5
        found[np.isin(number, self._relegated)] = made.first_relegated - 0.5
        found[number == self._oldest] = -math.inf
        return found

    def planned(self, number: int, seconds: float) -> None:
        """Add the work to the speed, and take it off the credit if it was done for the oldest."""
        self._speed.worked(seconds)
        self._charge(number, seconds)

    def waited(self, number: int, seconds: float) -> None:
        """Take a slice off the credit that ran because the oldest waits for the lane."""
        self._charge(number, seconds)

    def _charge(self, number: int, seconds: float) -> None:
        if number == self._oldest:
            self._credit = max(self._credit - seconds, -ADVANCE_S)

    def over_quota(self, requests: Columns) -> np.ndarray:
        """The relegated with the least work done: as few as bring the others within `tokens`."""
        if not len(self._relegated):
            return NO_REQUESTS
        holds = requests.admitted & np.isin(requests.number, self._relegated) & (requests.number != self._oldest)
        rows = np.flatnonzero(holds)
        over = requests.tokens[rows].sum() - self._most
        if over <= 0:
            return NO_REQUESTS
        rows = rows[np.argsort((requests.total - requests.remaining)[rows], kind="stable")]
        enough = int(np.searchsorted(np.cumsum(requests.tokens[rows]), over))
        return requests.number[rows[: enough + 1]]

    def _make(self, requests: Columns, now: float, owed: bool) -> _Made:
        """Compute the order."""
        left, work = requests.deadline - now, requests.remaining / self._speed.expected
        relegated = self._relegate(requests, left)
        late, others = np.flatnonzero(relegated), np.flatnonzero(~relegated)
        kept = self._on_time(requests, others[work[others] <= left[others]], work, left)
        aside = np.setdiff1d(others, kept, assume_unique=True)
        slack = np.minimum.accumulate(np.append(math.inf, left[kept] - np.cumsum(work[kept])))  # of all before each
        fits = (slack[:-1] >= LEAST_GAP_S) & (work[kept] <= GAP * slack[:-1])
        oldest = late[requests.number[late] == self._oldest] if owed else late[:0]
        behind = self._allowed(requests, late)
        brief = behind[(requests.tokens[behind] < self._long) & (work[behind] <= GAP * slack[-1])]
        waited = (now - requests.arrival) / np.maximum(requests.total, LEAST_WORK_S)
        priorities = np.full(len(left), math.inf)
        place = -len(oldest)
        first_places: dict[str, int] = {}
        for name, rows in {
            "oldest": oldest,
            "short relegated": _by(work, brief),
            "fits before those on time": _by(work, kept[fits]),
            "on time": kept[~fits],
            "aside": _by(work, aside),
            "relegated": _by(-waited, np.setdiff1d(behind, brief, assume_unique=True)),
        }.items():
            first_places[name] = place
            rows = rows[priorities[rows] == math.inf]  # the oldest has its place already
            priorities[rows] = np.arange(place, place + len(rows))
            place += len(rows)
        number = requests.number
        key = number.copy(), int(np.sum(requests.admitted)), owed
        first_aside, first_relegated = first_places["aside"], first_places["relegated"]
        return _Made(key, now, priorities, number[kept], number[aside], first_aside, first_relegated)

    def _relegate(self, requests: Columns, left: np.ndarray) -> np.ndarray:
        """Whether each request is relegated, `[requests]`. Forgets relegated requests that are gone."""
        number = requests.number
        relegated = requests.remaining > left
        if len(self._relegated):
            relegated |= np.isin(number, self._relegated)
        self._relegated = number[relegated]
        if not len(self._relegated):
            self._oldest, self._credit = NONE, min(self._credit, 0.0)
        elif self._oldest not in self._relegated:
            self._oldest = float(self._relegated[np.argmin(requests.arrival[relegated])])
        return relegated

    def _on_time(self, requests: Columns, rows: np.ndarray, work: np.ndarray, left: np.ndarray) -> np.ndarray:
        """The rows that can be on time together, by deadline."""
        rows = _by(left, rows)
        cost = work[rows] / np.sqrt(np.maximum(requests.tokens[rows], DEAREST_TOKENS))
        together: np.ndarray = rows[on_time_together(work[rows], left[rows], cost)]
        return together

    def _allowed(self, requests: Columns, late: np.ndarray) -> np.ndarray:
        """Rows of relegated requests that hold pages, or may get them within the quota."""
        tokens, admitted = requests.tokens[late], requests.admitted[late]
        oldest = requests.number[late] == self._oldest
        held = tokens[admitted & ~oldest].sum()
        allowed: np.ndarray = late[admitted | oldest | (held + tokens <= self._most)]
        return allowed


@dataclass(frozen=True)
class _Made:
    """An order, kept for a short time.

    Args:
        key: numbers of its requests, how many were admitted, and whether the oldest was owed service.
        at: when it was made, in seconds.
        priorities: of the requests, `[requests]`.
        on_time, aside: numbers of the requests.
        first_aside, first_relegated: priorities at which these classes begin.
    """

    key: tuple[np.ndarray, int, bool]
    at: float
    priorities: np.ndarray
    on_time: np.ndarray
    aside: np.ndarray
    first_aside: int
    first_relegated: int

    def good(self, requests: Columns, now: float, owed: bool) -> bool:
        """Whether it can be used again."""
        numbers, admitted, was_owed = self.key
        return (
            now - self.at < GOOD_S
            and owed == was_owed
            and admitted == np.sum(requests.admitted)
            and np.array_equal(numbers, requests.number)
        )


def _by(column: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Rows in the order of a column."""
    return rows[np.argsort(column[rows], kind="stable")] if len(rows) > 1 else rows


class MeasuredSpeed:
    """Owns the measured speed of prompts: predicted seconds of prompt work done per second.

    Predictions assume a lone prompt. Decodes take part of every tick, so the speed can be below 1. Without decodes
    chunks are larger than predicted, so it can be above 1. Past seconds have the weight `e^(-age / MEMORY_S)`.
    """

    def __init__(self) -> None:
        self._done = self._seconds = MEMORY_S / 4  # starts as after some time at speed 1
        self._pending = 0.0
        self._now, self._newest = -math.inf, -1.0

    @property
    def expected(self) -> float:
        """Speed to count on; never above 1."""
        return min(max(SPEED_MARGIN * self._done / self._seconds, LEAST_SPEED), 1.0)

    def worked(self, seconds: float) -> None:
        """Note predicted seconds of work in a plan."""
        self._pending += seconds

    def passed(self, numbers: np.ndarray, now: float) -> float:
        """Seconds since the last call; 0 if all prompts of that call are gone: the machine may have been idle.

        `numbers` are those of the prompts that have work left, at least one.
        """
        passed = now - self._now if numbers.min() <= self._newest else 0.0
        if passed > 0:
            faded = math.exp(-passed / MEMORY_S)
            self._done = self._done * faded + self._pending
            self._seconds = self._seconds * faded + passed
        if passed > 0 or numbers.min() > self._newest:
            self._pending = 0.0
        self._now, self._newest = now, float(numbers.max())
        return passed


def on_time_together(work: np.ndarray, time: np.ndarray, cost: np.ndarray) -> np.ndarray:
    """Choose requests that all finish in time when they run one by one, earliest deadline first.

    Moore and Hodgson (1968): take them by deadline; when one would be late, set aside the most costly one so far.
    If the cost is the work, as many as possible are kept. It takes O(n log n), or one sum if all can be on time.

    Args:
        work: seconds of each, `[requests]`, in order of their deadlines.
        time: seconds to the deadline of each, at least its work.
        cost: of keeping each.

    Returns:
        Whether each is kept, `[requests]`.
    """
    kept = np.ones(len(work), bool)
    if not np.any(np.cumsum(work) > time):
        return kept
    heap: list[tuple[float, int]] = []
    busy, works = 0.0, work.tolist()
    for at, (own, until, price) in enumerate(zip(works, time.tolist(), cost.tolist(), strict=True)):
        heapq.heappush(heap, (-price, at))
        busy += own
        while busy > until and heap:
            _, dearest = heapq.heappop(heap)
            busy -= works[dearest]
            kept[dearest] = False
    return kept
