"""Prefixes of waiting requests that are cached: they are looked up, and come back from host memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from medha_jax.kv.groups import GroupedPages
from medha_jax.kv.prefix import DigestChain
from medha_jax.scheduler.request import WAITING, RequestState

COPY_SHARE = 0.1  # of the seconds that a slice may take, for copies beside decodes
LOOKED_UP = 512  # most pages whose digests are computed for one plan; 1 to 2 ms


@dataclass(slots=True)
class _Coming:
    """A prefix that comes back to a group: pages `[at, end)` were not looked at yet."""

    group: int
    at: int
    end: int


class CachedPrefixes:
    """Owns the prefixes that are on their way back to a device, and what may be done for them in one plan.

    A request waits until its prefix is found and on its device, so a chunk never reads a page that has not come. A plan
    looks up some pages, and copies for a part of a slice's time. All prefixes get the same share of the copies: a short
    one is soon there beside a long one. What has come is in the prefix cache, so nothing has to be undone if its
    request ends.

    Args:
        pages: the pools.
        page_size: tokens in a page.
        slice_s: seconds of a slice (`SchedulerConfig.slice_s`).
        computing: predicted seconds for the prompt tokens `[start, end)`.
    """

    def __init__(
        self, pages: GroupedPages, page_size: int, slice_s: float, computing: Callable[[int, int], float]
    ) -> None:
        self._pages, self._page_size, self._slice_s = pages, page_size, slice_s
        self._computing = computing
        self._coming: dict[RequestState, _Coming] = {}
        self._lookups = LOOKED_UP

    def begin(self, decoding: bool) -> None:
        """Begin a plan: bring pages, fewer if requests are `decoding`."""
        self._lookups = LOOKED_UP
        if not self._coming:
            return
        self._coming = {state: one for state, one in self._coming.items() if state.phase is WAITING}
        under_way = {state: one for state, one in self._coming.items() if one.at < one.end}
        pages = int(self._slice_s * (COPY_SHARE if decoding else 1) / self._pages.restore_s)
        for state, coming in under_way.items():
            self._bring(state, coming, max(1, pages // len(under_way)))

    def clear(self) -> None:
        """Forget all: the host tier has lost its contents."""
        self._coming.clear()

    def found(self, state: RequestState) -> bool:
        """Whether a waiting request's prefix has been looked up; a very long one takes several plans.

        Admitting a long one takes time as well, so a plan that looked up much of it does not do that, too.
        """
        if not self._pages.shares:
            return True
        if state.scores is not None:  # it computes every token; what it computes is for others
            if state.chain is None:
                state.find_cached(None, self._new_chain(state))
            return True
        ids, chain = state.ids(0, state.to_feed), state.chain
        if chain is None:
            chain = self._new_chain(state)
        digests, done = self._pages.look_up(ids, chain, self._lookups)
        self._lookups -= digests
        if state.cached_by_group is None or digests:
            cached = self._pages.cached_prefix(ids, chain, self._computing) if done else None
            state.find_cached(cached, chain)
        return done and digests <= LOOKED_UP // 2

    def ready(self, state: RequestState, group: int) -> bool:
        """Whether a waiting request's cached prefix is on the device that it will begin on; if not, it comes now."""
        if not self._pages.tiered or not state.cached_by_group:
            return True
        end = state.cached_by_group[group] // self._page_size
        coming = self._coming.get(state)
        if coming is None or (coming.group, coming.end) != (group, end):
            coming = _Coming(group, 0, end)
            self._bring(state, coming, 0)
            if coming.at < end:
                self._coming[state] = coming
        return coming.at == coming.end

    def _new_chain(self, state: RequestState) -> DigestChain:
        return self._pages.chain(state.request.cache_salt, state.request.tenant)

    def _bring(self, state: RequestState, coming: _Coming, most: int) -> None:
        assert state.chain is not None, "it was looked up"
        coming.at = self._pages.bring(coming.group, state.chain, (coming.at, coming.end), most)
