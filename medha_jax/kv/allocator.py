"""The pages of one KV pool, with a count of holders for each. No device."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Pages = Sequence[int] | np.ndarray
"""Page numbers, int64 `[pages]` if they are an array."""


class OutOfPagesError(RuntimeError):
    """A request needs more pages than are free."""


class PageAllocator:
    """Allocates page numbers of one pool. Owns the free list and the reference counts.

    Args:
        pages: size of the pool.
    """

    def __init__(self, pages: int) -> None:
        if pages < 1:
            raise ValueError(f"a pool needs at least one page, not {pages}")
        self.pages = pages
        self._free = list(range(pages - 1, -1, -1))
        self._holders = np.zeros(pages, np.int32)
        self._last_at = np.zeros(pages, np.int64)  # scratch

    @property
    def free(self) -> int:
        """Pages without holders."""
        return len(self._free)

    def holders(self, pages: Pages) -> np.ndarray:
        """Holders of each page, int32 `[pages]`."""
        return self._holders[np.asarray(pages, np.int64)]

    def allocate(self, count: int) -> tuple[int, ...]:
        """Take `count` pages, each with one holder.

        Raises:
            OutOfPagesError: fewer are free; nothing was taken.
        """
        if count > len(self._free):
            raise OutOfPagesError(f"{count} pages asked for, {len(self._free)} of {self.pages} are free")
        first = len(self._free) - count
        taken = tuple(reversed(self._free[first:]))
        del self._free[first:]
        self._holders[np.asarray(taken, np.int64)] = 1
        return taken

    def share(self, pages: Pages) -> None:
        """Give each page one more holder.

        Raises:
            ValueError: a page is not held; nothing was changed.
        """
        self._holders[self._held(pages, "shared")] += 1

    def release(self, pages: Pages) -> None:
        """Take one holder from each page; a page without holders becomes free.

        Raises:
            ValueError: a page is not held (released twice, or never allocated); nothing was released.
        """
        held = self._held(pages, "released")
        self._holders[held] -= 1
        self._free.extend(held[self._holders[held] == 0].tolist())

    def _held(self, pages: Pages, verb: str) -> np.ndarray:
        """The pages as indices. All must be distinct and held."""
        held, places = np.asarray(pages, np.int64), np.arange(len(pages))
        known = ((held >= 0) & (held < self.pages)).all()
        if known:
            self._last_at[held] = places  # of a page that is there twice, only one place stays
        if not known or (self._holders[held] < 1).any() or (self._last_at[held] != places).any():
            raise ValueError(f"a page was {verb} that nobody holds")
        return held
