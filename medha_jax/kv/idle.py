"""Idle pages in the order of their last use, for thousands of pages at once."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np

NO_RUN = -1


@dataclass(slots=True)
class _Run:
    """Pages that became idle together, the last used one first; `valid` of them are still idle since then."""

    pages: list[int]
    valid: int


class IdlePages:
    """Owns the order in which pages of one pool were last used.

    Arguments are arrays int64 `[pages]`. Pages become idle in runs, those of one request at a time. So work on all
    pages of a long request is NumPy's, but for taking the oldest ones.

    Args:
        pages: of the pool.
    """

    def __init__(self, pages: int) -> None:
        self._run_of = np.full(pages, NO_RUN, np.int64)
        self._runs: OrderedDict[int, _Run] = OrderedDict()
        self._next = self._count = 0

    def __len__(self) -> int:
        return self._count

    def among(self, pages: np.ndarray) -> np.ndarray:
        """Whether each page is idle, bool `[pages]`."""
        idle: np.ndarray = self._run_of[pages] != NO_RUN
        return idle

    def add(self, pages: np.ndarray) -> None:
        """Make distinct pages the most recently used ones, the last one of them most recently."""
        if not len(pages):
            return
        self.discard(pages)
        self._run_of[pages] = self._next
        self._runs[self._next] = _Run(pages[::-1].tolist(), len(pages))
        self._next += 1
        self._count += len(pages)

    def discard(self, pages: np.ndarray) -> None:
        """Take out those of distinct pages that are idle."""
        runs = self._run_of[pages]
        self._run_of[pages] = NO_RUN
        for number, gone in zip(*np.unique(runs[runs != NO_RUN], return_counts=True), strict=True):
            self._shrink(int(number), int(gone))

    def pop(self, count: int) -> list[int]:
        """Take out the `count` least recently used pages, which must be there."""
        taken: list[int] = []
        while len(taken) < count:
            number, run = next(iter(self._runs.items()))
            page = run.pages.pop()
            if self._run_of[page] == number:
                self._run_of[page] = NO_RUN
                taken.append(page)
                self._shrink(number, 1)
        return taken

    def _shrink(self, number: int, gone: int) -> None:
        """Count pages of a run as gone; a run keeps at most as many gone pages as valid ones."""
        run = self._runs[number]
        run.valid -= gone
        self._count -= gone
        if not run.valid:
            del self._runs[number]
        elif 2 * run.valid < len(run.pages):
            mine = np.asarray(run.pages, np.int64)
            run.pages = mine[self._run_of[mine] == number].tolist()
