"""Pages of several KV groups, and the order in which a request grows over the groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

from medha_jax.kv.allocator import OutOfPagesError, PageAllocator
from medha_jax.kv.prefix import PrefixIndex, page_digests, root_digest
from medha_jax.specs.sizes import pages_for, parts_of


@dataclass(frozen=True)
class Holding:
    """Pages of one request. Its j-th group holds the positions `[j M, (j + 1) M)`, M = `per_group` tokens.

    Args:
        groups: group numbers in the order of allocation.
        pages: pages in each of these groups.
        per_group: tokens of the request that one group holds.
        page_size: tokens in a page.
        cached: first tokens that earlier requests computed; they fill whole pages of the first group.
        number: unique within one `GroupedPages`.
    """

    groups: tuple[int, ...]
    pages: tuple[tuple[int, ...], ...]
    per_group: int
    page_size: int
    cached: int = 0
    number: int = -1

    @property
    def adopted(self) -> tuple[int, ...]:
        """Pages of the first group that were filled by earlier requests."""
        return self.pages[0][: self.cached // self.page_size]

    def owners(self, position: int) -> tuple[int, ...]:
        """The groups that hold positions up to `position`; the last one owns it."""
        return self.groups[: position // self.per_group + 1]

    def new_pages(self, start: int, end: int) -> tuple[int, tuple[int, ...]]:
        """Index of the first page that `[start, end)` of one group newly uses, and all such pages."""
        part = start // self.per_group
        base = part * self.per_group
        first, past = pages_for(start - base, self.page_size), pages_for(end - base, self.page_size)
        return first, self.pages[part][first:past]


class GroupedPages:
    """The page pools of all groups. All pages of a request are reserved at once, so growth cannot deadlock.

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
        self._page_size = page_size
        self._per_group = per_group
        self._numbers = count()
        # by holding: the root of its chain, then the digests of its first pages that are known
        self._chains: dict[int, list[bytes]] = {}

    @property
    def free(self) -> tuple[int, ...]:
        """Pages of each group that no request holds, including those in the prefix cache."""
        return tuple(pool.free + kept for pool, kept in zip(self._pools, self.idle, strict=True))

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
        """Take all pages of a request.

        Args:
            tokens: prompt and output tokens.
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
        adopted = tuple(page for page, _ in found)
        if adopted:
            self._indexes[groups[0]].hold(adopted)
        fresh = (needed[0] - len(adopted), *needed[1:])
        taken = [self._allocate(group, pages) for group, pages in zip(groups, fresh, strict=True)]
        number = next(self._numbers)
        self._chains[number] = chain + [digest for _, digest in found]
        return Holding(
            groups=groups,
            pages=(adopted + taken[0], *taken[1:]),
            per_group=self._per_group,
            page_size=self._page_size,
            cached=len(adopted) * self._page_size,
            number=number,
        )

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
        chain = self._chains[holding.number]
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
        chain = self._chains.pop(holding.number, None)
        if chain is None:
            raise ValueError("a page was released that nobody holds")
        for part, (group, pages) in enumerate(zip(holding.groups, holding.pages, strict=True)):
            if self._indexes:
                self._indexes[group].release(pages, [] if part else chain[1:])
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
