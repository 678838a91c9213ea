"""Pages go to host memory and come back bit for bit, on every layout."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medha_jax.attention import Pool
from medha_jax.plan import PageCopy
from medha_jax.runtime import MeshExecutor
from medha_jax.runtime.executables import ExecutableTable
from medha_jax.runtime.host_pool import batches
from medha_jax.runtime.shape_compiler import ShapeCompiler
from medha_jax.specs.layout import LayoutError
from tests.small import small_executor

copies = st.lists(st.builds(PageCopy, st.integers(0, 2), st.integers(0, 5), st.integers(0, 5), st.booleans()))


@pytest.fixture(autouse=True)
def without_ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    """No tick runs here, so none is compiled."""
    monkeypatch.setattr(ShapeCompiler, "compile_first", lambda compiler: ExecutableTable({}))


@given(copies, st.integers(1, 4))
def test_batches_keep_the_order_of_copies_that_meet(made: list[PageCopy], most: int) -> None:
    found = []
    for batch in batches(made, 3, most):
        pairs = [list(zip(*both, strict=True)) for both in zip(batch.pages, batch.places, strict=True)]
        assert all(len(group) <= most for group in pairs) and any(pairs)
        assert all(len({page for page, _ in group}) == len(group) for group in pairs), "no page twice"
        found.append([PageCopy(at, *pair, batch.to_host) for at, group in enumerate(pairs) for pair in group])
    for group in range(3):
        assert [c for batch in found for c in batch if c.group == group] == [c for c in made if c.group == group]


def hosted(pool_tokens: int = 256, **settings: Any) -> MeshExecutor:
    return small_executor(pool_tokens=pool_tokens, host_kv_gib=2**-10, **settings)


def fill(executor: MeshExecutor, seed: int) -> dict[str, np.ndarray]:
    """Write random numbers into every page of the pool; returns them by leaf."""
    rng = np.random.default_rng(seed)

    def random(leaf: jax.Array) -> jax.Array:
        numbers = rng.integers(-100, 100, leaf.shape).astype(leaf.dtype)
        return jax.device_put(numbers, leaf.sharding)

    pool = jax.tree.map(random, executor._state.pool)
    executor._state = dataclasses.replace(executor._state, pool=pool)
    return contents(pool)


def contents(pool: Pool) -> dict[str, np.ndarray]:
    return {str(path): np.array(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(pool)}


@pytest.mark.parametrize(
    "settings",
    [{}, {"kv_dtype": "fp8"}, {"tp": 2, "spp": 2, "kvp": 2}, {"kvp": 2, "kv_dtype": "fp8"}],
    ids=["one", "fp8", "all axes", "two groups in fp8"],
)
def test_pages_come_back_as_they_went(settings: dict[str, Any]) -> None:
    executor = hosted(**settings)
    pages, groups = executor.sizes.pages, executor.config.mesh.kvp
    assert executor.host.places >= pages and executor.host.page_s > 0
    before = fill(executor, 1)
    rng = np.random.default_rng(2)
    moved = [(group, int(page)) for group in range(groups) for page in rng.permutation(pages)[: pages // 2]]
    places = {one: int(place) for one, place in zip(moved, rng.permutation(executor.host.places), strict=False)}
    executor.copy_pages([PageCopy(*one, places[one], True) for one in moved])
    fill(executor, 3)
    # pages come back to others than they left
    back = {(group, page): (group, (page + 1) % pages) for group, page in moved}
    after = fill(executor, 4)
    executor.copy_pages([PageCopy(*back[one], places[one], False) for one in moved])
    for name, now in contents(executor._state.pool).items():
        expected = after[name].copy()
        for (group, page), (_, to) in back.items():
            expected[:, :, group * pages + to] = before[name][:, :, group * pages + page]
        np.testing.assert_array_equal(now, expected)


def test_copies_are_made_in_their_order() -> None:
    executor = hosted()
    before = fill(executor, 1)
    # page 0 to the host; its place is filled again from page 1, after page 2 became a copy of page 0
    executor.copy_pages(
        [PageCopy(0, 0, 0, True), PageCopy(0, 2, 0, False), PageCopy(0, 1, 0, True), PageCopy(0, 3, 0, False)]
    )
    for name, now in contents(executor._state.pool).items():
        np.testing.assert_array_equal(now[:, :, 2], before[name][:, :, 0])
        np.testing.assert_array_equal(now[:, :, 3], before[name][:, :, 1])


def test_the_pool_is_written_in_place() -> None:
    pool = hosted(2**15)
    host, size = pool._host_pool, sum(leaf.nbytes for leaf in jax.tree.leaves(pool._state.pool))
    assert host is not None
    memory = host._write.memory_analysis()
    assert memory.alias_size_in_bytes >= size > memory.temp_size_in_bytes


def test_nothing_is_compiled_by_copies() -> None:
    executor = hosted()
    compiled: list[str] = []
    jax.monitoring.register_event_duration_secs_listener(lambda event, *_, **__: compiled.append(event))
    try:
        executor.copy_pages([PageCopy(0, page, page, True) for page in range(5)])
        executor.copy_pages([PageCopy(0, page, page, False) for page in range(3)])
    finally:
        jax.monitoring.clear_event_listeners()
    assert "/jax/core/compile/backend_compile_duration" not in compiled


def test_after_a_failed_copy_the_state_counts_as_lost() -> None:
    executor = hosted()
    with pytest.raises(IndexError):
        executor.copy_pages([PageCopy(0, 0, executor.host.places, True), PageCopy(0, 0, 0, False)])
    assert not executor.usable()
    executor.renew()
    assert executor.usable()
    executor.copy_pages([PageCopy(0, 0, 0, True), PageCopy(0, 1, 0, False)])


def test_memory_that_is_not_there_is_refused() -> None:
    with pytest.raises(LayoutError, match=r"GiB of host memory for KV; there are"):
        small_executor(host_kv_gib=2.0**20)
    with pytest.raises(LayoutError, match="do not hold a page of each group"):
        small_executor(host_kv_gib=2.0**-30)


def test_without_a_host_tier_there_is_nothing_to_copy_to() -> None:
    with pytest.raises(ValueError, match="no host memory"):
        small_executor().copy_pages([PageCopy(0, 0, 0, True)])
