"""Pages of several KV groups: set aside, taken, shared and given back."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from medha_jax.kv.allocator import OutOfPagesError, PageAllocator
from medha_jax.kv.holding import Holding
from medha_jax.kv.host import HostIndex, HostUse
from medha_jax.kv.prefix import DigestChain, PrefixIndex
from medha_jax.plan import NO_HOST, HostTier, PageCopy
from medha_jax.specs.sizes import pages_for, parts_of


class GroupedPages:
    """The page pools of all groups.

    Pages are *set aside* for the tokens of a request that are known, and taken when they are computed. Until then the
    prefix cache uses them. What a request generates takes further pages, one at a time, if any are free.

    With the prefix cache, a request reuses filled pages of earlier requests with the same first tokens, tenant and
    salt. Pages stay in the cache until their space is needed. Then their contents go to host memory, if there is a
    host tier, and come back with `bring`. The device must carry out `take_copies` before the next chunks.

    Args:
        groups: number of groups.
        pages: pages in each group's pool.
        page_size: tokens in a page.
        per_group: tokens of one request that a group holds, a multiple of `page_size`.
        prefix_cache: whether requests share pages.
        host: of the pages that leave the prefix cache.
    """

    def __init__(
        self,
        groups: int,
        pages: int,
        page_size: int,
        per_group: int,
        *,
        prefix_cache: bool = False,
        host: HostTier = NO_HOST,
    ) -> None:
        self._pools = [PageAllocator(pages) for _ in range(groups)]
        self._indexes = [PrefixIndex(pool) for pool in self._pools] if prefix_cache else []
        self._hosts = [HostIndex(host.places) for _ in self._indexes] if host.places else []
        self._host = host
        self._copies: list[PageCopy] = []
        self._stored = self._restored = 0
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

    @property
    def shares(self) -> bool:
        """Whether requests share pages."""
        return bool(self._indexes)

    @property
    def tiered(self) -> bool:
        """Whether pages go to host memory."""
        return bool(self._hosts)

    @property
    def restore_s(self) -> float:
        """Seconds that a page takes to come back from host memory."""
        return self._host.page_s

    @property
    def host(self) -> HostUse:
        """The use of the host tier."""
        return HostUse(sum(map(len, self._hosts)), self._stored, self._restored)

    def chain(self, salt: str = "", tenant: str = "") -> DigestChain:
        """A new chain for the digests of a request's pages."""
        return DigestChain(salt, self._page_size, tenant)

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
        self,
        tokens: int,
        order: Sequence[int] | None = None,
        prompt: Sequence[int] = (),
        chain: DigestChain | None = None,
    ) -> Holding:
        """Set pages aside for the known tokens of a request.

        Args:
            tokens: tokens that will be computed for certain.
            order: groups to use, first one first; None begins with the groups that have most free pages.
            prompt: token ids to find in the prefix cache. At least the last one is left to compute.
            chain: of these ids; only requests of the same tenant and salt share pages. None: a new one without them.

        Raises:
            OutOfPagesError: too few are free now; nothing was taken.
        """
        needed, free = parts_of(tokens, self._per_group, self._page_size), self.free
        if order is None:
            order = sorted(range(len(free)), key=lambda group: -free[group])
        groups = tuple(order[: len(needed)])
        if not self._indexes:
            chain = None
        elif chain is None:
            chain = self.chain()
        adopted = np.zeros(0, np.int64)
        shared = 0
        if chain is not None and groups and needed[0] <= free[groups[0]] + self._indexes[groups[0]].in_use:
            index = self._indexes[groups[0]]
            adopted = index.find(self._digests(prompt, chain))
            # idle pages count as free, but the request cannot use them twice
            shared = len(adopted) - index.count_idle(adopted)
        lacking = [free[group] < pages for group, pages in zip(groups, (needed[0] - shared, *needed[1:]), strict=False)]
        if len(groups) < len(needed) or any(lacking):
            raise OutOfPagesError(f"{sum(needed)} pages on {len(needed)} groups asked for; free are {free}")
        if len(adopted):
            self._indexes[groups[0]].hold(adopted)
        for group, pages in zip(groups, (needed[0] - len(adopted), *needed[1:]), strict=True):
            self._aside[group] += pages
        cached = len(adopted) * self._page_size
        holding = Holding(
            groups=groups,
            pages=[adopted.tolist(), *([] for _ in groups[1:])],
            per_group=self._per_group,
            page_size=self._page_size,
            cached=cached,
            aside=pages_for(tokens, self._page_size) * self._page_size,
            taken=cached,
            chain=chain,
            published=len(adopted),
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

    def look_up(self, prompt: Sequence[int], chain: DigestChain, most: int) -> tuple[int, bool]:
        """Compute up to `most` digests of a prompt's next pages, as far as any group has its pages before.

        Returns:
            Digests that were computed, and whether they reach to the first page that no group has, or to the end.
        """
        pages, before = self._sharable(prompt), len(chain)
        done = before >= pages or not all(map(self._known, chain.between(before - 1, before)))
        if not done:
            digests = chain.extend(prompt, min(pages, before + most))
            done = not all(map(self._known, digests)) or len(chain) == pages
        return len(chain) - before, done

    def cached_prefix(
        self,
        prompt: Sequence[int],
        chain: DigestChain | None = None,
        computing: Callable[[int, int], float] | None = None,
    ) -> tuple[int, ...]:
        """For each group: tokens of the prompt that `reserve` would find cached if it began there.

        Pages in host memory count if they come back sooner than `computing(start, end)`, predicted seconds for these
        tokens. `bring` must bring them first.
        """
        if not self._indexes:
            return (0,) * len(self._pools)
        digests = self._digests(prompt, self.chain() if chain is None else chain)
        return tuple(self._found(group, digests, computing) for group in range(len(self._pools)))

    def held(self, chain: DigestChain, tokens: Sequence[int]) -> list[int]:
        """For each group: pages of its first `tokens` tokens that requests hold, so that one more needs none of them.

        `chain` is of a prompt that was looked up.
        """
        counts = []
        for index, cached in zip(self._indexes, tokens, strict=True):
            pages = index.find(chain.between(0, cached // self._page_size))
            counts.append(len(pages) - index.count_idle(pages))
        return counts

    def bring(self, group: int, chain: DigestChain, pages: tuple[int, int], most: int) -> int:
        """Bring pages of a prefix back from host memory into the prefix cache, as far as they are missing there.

        Args:
            group: to bring them to.
            chain: of a prompt that was looked up.
            pages: first page to look at, and the end of the prefix.
            most: pages to bring now.

        Returns:
            The page to go on with: the end if nothing more can be brought.
        """
        index, host = self._indexes[group], self._hosts[group]
        at, end = pages
        index.touch(chain.between(0, end))  # no page of this prefix gives way to another one of it
        wanted: list[bytes] = []
        for digest in chain.between(at, end):
            if digest not in index:
                if len(wanted) == most or digest not in host:
                    end = at if digest in host else end
                    break
                wanted.append(digest)
            at += 1
        taken = self._allocate(group, min(len(wanted), self.free[group]))
        brought = 0
        for page, digest in zip(taken, wanted, strict=False):
            if digest in host:
                self._copies.append(PageCopy(group, page, host.read(digest), False))
                brought += 1
            else:  # what was evicted for these pages has taken its place
                break
        index.release(taken[:brought], wanted[:brought])
        self._pools[group].release(taken[brought:])
        return end if brought == len(wanted) else pages[1]

    def take_copies(self) -> tuple[PageCopy, ...]:
        """Copies between devices and host since the last call, in the order in which they must be made."""
        copies, self._copies = tuple(self._copies), []
        stored = sum(copy.to_host for copy in copies)
        self._stored += stored
        self._restored += len(copies) - stored
        return copies

    def publish(self, holding: Holding, tokens: Sequence[int], computed: int) -> None:
        """Put the full, computed pages of a request's first group into the prefix cache.

        Args:
            holding: not yet released.
            tokens: ids of prompt and output; only slices not published before are read.
            computed: number of tokens whose KV is written.
        """
        if holding.chain is None:
            return
        done, full = holding.published, holding.full(computed)
        if full > done:
            chain = holding.chain
            for _ in chain.extend(tokens, full):
                pass  # only to be known
            self._indexes[holding.groups[0]].publish(holding.pages[0][done:full], chain.between(done, full))
            holding.published = full

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
            if holding.chain is not None:
                self._indexes[group].release(pages, [] if part else holding.chain.between(0, holding.published))
            else:
                self._pools[group].release(pages)

    def forget(self) -> None:
        """Empty the prefix cache and the host tier: the pools lost their contents. No request may hold pages."""
        for index in self._indexes:
            index.forget()
        for host in self._hosts:
            host.clear()
        self._copies.clear()

    def _sharable(self, prompt: Sequence[int]) -> int:
        """Pages of a prompt that it may have from the prefix cache."""
        return max(0, min(len(prompt) - 1, self._per_group)) // self._page_size

    def _known(self, digest: bytes) -> bool:
        """Whether any group has a page, on its device or in host memory."""
        return any(digest in index for index in self._indexes) or any(digest in host for host in self._hosts)

    def _digests(self, prompt: Sequence[int], chain: DigestChain) -> list[bytes]:
        """The digests of a prompt's pages, at least up to the first page that no group has."""
        pages = self._sharable(prompt)
        self.look_up(prompt, chain, pages)
        return chain.between(0, pages)

    def _found(self, group: int, digests: Sequence[bytes], computing: Callable[[int, int], float] | None) -> int:
        """Tokens of a prefix that a group has: on its device, and beyond, in host memory if it is worth bringing."""
        index = self._indexes[group]
        here = there = index.leading(digests)
        missing = 0
        for digest in digests[here:] if self._hosts and computing is not None else ():
            if digest not in index:
                if digest not in self._hosts[group]:
                    break
                missing += 1
            there += 1
        start, end = here * self._page_size, there * self._page_size
        worth = computing is not None and missing and missing * self._host.page_s < computing(start, end)
        return end if worth else start

    def _allocate(self, group: int, pages: int) -> tuple[int, ...]:
        pool = self._pools[group]
        if pages > pool.free:
            for page, digest in self._indexes[group].evict(pages - pool.free):
                place = self._hosts[group].write(digest) if self._hosts else None
                if place is not None:
                    self._copies.append(PageCopy(group, page, place, True))
        return pool.allocate(pages)
