"""The work list of one tick on one device, made on the host, because only the host knows the lengths.

Tiles are cut along their KV so that all programs end at about the same time. A GPU starts programs in list order, as
earlier ones end. So large parts come first, and small parts fill the gaps. NumPy only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from medha_jax.attention.gpu.launch import MOST_WAVES, Launch, TileConfig

ITEM_FIELDS = {
    "row": "first row of the tile",
    "count": "tokens of the tile; 0: padding",
    "slot": "of the request",
    "start": "local position of the first row",
    "limit": "local tokens that the group holds",
    "first": "first block of KV of this part",
    "past": "block after its last one",
    "part": "row of its partial results; -1 where the tile has one part",
    "decode": "whether the tile is a decode",
}
MERGE_FIELDS = {
    "row": "first row of the tile",
    "count": "tokens of the tile; 0: padding",
    "part": "row of its first part's partial results",
    "stride": "rows from one part's partial results to the next",
    "parts": "how many",
}
LEAST_BLOCKS = 4  # fixed costs would dominate a part of fewer blocks
OVERHEAD = 1.0  # fixed cost of a part, in blocks; estimated, not measured
CHUNK_FIELDS = ("row", "length", "slot", "start", "limit")
ROW, COUNT, SLOT, START, LIMIT = range(len(CHUNK_FIELDS))


@dataclass(frozen=True, eq=False)
class TileList:
    """Runs of rows of one request each: int64 `[tiles, CHUNK_FIELDS]`, with the meaning of `work_list.Tiles`.

    The first `decodes` are decodes. The list includes rows that see no token: the kernels write 0 and -inf for them.
    """

    columns: np.ndarray
    decodes: int

    def blocks(self, launch: Launch) -> np.ndarray:
        """Blocks of KV that each tile sees."""
        decodes, columns = self.decodes, self.columns
        keys = launch.decode.keys
        blocks: np.ndarray = (columns[:, LIMIT] + (keys - 1)) // keys  # a decode sees all tokens of its group
        if launch.prefill is not None:
            keys = launch.prefill.keys
            past = np.minimum(columns[decodes:, START] + columns[decodes:, COUNT], columns[decodes:, LIMIT])
            blocks[decodes:] = (np.maximum(past, 0) + (keys - 1)) // keys
        return blocks


def list_tiles(launch: Launch, slots: np.ndarray, lengths: np.ndarray, chunks: np.ndarray) -> TileList:
    """Every row of a tick as tiles.

    Args:
        slots: slots of the decode rows, which come first.
        lengths: tokens that each decode row sees; 0 for padding.
        chunks: prompt rows `[chunks, CHUNK_FIELDS]`, including padding with a limit of 0.
    """
    decodes, size = launch.decodes, max(1, launch.tile_tokens)
    chunks = chunks.reshape(-1, len(CHUNK_FIELDS))
    number = -(-chunks[:, 1] // size)
    columns = np.empty((decodes + int(number.sum()), len(CHUNK_FIELDS)), np.int64)
    single = columns[:decodes]
    single[:, ROW], single[:, COUNT] = np.arange(decodes), 1
    single[:, SLOT], single[:, START], single[:, LIMIT] = slots * (lengths > 0), lengths - 1, lengths
    if len(columns) > decodes:
        cut = np.repeat(np.arange(len(number)), number)
        done = (np.arange(len(cut)) - (np.cumsum(number) - number)[cut]) * size
        prompts = columns[decodes:]
        prompts[...] = chunks[cut]
        prompts[:, ROW] += done
        prompts[:, START] += done
        prompts[:, COUNT] = np.minimum(size, prompts[:, COUNT] - done)
    return TileList(columns, decodes)


def plan_items(launch: Launch, tiles: TileList) -> tuple[np.ndarray, np.ndarray]:
    """Cut tiles into parts and order them.

    Returns the work list, int32 `[launch.items, ITEM_FIELDS]`, and the tiles to merge, int32
    `[launch.merges, MERGE_FIELDS]`. Unused places have a count of 0.
    """
    items = np.zeros((launch.items, len(ITEM_FIELDS)), np.int32)
    merges = np.zeros((launch.merges, len(MERGE_FIELDS)), np.int32)
    write_items(launch, tiles, items, merges)
    return items, merges


def write_items(launch: Launch, tiles: TileList, items: np.ndarray, merges: np.ndarray) -> None:
    """As `plan_items`, into arrays of zeros; every call of NumPy that it does without counts, for they are small."""
    blocks, decodes, prefill = tiles.blocks(launch), tiles.decodes, launch.prefill
    rows: np.ndarray | int = launch.decode.rows
    if prefill is None:
        parts = part_counts(blocks, launch, launch.decode)
    else:
        rows = np.full(len(blocks), launch.decode.rows)
        rows[decodes:] = prefill.rows
        if launch.together:
            parts = part_counts(blocks, launch, prefill)
        else:
            kinds = (blocks[:decodes], launch.decode), (blocks[decodes:], prefill)
            parts = np.concatenate([part_counts(mine, launch, tile) for mine, tile in kinds])
    used = parts * rows * (parts > 1)
    base = used.cumsum() - used

    tile = np.arange(len(parts)).repeat(parts)
    number = np.arange(len(tile)) - (parts.cumsum() - parts).take(tile)
    seen, of = blocks.take(tile), parts.take(tile)
    first, past = seen * number // of, seen * (number + 1) // of
    made = np.empty((len(tile), len(ITEM_FIELDS)), np.int32)
    made[:, : len(CHUNK_FIELDS)] = tiles.columns.take(tile, axis=0)
    made[:, len(CHUNK_FIELDS)], made[:, len(CHUNK_FIELDS) + 1] = first, past
    after = number * (rows.take(tile) if isinstance(rows, np.ndarray) else rows)
    made[:, -2] = np.where(of > 1, base.take(tile) + after, -1)
    made[:, -1] = tile < decodes if prefill is not None else 1

    apart = 0 if launch.together else int(np.add.reduce(parts[:decodes]))  # parts of decodes before those of prompts
    order = _order(past - first, number * len(parts) + tile, apart)
    if launch.together:
        order = order[_interleaved(tile[order] < decodes)]
    made = made.take(order, axis=0)
    items[:apart] = made[:apart]
    if prefill is not None:
        items[launch.decode_items : launch.decode_items + len(made) - apart] = made[apart:]

    if len(split := used.nonzero()[0]):
        merges = merges[: len(split)]
        merges[:, :2] = tiles.columns.take(split, axis=0)[:, : COUNT + 1]
        merges[:, 2], merges[:, 4] = base.take(split), parts.take(split)
        merges[:, 3] = rows.take(split) if isinstance(rows, np.ndarray) else rows


def part_counts(blocks: np.ndarray, launch: Launch, tile: TileConfig) -> np.ndarray:
    """Number of parts of each tile, from its `blocks`: the cut with the least estimated time.

    A cut is the number of parts of the longest tile. The candidates are one part, and the counts that give each
    program one, two or three parts of that size. They are rounded down and up; rounded down, equal tiles fill whole
    rounds. The time is the number of rounds times the mean part, or the largest part if that is longer.
    """
    programs, count = launch.programs(tile), len(blocks)
    most: np.ndarray = np.maximum(blocks // LEAST_BLOCKS, 1)
    total, longest = int(np.add.reduce(blocks)), int(np.maximum.reduce(blocks, initial=0))
    if longest == 0:
        return most
    wave = longest * programs / (total * launch.heads)
    waves = [wave * number for number in range(1, MOST_WAVES + 1)]
    cuts = sorted({1, *(max(1, rounded(each)) for each in waves for rounded in (math.floor, math.ceil))})
    choices = np.minimum(-(-blocks * np.array(cuts)[:, None] // longest), most)
    np.maximum(choices, 1, out=choices)
    largest, extra = np.maximum.reduce(blocks / choices, 1).tolist(), launch.extra(tile)
    times = []  # of few candidates: Python's own arithmetic is quicker here than an array's
    for number, made in enumerate(np.add.reduce(choices, 1).tolist()):
        if made - count <= extra:
            rounds = -(-made * launch.heads // programs)
            times.append((max(rounds * (total / made + OVERHEAD), largest[number] + OVERHEAD), number))
    quickest: np.ndarray = choices[min(times)[1]]
    return quickest


def _order(size: np.ndarray, place: np.ndarray, apart: int) -> np.ndarray:
    """Large parts first, in classes of a factor of two. Within a class by `place`: parts of the same KV are adjacent.

    The first `apart` parts come before all others.
    """
    classes = (size.astype(np.float64).view(np.int64) >> 52) << 40  # a float's exponent, above every place
    key = place - classes  # one number is sorted in a third of the time of several
    key[:apart] -= 1 << 52
    order: np.ndarray = key.argsort()
    return order


def _interleaved(decode: np.ndarray) -> np.ndarray:
    """An order that mixes both kinds evenly, so that they run side by side; each kind keeps its own order."""
    share = np.zeros(len(decode))
    for kind in (decode, ~decode):
        count = int(np.count_nonzero(kind))
        share[kind] = (np.arange(count) + 0.5) / max(1, count)
    return np.argsort(share, kind="stable")
