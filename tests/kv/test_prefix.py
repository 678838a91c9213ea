from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from medha_jax.kv.allocator import OutOfPagesError
from medha_jax.kv.groups import GroupedPages, Holding
from medha_jax.kv.prefix import page_digests, root_digest

PAGE, PER_GROUP = 4, 16
prompts = st.lists(st.integers(0, 1), min_size=1, max_size=24)


@dataclass
class Request:
    """One request of the test: `tokens` of prompt and output, of which `computed` are written."""

    holding: Holding
    tokens: list[int]
    salt: str
    computed: int


class SharedPages(RuleBasedStateMachine):
    """Requests of two tenants come, compute and go; the test writes down what stands in every page."""

    @initialize(groups=st.integers(1, 3), pages=st.integers(1, 8))
    def start(self, groups: int, pages: int) -> None:
        self.groups, self.pages = groups, pages
        self.pools = GroupedPages(groups, pages, PAGE, PER_GROUP, prefix_cache=True)
        self.running: list[Request] = []
        self.written: dict[tuple[int, int], tuple[str, list[int]]] = {}

    @rule(prompt=prompts, output=st.integers(1, 9), salt=st.sampled_from(["", "a"]), order=st.none() | st.just(1))
    def reserve(self, prompt: list[int], output: int, salt: str, order: int | None) -> None:
        tokens, free = len(prompt) + output, self.pools.free
        groups = None if order is None else list(reversed(range(self.groups)))
        found = self.pools.cached_prefix(prompt, salt)
        try:
            holding = self.pools.reserve(tokens, groups, prompt, salt)
        except OutOfPagesError:
            assert self.pools.free == free
            return
        assert holding.cached == found[holding.groups[0]]
        assert holding.cached % PAGE == 0
        assert holding.cached <= min(len(prompt) - 1, PER_GROUP)
        for number, page in enumerate(holding.adopted):
            assert self.written[holding.groups[0], page] == (salt, prompt[: (number + 1) * PAGE])
        self.running.append(Request(holding, prompt + [7] * output, salt, holding.cached))
        needed = [-(-min(PER_GROUP, tokens - start) // PAGE) for start in range(0, tokens, PER_GROUP)]
        assert list(holding.owned) == needed

    @rule(which=st.integers(0, 99), more=st.integers(1, 20))
    def grow(self, which: int, more: int) -> None:
        """A request generates tokens that it has no pages for; its groups are joined in ascending order."""
        if not self.running:
            return
        request = self.running[which % len(self.running)]
        holding, free, tokens = request.holding, self.pools.free, len(request.tokens) + more
        others = [group for group in range(self.groups) if group not in holding.groups]
        if tokens > PER_GROUP * self.groups:
            return
        while len(holding.groups) * PER_GROUP < tokens:
            self.pools.join(holding, others.pop(0))
        lacking = self.pools.lacking(holding, tokens)
        fits = all(free[group] >= pages for group, pages in lacking.items())
        assert self.pools.extend(holding, tokens) == fits
        if fits:
            request.tokens += [8] * more
            assert sum(free) - sum(self.pools.free) == sum(lacking.values())
        else:
            assert self.pools.free == free

    @rule(which=st.integers(0, 99), more=st.integers(1, 20), told=st.booleans())
    def compute(self, which: int, more: int, told: bool) -> None:
        if not self.running:
            return
        request = self.running[which % len(self.running)]
        done, holding = request.computed, request.holding
        request.computed = min(done + more, len(request.tokens))
        free = self.pools.free
        self.pools.take(holding, request.computed)
        assert self.pools.free == free, "its pages were set aside"
        assert sum(map(len, holding.pages)) == sum(
            -(-min(PER_GROUP, holding.taken - start) // PAGE) for start in range(0, holding.taken, PER_GROUP)
        )
        for end in range((done // PAGE + 1) * PAGE, min(request.computed, PER_GROUP) + 1, PAGE):
            page = holding.pages[0][end // PAGE - 1]
            self.written[holding.groups[0], page] = (request.salt, request.tokens[:end])
        if told:
            self.pools.publish(holding, request.tokens, request.computed)

    @rule(which=st.integers(0, 99))
    def release(self, which: int) -> None:
        if self.running:
            self.pools.release(self.running.pop(which % len(self.running)).holding)

    @invariant()
    def every_page_is_accounted_for(self) -> None:
        if not hasattr(self, "pools"):
            return
        held: Counter[tuple[int, int]] = Counter()
        alone: set[tuple[int, int]] = set()
        for request in self.running:
            for part, (group, pages) in enumerate(zip(request.holding.groups, request.holding.pages, strict=True)):
                assert len(set(pages)) == len(pages)
                held.update((group, page) for page in pages)
                # what a request may still write is its own
                first = request.computed // PAGE if part == 0 else 0
                mine = {(group, page) for page in pages[first:]}
                assert not mine & alone
                alone |= mine
        assert all(held[page] == 1 for page in alone)
        for group in range(self.groups):
            index = self.pools._indexes[group]
            counts = self.pools._pools[group].holders(range(self.pages)).tolist()
            known = set(index._page.values())
            assert counts == [held[group, page] + (page in known) for page in range(self.pages)]
            assert {page for page in known if not held[group, page]} == set(index._idle)
            aside = 0
            for request in self.running:
                rows = zip(request.holding.groups, request.holding.pages, request.holding.owned, strict=True)
                aside += sum(owned - len(pages) for at, pages, owned in rows if at == group)
            assert self.pools.free[group] == sum(not held[group, page] for page in range(self.pages)) - aside >= 0


SharedPages.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestSharedPages = SharedPages.TestCase


def pool(pages: int = 8, groups: int = 1) -> GroupedPages:
    return GroupedPages(groups, pages, PAGE, 2**30, prefix_cache=True)


def held(
    pools: GroupedPages, tokens: int, order: list[int] | None = None, prompt: Sequence[int] = (), salt: str = ""
) -> Holding:
    """A request that has all pages of its tokens."""
    holding = pools.reserve(tokens, order, prompt, salt)
    pools.take(holding, tokens)
    return holding


def run(pools: GroupedPages, prompt: list[int], salt: str = "") -> Holding:
    """A request that computes its prompt, and ends."""
    holding = held(pools, len(prompt) + 1, prompt=prompt, salt=salt)
    pools.publish(holding, prompt, len(prompt))
    pools.release(holding)
    return holding


def test_a_repeated_prompt_finds_its_pages_but_not_its_last_token() -> None:
    pools, prompt = pool(), list(range(8))
    first = run(pools, prompt)
    assert (first.cached, pools.free) == (0, (8,))
    again = held(pools, 12, prompt=prompt)
    assert again.cached == 4  # 8 would leave nothing to compute
    assert again.adopted == tuple(first.pages[0][:1])
    longer = held(pools, 12, prompt=[*prompt, 99])
    assert longer.cached == 8
    assert longer.adopted == tuple(first.pages[0][:2])
    assert longer.new_pages(longer.cached, 9) == (2, tuple(longer.pages[0][2:3]))
    assert pools.free == (8 - 2 - 2 - 1,)  # the first page is shared by both, the second held by one
    pools.release(again)
    pools.release(longer)
    assert pools.free == (8,)


def test_only_computed_full_pages_are_found() -> None:
    pools, prompt = pool(), list(range(8))
    holding = held(pools, 12, prompt=prompt)
    assert pools.cached_prefix([*prompt, 1]) == (0,)
    pools.publish(holding, prompt, 3)
    assert pools.cached_prefix([*prompt, 1]) == (0,)
    pools.publish(holding, prompt, 7)
    assert pools.cached_prefix([*prompt, 1]) == (4,)
    pools.publish(holding, [*prompt, 30, 31, 32, 33], 12)
    assert pools.cached_prefix([*prompt, 30, 31, 32, 33, 1]) == (12,)
    assert pools.cached_prefix([*prompt, 30, 31, 32, 34, 1]) == (8,)
    assert pools.cached_prefix([5, *prompt[1:], 1]) == (0,)


def test_tenants_do_not_see_each_others_pages() -> None:
    pools, prompt = pool(), list(range(9))
    run(pools, prompt, "one")
    assert pools.cached_prefix(prompt, "two") == (0,)
    assert pools.cached_prefix(prompt, "one") == (8,)
    assert held(pools, 10, prompt=prompt, salt="two").cached == 0


def test_the_least_recently_used_prefix_goes_first_and_from_its_end() -> None:
    pools = pool(pages=7)
    old, new = list(range(9)), list(range(50, 59))
    run(pools, old)
    run(pools, new)
    run(pools, old)  # used again, so `new` is older now
    assert pools.cached_prefix(old) == pools.cached_prefix(new) == (8,)
    held(pools, 4 * PAGE)
    assert (pools.cached_prefix(old), pools.cached_prefix(new)) == ((8,), (4,))
    held(pools, PAGE)
    assert (pools.cached_prefix(old), pools.cached_prefix(new)) == ((8,), (0,))
    held(pools, PAGE)
    assert pools.cached_prefix(old) == (4,)
    held(pools, PAGE)
    assert (pools.cached_prefix(old), pools.free) == ((0,), (0,))


def test_two_that_compute_the_same_at_once_keep_one_page_known_and_both_are_in_use() -> None:
    pools, prompt = pool(pages=6), list(range(8))
    one, two = (held(pools, 8, prompt=prompt) for _ in range(2))
    pools.publish(one, prompt, 8)
    pools.publish(two, [*prompt[:4], 5, 5, 5, 5], 8)  # as if it went on differently
    pools.release(one)
    pools.release(two)
    # the first page of both is `one`'s; its use by `two` counts, so it outlives the pages that follow it
    assert pools.free == (6,)
    held(pools, 5 * PAGE)
    assert pools.cached_prefix([*prompt, 1]) == (4,)


def test_a_known_prefix_that_went_while_its_twin_ran_is_known_again() -> None:
    pools, prompt = pool(pages=4), list(range(8))
    one, two = (held(pools, 8, prompt=prompt) for _ in range(2))
    pools.publish(one, prompt, 8)
    pools.publish(two, prompt, 8)
    pools.release(one)
    other = held(pools, 8)  # takes the place of `one`'s pages, which were the known ones
    assert pools.cached_prefix([*prompt, 1]) == (0,)
    pools.release(two)
    assert pools.cached_prefix([*prompt, 1]) == (8,)
    pools.release(other)
    assert pools.free == (4,)


def test_idle_pages_are_not_counted_twice() -> None:
    """A prompt that needs all pages of the pool may reuse some: they cannot give way to themselves."""
    pools, prompt = pool(pages=4), list(range(9))
    run(pools, prompt)
    other = held(pools, 8)
    with pytest.raises(OutOfPagesError):
        held(pools, 16, prompt=prompt)
    assert pools.free == (2,)
    pools.release(other)
    assert held(pools, 16, prompt=prompt).cached == 8
    with pytest.raises(OutOfPagesError):
        held(pools, 1)


def test_a_holding_is_released_once() -> None:
    pools = pool()
    holding = run(pools, list(range(9)))
    held(pools, 9, prompt=list(range(9)))
    with pytest.raises(ValueError, match="nobody holds"):
        pools.release(holding)


def test_each_group_has_its_own_pages() -> None:
    pools, prompt = pool(groups=2), list(range(9))
    holding = held(pools, 9, [1, 0], prompt)
    pools.publish(holding, prompt, 9)
    assert holding.groups == (1,)
    assert pools.cached_prefix(prompt) == (0, 8)
    assert held(pools, 9, [0], prompt).cached == 0
    assert held(pools, 9, [1], prompt).cached == 8


def test_without_the_cache_nothing_is_shared() -> None:
    pools, prompt = GroupedPages(1, 8, PAGE, 2**30), list(range(9))
    run(pools, prompt)
    assert pools.cached_prefix(prompt) == (0,)
    assert held(pools, 9, prompt=prompt).cached == 0


def test_the_groups_that_were_chosen_are_taken_in_their_order() -> None:
    pools = GroupedPages(3, 4, PAGE, PER_GROUP)
    held(pools, 8, [1])
    assert held(pools, 24, [2, 1]).groups == (2, 1)
    with pytest.raises(OutOfPagesError):
        held(pools, 4, [1, 0])
    with pytest.raises(OutOfPagesError):
        held(pools, 17, [0])
    assert pools.free == (4, 0, 0)


@pytest.mark.parametrize("kind", [tuple, list, np.array])
def test_a_digest_covers_everything_before_it_whatever_holds_the_tokens(kind: type) -> None:
    tokens, root = range(0, 4000, 2), root_digest("a")
    whole = list(page_digests(kind(tokens), 0, 500, PAGE, root))
    assert whole == list(page_digests(tokens, 0, 500, PAGE, root))
    assert whole[100:] == list(page_digests(kind(tokens), 100, 500, PAGE, whole[99]))
    changed = [1, *tokens[1:]]
    assert not set(whole) & set(page_digests(changed, 0, 500, PAGE, root))
    assert not set(whole) & set(page_digests(tokens, 0, 500, PAGE, root_digest("b")))
    assert len({*whole}) == 500


def test_a_prompt_of_10m_tokens_that_nobody_knows_costs_little() -> None:
    """Of a prompt whose first page is not known, no other page is read; without the cache none is."""
    pools, prompt = GroupedPages(1, 1_000_000, 64, 2**30, prefix_cache=True), range(10_000_000)
    started = time.perf_counter()
    holding = held(pools, 10_000_100, prompt=prompt)
    pools.publish(holding, prompt, 4096)
    assert pools.cached_prefix(prompt) == (4096,)
    pools.release(holding)
    assert time.perf_counter() - started < 1
