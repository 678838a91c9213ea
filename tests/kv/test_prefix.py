from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from medha_jax.kv.allocator import OutOfPagesError
from medha_jax.kv.groups import GroupedPages
from medha_jax.kv.holding import Holding
from medha_jax.kv.prefix import DIGEST_BYTES, page_digests, root_digest
from tests.kv.pages_model import PAGE, PER_GROUP, PagesModel
from tests.kv.pages_model import run as run_operations

prompts = st.lists(st.integers(0, 1), min_size=1, max_size=24)


class SharedPages(RuleBasedStateMachine):
    """Requests of two tenants come, compute and go; the model says what must be true of every page."""

    @initialize(groups=st.integers(1, 3), pages=st.integers(1, 8), places=st.sampled_from([0, 1, 4, 40]))
    def start(self, groups: int, pages: int, places: int) -> None:
        self.model = PagesModel(groups, pages, places)

    @rule(
        prompt=prompts,
        output=st.integers(1, 9),
        salt=st.sampled_from(["", "a"]),
        backwards=st.booleans(),
        worth=st.sampled_from([0.1, 9.0]),
        most=st.sampled_from([0, 2, 9]),
    )
    def reserve(self, prompt: list[int], output: int, salt: str, backwards: bool, worth: float, most: int) -> None:
        self.model.reserve(prompt, output, salt, backwards, worth, most)

    @rule(which=st.integers(0, 99), more=st.integers(1, 20))
    def grow(self, which: int, more: int) -> None:
        self.model.grow(which, more)

    @rule(which=st.integers(0, 99), more=st.integers(1, 20), told=st.booleans())
    def compute(self, which: int, more: int, told: bool) -> None:
        self.model.compute(which, more, told)

    @rule(which=st.integers(0, 99))
    def release(self, which: int) -> None:
        self.model.release(which)

    @rule()
    def lose(self) -> None:
        self.model.lose()

    @invariant()
    def every_page_is_accounted_for(self) -> None:
        if hasattr(self, "model"):
            self.model.check()


SharedPages.TestCase.settings = settings(max_examples=60, stateful_step_count=40)
TestSharedPages = SharedPages.TestCase


def test_thousands_of_random_operations_lose_no_page() -> None:
    counts = run_operations(20_000, 7)
    assert counts["stored"] > 100 and counts["restored"] > 100 and counts["lose"] > 10


def pool(pages: int = 8, groups: int = 1) -> GroupedPages:
    return GroupedPages(groups, pages, PAGE, 2**30, prefix_cache=True)


def held(
    pools: GroupedPages, tokens: int, order: list[int] | None = None, prompt: Sequence[int] = (), salt: str = ""
) -> Holding:
    """A request that has all pages of its tokens."""
    holding = pools.reserve(tokens, order, prompt, pools.chain(salt))
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
    assert pools.cached_prefix(prompt, pools.chain("two")) == (0,)
    assert pools.cached_prefix(prompt, pools.chain("one")) == (8,)
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


names = st.text("ab0", max_size=15)
salts = st.text("ab0\0", max_size=20) | st.text(max_size=20)


@given(st.tuples(names, salts), st.tuples(names, salts))
@example(("a", "b"), ("ab", ""))
@example(("a", "b"), ("", "ab"))
@example(("a", "b"), ("", "a\0b"))
@example(("a", ""), ("", "a"))
def test_no_salt_of_one_tenant_is_that_of_another(first: tuple[str, str], second: tuple[str, str]) -> None:
    one, other = (root_digest(salt, tenant) for tenant, salt in (first, second))
    assert (one == other) == (first == second)


@given(names, st.binary(max_size=160))
@example("", bytes(32 + 8 * 4))
def test_no_salt_makes_a_root_of_what_a_page_is_hashed_from(tenant: str, hashed: bytes) -> None:
    """Whoever could choose such a salt would begin inside another chain."""
    salt = hashed.decode(errors="ignore")
    assert root_digest(salt, tenant) != hashlib.blake2b(salt.encode(), digest_size=DIGEST_BYTES).digest()


def test_tenants_share_no_pages_whatever_their_salts_are() -> None:
    pools, prompt = GroupedPages(1, 64, PAGE, 2**20, prefix_cache=True), range(8 * PAGE)
    for tenant, salt in (("", ""), ("a", ""), ("a", "b"), ("", "b"), ("b", ""), ("ab", "")):
        chain = pools.chain(salt, tenant)
        assert pools.cached_prefix(prompt, chain) == (0,)
        holding = pools.reserve(len(prompt), prompt=prompt, chain=chain)
        pools.take(holding, len(prompt))
        pools.publish(holding, prompt, len(prompt))
        pools.release(holding)
        assert pools.cached_prefix(prompt, pools.chain(salt, tenant)) == (7 * PAGE,)


def test_a_prompt_of_10m_tokens_that_nobody_knows_costs_little() -> None:
    """Of a prompt whose first page is not known, no other page is read; without the cache none is."""
    pools, prompt = GroupedPages(1, 1_000_000, 64, 2**30, prefix_cache=True), range(10_000_000)
    started = time.perf_counter()
    holding = held(pools, 10_000_100, prompt=prompt)
    pools.publish(holding, prompt, 4096)
    assert pools.cached_prefix(prompt) == (4096,)
    pools.release(holding)
    assert time.perf_counter() - started < 1
