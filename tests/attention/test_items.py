"""The work list of the kernels: complete, within its places, balanced."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medha_jax.attention import Launch, list_tiles, plan_items
from medha_jax.attention.gpu.items import ITEM_FIELDS, MERGE_FIELDS, part_counts
from medha_jax.attention.gpu.launch import TileConfig
from tests.attention import plain_items

ROW, COUNT, SLOT, START, LIMIT, FIRST, PAST, PART, DECODE = range(len(ITEM_FIELDS))


def tile(rows: int, keys: int, resident: int = 1, together: bool = True) -> TileConfig:
    return TileConfig("any", 256, "bfloat16", 1, rows, keys, 4, 2, resident, together)


def launch_for(
    decodes: int, prompt: int, chunks: int, heads: int, group: int, processors: int, together: bool
) -> Launch:
    prefill = tile(128, 128, together=together) if prompt else None
    tiles = -(-prompt // (128 // group)) + chunks + 1
    return Launch(tile(16, 64, resident=2), prefill, decodes, tiles, heads, group, processors)


@st.composite
def ticks(draw: st.DrawFn):
    """A launch, decode lengths and chunks, from short ones to millions of tokens."""
    decodes, prompt = draw(st.integers(1, 40)), draw(st.sampled_from([0, 16, 300]))
    chunks = draw(st.integers(1, 4))
    launch = launch_for(
        decodes,
        prompt,
        chunks,
        draw(st.sampled_from([1, 2, 8])),
        draw(st.sampled_from([1, 4, 7])),
        draw(st.sampled_from([1, 20, 132])),
        draw(st.booleans()),
    )
    tokens = st.one_of(st.integers(0, 300), st.integers(0, 3_000_000))
    lengths = np.array(draw(st.lists(tokens, min_size=decodes, max_size=decodes)), np.int32)
    made, row = [], decodes
    for slot in range(draw(st.integers(0, chunks)) if prompt else 0):
        left = decodes + prompt - row
        if left < 2:
            break
        length, start = draw(st.integers(1, left)), draw(tokens)
        limit = draw(st.sampled_from([0, start // 2, start + length]))
        made.append((row, length, slot, start, limit))
        row += length
    made.append((row, decodes + prompt - row, 0, 0, 0))
    return launch, lengths, np.array(made, np.int64)


@settings(max_examples=150)
@given(ticks())
def test_every_row_sees_every_block_once(tick) -> None:
    launch, lengths, chunks = tick
    tiles = list_tiles(launch, np.arange(launch.decodes), lengths, chunks)
    items, merges = plan_items(launch, tiles)
    assert items.shape == (launch.items, len(ITEM_FIELDS)) and merges.shape == (launch.merges, len(MERGE_FIELDS))
    used = items[items[:, COUNT] > 0]
    rows = np.zeros(launch.decodes + chunks[:, 1].sum(), int)
    for one in used:
        if one[FIRST] == 0:
            rows[one[ROW] : one[ROW] + one[COUNT]] += 1
    assert (rows == 1).all(), "each row stands in one tile"
    parts = {int(row): used[used[:, ROW] == row] for row in np.unique(used[:, ROW])}
    for row, mine in parts.items():
        mine = mine[np.argsort(mine[:, FIRST])]
        keys = 64 if mine[0, DECODE] else 128
        seen = max(0, min(mine[0, START] + mine[0, COUNT], mine[0, LIMIT]))
        assert mine[0, FIRST] == 0 and mine[-1, PAST] == -(-seen // keys)
        assert (mine[1:, FIRST] == mine[:-1, PAST]).all()
        assert (mine[:, DECODE] == (row < launch.decodes)).all()
    split = {row for row, mine in parts.items() if len(mine) > 1}
    named = merges[merges[:, 1] > 0]
    assert {int(row) for row in named[:, 0]} == split
    taken: set[int] = set()
    for row, count, part, stride, number in named:
        mine = parts[int(row)]
        assert len(mine) == number and (mine[:, COUNT] == count).all()
        assert sorted(mine[:, PART]) == [part + stride * n for n in range(number)]
        places = set(range(part, part + stride * number))
        assert not places & taken and max(places) < launch.part_rows
        taken |= places
    whole = [mine for row, mine in parts.items() if row not in split]
    assert all((mine[:, PART] == -1).all() for mine in whole)


@settings(max_examples=200)
@given(ticks())
def test_the_list_is_the_plain_one(tick) -> None:
    launch, lengths, chunks = tick
    slots = np.arange(launch.decodes) + 3
    ours = plan_items(launch, list_tiles(launch, slots, lengths, chunks))
    plain = plain_items.plan_items(launch, plain_items.list_tiles(launch, slots, lengths, chunks))
    for mine, theirs in zip(ours, plain, strict=True):
        assert mine.dtype == theirs.dtype == np.int32
        np.testing.assert_array_equal(mine, theirs)


@settings(max_examples=50)
@given(ticks())
def test_kinds_have_their_own_places_unless_they_run_together(tick) -> None:
    launch, lengths, chunks = tick
    items, _ = plan_items(launch, list_tiles(launch, np.arange(launch.decodes), lengths, chunks))
    if launch.together:
        used = items[:, COUNT] > 0
        assert not used[np.count_nonzero(used) :].any()
    else:
        assert items[: launch.decode_items, DECODE].sum() == launch.decodes or items[:, PART].max() >= 0
        assert not items[launch.decode_items :, DECODE].any()


def makespan(blocks: np.ndarray, parts: np.ndarray, programs: int, heads: int) -> float:
    """Time until all programs are done when each takes the next part of the list, in blocks."""
    sizes = np.sort(np.concatenate([np.repeat(b / p, p) for b, p in zip(blocks, parts, strict=True)]))[::-1]
    busy = np.zeros(programs)
    for size in np.repeat(sizes, heads):
        busy[busy.argmin()] += size
    return busy.max()


@pytest.mark.parametrize(
    "contexts",
    [[1_000_000], [1_000_000] + [4096] * 63, [16384] * 64, [512] * 128, [100_000, 90_000, 80_000]],
    ids=["one at 1M", "one at 1M among short ones", "64 at 16K", "128 short", "three long"],
)
def test_decodes_are_balanced(contexts: list[int]) -> None:
    launch = launch_for(len(contexts), 0, 0, heads=8, group=4, processors=132, together=True)
    blocks = -(-np.array(contexts) // 64)
    parts = part_counts(blocks, launch, launch.decode)
    programs = launch.programs(launch.decode)
    ideal = blocks.sum() * launch.heads / programs
    rounded = -(-len(blocks) * launch.heads // programs) / (len(blocks) * launch.heads / programs)
    assert makespan(blocks, parts, programs, launch.heads) <= ideal * max(1.12, rounded)


def test_a_small_chunk_at_a_million_tokens_keeps_all_programs_busy() -> None:
    """16 to 512 tokens are 1 to 16 tiles a head; parts make up for it."""
    for tokens in (16, 64, 512):
        launch = launch_for(1, tokens, 1, heads=8, group=4, processors=132, together=True)
        tiles = tokens // launch.tile_tokens or 1
        blocks = np.full(tiles, 1_000_000 // 128)
        assert launch.prefill is not None
        parts = part_counts(blocks, launch, launch.prefill)
        ideal = blocks.sum() * 8 / 132
        assert makespan(blocks, parts, 132, 8) <= 1.05 * ideal


def test_both_kinds_are_spread_over_the_list() -> None:
    launch = launch_for(64, 300, 1, heads=8, group=4, processors=132, together=True)
    chunks = np.array([(64, 300, 70, 100_000, 100_300)])
    items, _ = plan_items(launch, list_tiles(launch, np.arange(64), np.full(64, 16384), chunks))
    used = items[items[:, COUNT] > 0]
    quarters = [part[:, DECODE].mean() for part in np.array_split(used, 4)]
    assert max(quarters) - min(quarters) < 0.1


def test_large_parts_come_first() -> None:
    launch = launch_for(64, 0, 0, heads=8, group=4, processors=132, together=True)
    lengths = np.random.default_rng(0).integers(1, 200_000, 64)
    items, _ = plan_items(launch, list_tiles(launch, np.arange(64), lengths, np.zeros((0, 5), int)))
    used = items[items[:, COUNT] > 0]
    size = used[:, PAST] - used[:, FIRST]
    assert (2 * size[:-1] >= size[1:]).all(), "a part is never twice as large as one before it"
