"""Pages of several KV groups: which groups hold a request, in the order in which it grows over them."""

from __future__ import annotations

from dataclasses import dataclass

from medha_jax.kv.allocator import OutOfPagesError, PageAllocator, pages_for


@dataclass(frozen=True)
class Holding:
    """Pages of one request: its j-th group holds the positions `[j M, (j + 1) M)`, M = `per_group` tokens.

    The order is that of allocation, not of group numbers.
    """

    groups: tuple[int, ...]
    pages: tuple[tuple[int, ...], ...]
    per_group: int
    page_size: int

    def owners(self, position: int) -> tuple[int, ...]:
        """The groups that hold the request up to `position`; the last one owns that position."""
        return self.groups[: position // self.per_group + 1]

    def border(self, position: int) -> int:
        """Tokens from `position` to the end of its owner's part."""
        return self.per_group - position % self.per_group

    def new_pages(self, start: int, end: int) -> tuple[int, tuple[int, ...]]:
        """Pages that the positions `[start, end)` of one group are the first to use, and the index of the first."""
        part = start // self.per_group
        base = part * self.per_group
        first, past = pages_for(start - base, self.page_size), pages_for(end - base, self.page_size)
        return first, self.pages[part][first:past]


class GroupedPages:
    """The page pools of all groups; everything a request may grow to is reserved at once, so growth cannot deadlock.

    Args:
        groups: how many.
        pages: in each group's pool.
        page_size: tokens in a page.
        per_group: tokens of one request that a group holds.
    """

    def __init__(self, groups: int, pages: int, page_size: int, per_group: int) -> None:
        self._pools = [PageAllocator(pages) for _ in range(groups)]
        self._page_size = page_size
        self._per_group = per_group

    @property
    def free(self) -> tuple[int, ...]:
        """Free pages of each group."""
        return tuple(pool.free for pool in self._pools)

    def check(self, tokens: int) -> None:
        """Check that a request of `tokens` tokens could run on empty pools.

        Raises:
            OutOfPagesError: it never fits; the message has the numbers.
        """
        needed = self._parts(tokens)
        if len(needed) > len(self._pools):
            raise OutOfPagesError(
                f"{tokens} tokens need {len(needed)} KV groups of {self._per_group} tokens; "
                f"there are {len(self._pools)}"
            )
        if max(needed) > self._pools[0].pages:
            raise OutOfPagesError(f"{tokens} tokens need {max(needed)} KV pages; the pool has {self._pools[0].pages}")

    def reserve(self, tokens: int) -> Holding:
        """Take the pages of a request, on the groups with most free pages first.

        Raises:
            OutOfPagesError: not enough are free now; nothing was taken.
        """
        needed = self._parts(tokens)
        order = sorted(range(len(self._pools)), key=lambda group: -self._pools[group].free)[: len(needed)]
        if len(order) < len(needed) or any(self._pools[g].free < n for g, n in zip(order, needed, strict=True)):
            raise OutOfPagesError(f"{sum(needed)} pages on {len(needed)} groups asked for; free are {self.free}")
        pages = tuple(self._pools[group].allocate(count) for group, count in zip(order, needed, strict=True))
        return Holding(tuple(order), pages, self._per_group, self._page_size)

    def release(self, holding: Holding) -> None:
        """Give all pages of a request back."""
        for group, pages in zip(holding.groups, holding.pages, strict=True):
            self._pools[group].release(pages)

    def _parts(self, tokens: int) -> list[int]:
        starts = range(0, tokens, self._per_group)
        return [pages_for(min(self._per_group, tokens - start), self._page_size) for start in starts]
