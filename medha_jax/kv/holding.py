"""The pages of one request, and how it grows over pages and groups."""

from __future__ import annotations

from dataclasses import dataclass

from medha_jax.kv.prefix import DigestChain
from medha_jax.specs.sizes import pages_for, parts_of


@dataclass(slots=True, eq=False)
class Holding:
    """Pages of one request. Its j-th group holds the positions `[j M, (j + 1) M)`, M = `per_group` tokens.

    Only its `GroupedPages` changes it.

    Args:
        groups: group numbers in the order of its parts.
        pages: pages in each of these groups, and room for those that are set aside.
        per_group: tokens of the request that one group holds.
        page_size: tokens in a page.
        cached: first tokens that earlier requests computed; they fill whole pages of the first group.
        aside: tokens that its pages hold, with those that are set aside.
        taken: tokens that its pages hold.
        chain: the digests of its pages; None without the prefix cache.
        published: its first pages that the prefix cache knows.
    """

    groups: tuple[int, ...]
    pages: list[list[int]]
    per_group: int
    page_size: int
    cached: int = 0
    aside: int = 0
    taken: int = 0
    chain: DigestChain | None = None
    published: int = 0

    @property
    def adopted(self) -> tuple[int, ...]:
        """Pages of the first group that were filled by earlier requests."""
        return tuple(self.pages[0][: self.cached // self.page_size])

    @property
    def owned(self) -> tuple[int, ...]:
        """Pages of each of its groups that it has or that are set aside for it."""
        parts = parts_of(self.aside, self.per_group, self.page_size)
        return parts + (0,) * (len(self.groups) - len(parts))

    def full(self, computed: int) -> int:
        """Pages of its first group that `computed` tokens fill."""
        return min(computed, self.per_group) // self.page_size

    def owners(self, position: int) -> tuple[int, ...]:
        """The groups that hold positions up to `position`; the last one owns it."""
        return self.groups[: position // self.per_group + 1]

    def new_pages(self, start: int, end: int) -> tuple[int, tuple[int, ...]]:
        """Index of the first page that `[start, end)` of one group newly uses, and all such pages."""
        part = start // self.per_group
        base = part * self.per_group
        first, past = pages_for(start - base, self.page_size), pages_for(end - base, self.page_size)
        return first, tuple(self.pages[part][first:past])
