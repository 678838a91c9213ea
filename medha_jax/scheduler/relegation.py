"""RED: relegation, and the earliest deadline first among those that can be on time. A policy with a memory."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from medha_jax.scheduler.feasible import on_time_together
from medha_jax.scheduler.policy import LEAST_WORK_S, NOBODY, Columns
from medha_jax.scheduler.speed import Speed

GAP = 0.25  # of the slack of all before it, that a request which goes first may use up
LEAST_GAP_S = 0.05  # slack from which on there is such a gap
DEAREST_TOKENS = 1e5  # shorter requests do not become cheaper to keep, so that long ones are set aside first
ADVANCE_S = 10.0  # work done for the oldest relegated request without need, that is taken off later
GOOD_S = 0.05  # an order stays good for so long while nobody comes, goes or is admitted
NONE = -1.0


class Relegation:
    """Serves those who can be on time as if there were nobody else, and all others within a bound.

    A request that could not be on time any more even at the predicted speed is *relegated*, for good. Of the others
    as many as possible are kept *on time* (`feasible`, at the speed that was measured); the rest is *aside* and may
    come back. The order is:

    1. the oldest relegated request, if the relegated are owed service;
    2. short relegated ones that delay nobody who is on time;
    3. those on time, earliest deadline first, but before them those whose work fits the slack of everybody before
       them, shortest first;
    4. those aside, shortest remaining time first;
    5. the relegated, the one first that has waited longest for its work.

    *Owed*: the relegated get a share φ of the time. While there are any, φ seconds of credit a second are added, and
    what is done for the oldest is taken off, in predicted seconds of work; it goes first while there is credit. The
    oldest is the first to have arrived when the one before was done, and stays it to its end; it keeps its pages.

    **Bound.** Where the request that goes first gets at least ω predicted seconds of work done in a second of ticks
    (the rest is for decodes), the first token of a request comes within

        D + T + (W + F) / min(φ, ω) + N A + p T

    seconds of its arrival. D is its own deadline, W the work of the N requests that came before it and are not done,
    of the longest one, and of its own; F is `ADVANCE_S`, T the longest tick, p the stages, and A the longest time that
    a request waits for pages once nobody else is admitted. Proof: by D + T it is relegated or has its prompt behind it.
    Those that can be the oldest before it are the one that is, and those that came before it; each is so once, so W + F
    is all that can be taken off. So after (W + F) / φ there is credit at every moment until it is done. Let t be the
    last moment before that without credit, and w the work taken off until t: then w + F >= φ t, and after t the
    oldest goes first, and the work that is left takes (W - w) / ω, and the waits for pages. The sum is largest with
    w = W, or with w = 0, F = 0: it is at most (W + F) / min(φ, ω) + N A + T. None of these depends on how much work
    comes later.

    From: Moore and Hodgson 1968; relegation as in Niyama (arXiv 2503.22562), there without a bound.

    Args:
        share: φ, above 0 and below 1.
        tokens: KV that relegated prompts keep, beside the oldest; those with the least work done lose theirs beyond it.
        long_tokens: requests with fewer are short.
    """

    paces = True

    def __init__(self, share: float, tokens: float, long_tokens: int) -> None:
        self._share, self._most, self._long = share, tokens, long_tokens
        self._speed = Speed()
        self._relegated = NOBODY  # numbers
        self._oldest = NONE
        self._credit = 0.0
        self._made: _Made | None = None

    def order(self, requests: Columns, now: float) -> np.ndarray:
        """As above; relegated requests whose pages would be too many have an infinite priority."""
        if not len(requests.number):
            return NOBODY
        passed = self._speed.passed(requests.number, now)
        if len(self._relegated):
            self._credit += self._share * passed
        owed = self._credit > 0
        made = self._made
        if made is None or not made.good(requests, now, owed):
            made = self._made = self._make(requests, now, owed)
        return made.priorities

    def urgency(self, requests: Columns, now: float) -> np.ndarray:
        """Relegated ones give way to all that are not, those aside to those on time, and all to the oldest.

        Nobody gives way to his like: work would be lost and nothing won. The oldest and decodes keep their pages.
        """
        made, number = self._made, requests.number
        found = np.full(len(number), -math.inf)
        if made is None:
            return found
        found[np.isin(number, made.on_time)] = -0.5  # behind the oldest, before everybody else
        found[np.isin(number, made.aside)] = made.first_aside - 0.5
        found[np.isin(number, self._relegated)] = made.first_relegated - 0.5
        found[number == self._oldest] = -math.inf
        return found

    def served(self, number: int, seconds: float) -> None:
        """Measures the speed, and takes it off the credit if it was done for the oldest."""
        self._speed.worked(seconds)
        if number == self._oldest:
            self._credit = max(self._credit - seconds, -ADVANCE_S)

    def surplus(self, requests: Columns) -> np.ndarray:
        """The relegated with the least work done, as many as hold more than they all may."""
        if not len(self._relegated):
            return NOBODY
        holds = requests.admitted & np.isin(requests.number, self._relegated) & (requests.number != self._oldest)
        rows = np.flatnonzero(holds)
        over = requests.tokens[rows].sum() - self._most
        if over <= 0:
            return NOBODY
        rows = rows[np.argsort((requests.total - requests.remaining)[rows], kind="stable")]
        enough = int(np.searchsorted(np.cumsum(requests.tokens[rows]), over))
        return requests.number[rows[: enough + 1]]

    def _make(self, requests: Columns, now: float, owed: bool) -> _Made:
        """The order, from scratch."""
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
        borders = []
        for rows in (
            oldest,
            _by(work, brief),
            _by(work, kept[fits]),
            kept[~fits],
            _by(work, aside),
            _by(-waited, np.setdiff1d(behind, brief, assume_unique=True)),
        ):
            borders.append(place)
            rows = rows[priorities[rows] == math.inf]  # the oldest stands first, and nowhere else
            priorities[rows] = np.arange(place, place + len(rows))
            place += len(rows)
        number = requests.number
        key = number.copy(), int(np.sum(requests.admitted)), owed
        return _Made(key, now, priorities, number[kept], number[aside], borders[4], borders[5])

    def _relegate(self, requests: Columns, left: np.ndarray) -> np.ndarray:
        """Who is relegated, `[requests]`; those that have gone are forgotten."""
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
        """Of some rows those that can be on time together, by deadline."""
        rows = _by(left, rows)
        cost = work[rows] / np.sqrt(np.maximum(requests.tokens[rows], DEAREST_TOKENS))
        return rows[on_time_together(work[rows], left[rows], cost)]

    def _allowed(self, requests: Columns, late: np.ndarray) -> np.ndarray:
        """Rows of relegated requests, without those whose pages would be more than the relegated may keep."""
        tokens, admitted = requests.tokens[late], requests.admitted[late]
        oldest = requests.number[late] == self._oldest
        held = tokens[admitted & ~oldest].sum()
        return late[admitted | oldest | (held + tokens <= self._most)]


@dataclass(frozen=True)
class _Made:
    """An order that was made.

    Args:
        key: numbers of its requests, how many were admitted, and whether the oldest was owed service.
        at: when, in seconds.
        priorities: of the requests, `[requests]`.
        on_time, aside: numbers.
        first_aside, first_relegated: priorities at which these begin.
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
