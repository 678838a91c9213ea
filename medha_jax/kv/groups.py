"""Pages of several KV groups, and how a request grows over pages and groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from medha_jax.kv.allocator import OutOfPagesError, PageAllocator
from medha_jax.kv.prefix import PrefixIndex, page_digests, root_digest
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
        chain: the root of its digests, then those of its first pages that are known; empty without the prefix cache.
    """

    groups: tuple[int, ...]
    pages: list[list[int]]
    per_group: int
    page_size: int
    cached: int = 0
    aside: int = 0
    taken: int = 0
    chain: list[bytes] = field(default_factory=list)

    @property
    def adopted(self) -> tuple[int, ...]:
        """Pages of the first group that were filled by earlier requests."""
        return tuple(self.pages[0][: self.cached // self.page_size])

    @property
    def owned(self) -> tuple[int, ...]:
        """Pages of each of its groups that it has or that are set aside for it."""
        parts = parts_of(self.aside, self.per_group, self.page_size)
        return parts + (0,) * (len(self.groups) - len(parts))

    def owners(self, position: int) -> tuple[int, ...]:
        """The groups that hold positions up to `position`; the last one owns it."""
        return self.groups[: position // self.per_group + 1]

    def new_pages(self, start: int, end: int) -> tuple[int, tuple[int, ...]]:
        """Index of the first page that `[start, end)` of one group newly uses, and all such pages."""
        part = start // self.per_group
        base = part * self.per_group
        first, past = pages_for(start - base, self.page_size), pages_for(end - base, self.page_size)
        return first, tuple(self.pages[part][first:past])


class GroupedPages:
    """The page pools of all groups.

    Pages are *set aside* for the tokens of a request that are known, and taken when they are computed. Until then the
    prefix cache uses them. What a request generates takes further pages, one at a time, if any are free.

    With the prefix cache, a request reuses filled pages of earlier requests with the same first tokens and the same
    salt. Pages stay in the cache until their space is needed.

    Args:
        groups: number of groups.
        pages: pages in each group's pool.
        page_size: tokens in a page.
        per_group: tokens of one request that a group holds, a multiple of `page_size`.
        prefix_cache: whether requests share pages.
    """

    def __init__(self, groups: int, pages: int, page_size: int, per_group: int, *, prefix_cache: bool = False) -> None:
        self._pools = [PageAllocator(pages) for _ in range(groups)]
        self._indexes = [PrefixIndex(pool) for pool in self._pools] if prefix_cache else []
        self._aside = [0] * groups  # pages that are set aside and not taken
        self._page_size = page_size
        self._per_group = per_group
        self._holdings: set[Holding] = set()

    @property
    def free(self) -> tuple[int, ...]:
        """Pages of each group that no request has or may take; those in the prefix cache are among them."""
        rows = zip(self._pools, self.idle, self._aside, strict=True)
        return tuple(pool.free + kept - aside for pool, kept, aside in rows)

    @property
    def idle(self) -> tuple[int, ...]:
        """Pages of each group that only the prefix cache holds."""
        return tuple(index.idle for index in self._indexes) if self._indexes else (0,) * len(self._pools)

    def check(self, tokens: int) -> None:
        """Check that a request of `tokens` tokens could run on empty pools.

        Raises:
            OutOfPagesError: it never fits.
        """
        needed = parts_of(tokens, self._per_group, self._page_size)
        if len(needed) > len(self._pools):
            raise OutOfPagesError(
                f"{tokens} tokens need {len(needed)} KV groups of {self._per_group} tokens; "
                f"there are {len(self._pools)}"
            )
        if max(needed) > self._pools[0].pages:
            raise OutOfPagesError(f"{tokens} tokens need {max(needed)} KV pages; the pool has {self._pools[0].pages}")

    def reserve(
        self, tokens: int, order: Sequence[int] | None = None, prompt: Sequence[int] = (), salt: str = ""
    ) -> Holding:
        """Set pages aside for the known tokens of a request.

        Args:
            tokens: tokens that will be computed for certain.
            order: groups to use, first one first; None begins with the groups that have most free pages.
            prompt: token ids to find in the prefix cache. At least the last one is left to compute.
            salt: only requests with the same salt share pages.

        Raises:
            OutOfPagesError: too few are free now; nothing was taken.
        """
        needed, free = parts_of(tokens, self._per_group, self._page_size), self.free
        if order is None:
            order = sorted(range(len(free)), key=lambda group: -free[group])
        groups = tuple(order[: len(needed)])
        chain = [root_digest(salt)] if self._indexes else []
        found: list[tuple[int, bytes]] = []
        shared = 0
        if chain and groups and needed[0] <= free[groups[0]] + self._indexes[groups[0]].in_use:
            found = self._find(groups[0], prompt, chain[0])
            # idle pages count as free, but the request cannot use them twice
            shared = len(found) - self._indexes[groups[0]].count_idle(page for page, _ in found)
        lacking = [free[group] < pages for group, pages in zip(groups, (needed[0] - shared, *needed[1:]), strict=False)]
        if len(groups) < len(needed) or any(lacking):
            raise OutOfPagesError(f"{sum(needed)} pages on {len(needed)} groups asked for; free are {free}")
        adopted = [page for page, _ in found]
        if adopted:
            self._indexes[groups[0]].hold(adopted)
        for group, pages in zip(groups, (needed[0] - len(adopted), *needed[1:]), strict=True):
            self._aside[group] += pages
        cached = len(adopted) * self._page_size
        holding = Holding(
            groups=groups,
            pages=[adopted, *([] for _ in groups[1:])],
            per_group=self._per_group,
            page_size=self._page_size,
            cached=cached,
            aside=pages_for(tokens, self._page_size) * self._page_size,
            taken=cached,
            chain=chain + [digest for _, digest in found],
        )
        self._holdings.add(holding)
        return holding

    def lacking(self, holding: Holding, tokens: int) -> dict[int, int]:
        """Further pages by group that `extend` to `tokens` tokens needs; parts without a group are left out."""
        new = parts_of(tokens, self._per_group, self._page_size)
        more = zip(holding.groups, new, holding.owned, strict=False)
        return {group: pages - owned for group, pages, owned in more if pages > owned}

    def join(self, holding: Holding, group: int) -> None:
        """Give the next part of a request to another group."""
        holding.groups += (group,)
        holding.pages.append([])

    def extend(self, holding: Holding, tokens: int) -> bool:
        """Set pages aside for up to `tokens` tokens of a request on its groups; False if too few are free."""
        lacking = self.lacking(holding, tokens)
        free = self.free
        if any(free[group] < pages for group, pages in lacking.items()):
            return False
        for group, pages in lacking.items():
            self._aside[group] += pages
        holding.aside = max(holding.aside, pages_for(tokens, self._page_size) * self._page_size)
        return True

    def take(self, holding: Holding, end: int) -> None:
        """Take the pages of a request's tokens before `end`; they must be set aside."""
        assert end <= holding.aside
        while holding.taken < end:
            part, done = divmod(holding.taken, self._per_group)
            count = pages_for(min(end - holding.taken, self._per_group - done), self._page_size)
            holding.pages[part] += self._allocate(holding.groups[part], count)
            self._aside[holding.groups[part]] -= count
            holding.taken += count * self._page_size

    def cached_prefix(self, prompt: Sequence[int], salt: str = "") -> tuple[int, ...]:
        """For each group: tokens of the prompt that `reserve` would find cached if it began there."""
        if not self._indexes:
            return (0,) * len(self._pools)
        root = root_digest(salt)
        groups = range(len(self._pools))
        return tuple(len(self._find(group, prompt, root)) * self._page_size for group in groups)

    def publish(self, holding: Holding, tokens: Sequence[int], computed: int) -> None:
        """Put the full, computed pages of a request's first group into the prefix cache.

        Args:
            holding: not yet released.
            tokens: ids of prompt and output; only slices not published before are read.
            computed: number of tokens whose KV is written.
        """
        if not self._indexes:
            return
        chain = holding.chain
        done = len(chain) - 1
        full = min(computed, self._per_group) // self._page_size
        if full <= done:
            return
        digests = list(page_digests(tokens, done, full, self._page_size, chain[-1]))
        self._indexes[holding.groups[0]].publish(holding.pages[0][done:full], digests)
        chain.extend(digests)

    def release(self, holding: Holding) -> None:
        """Return all pages of a request.

        Raises:
            ValueError: it was already released.
        """
        if holding not in self._holdings:
            raise ValueError("a page was released that nobody holds")
        self._holdings.remove(holding)
        for part, (group, pages, owned) in enumerate(zip(holding.groups, holding.pages, holding.owned, strict=True)):
            self._aside[group] -= owned - len(pages)
            if self._indexes:
                self._indexes[group].release(pages, [] if part else holding.chain[1:])
            else:
                self._pools[group].release(pages)

    def forget(self) -> None:
        """Empty the prefix cache: the pools lost their contents. No request may hold pages."""
        for index in self._indexes:
            index.forget()

    def _find(self, group: int, prompt: Sequence[int], root: bytes) -> list[tuple[int, bytes]]:
        pages = max(0, min(len(prompt) - 1, self._per_group)) // self._page_size
        return self._indexes[group].find(page_digests(prompt, 0, pages, self._page_size, root))

    def _allocate(self, group: int, pages: int) -> tuple[int, ...]:
        pool = self._pools[group]
        if pages > pool.free:
            self._indexes[group].evict(pages - pool.free)
        return pool.allocate(pages)
