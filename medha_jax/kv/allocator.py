"""Pages of the KV pool: who holds which. Pure Python, no device."""

from __future__ import annotations

from collections.abc import Sequence


class OutOfPagesError(RuntimeError):
    """More pages were asked for than are free."""


def pages_for(tokens: int, page_size: int) -> int:
    """Pages that hold `tokens` tokens, e.g. 65 tokens need 2 pages of 64."""
    return -(-tokens // page_size)


class PageAllocator:
    """Hands out page numbers of one pool; the only owner of the free list.

    Args:
        pages: pages in the pool.
    """

    def __init__(self, pages: int) -> None:
        if pages < 1:
            raise ValueError(f"a pool needs at least one page, not {pages}")
        self.pages = pages
        self._free = list(range(pages - 1, -1, -1))
        self._held = bytearray(pages)

    @property
    def free(self) -> int:
        """Pages that nobody holds."""
        return len(self._free)

    def allocate(self, count: int) -> tuple[int, ...]:
        """Take `count` pages.

        Raises:
            OutOfPagesError: fewer are free; nothing was taken.
        """
        if count > len(self._free):
            raise OutOfPagesError(f"{count} pages asked for, {len(self._free)} of {self.pages} are free")
        taken = tuple(self._free.pop() for _ in range(count))
        for page in taken:
            self._held[page] = 1
        return taken

    def release(self, pages: Sequence[int]) -> None:
        """Give pages back.

        Raises:
            ValueError: a page is not held (released twice, or never allocated); nothing was released.
        """
        if len(set(pages)) != len(pages) or not all(0 <= p < self.pages and self._held[p] for p in pages):
            raise ValueError("a page was released that nobody holds")
        for page in pages:
            self._held[page] = 0
            self._free.append(page)
