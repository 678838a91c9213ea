"""The kernels' work list in plain form, one array for each field: what `attention.gpu.items` must equal, bit by bit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medha_jax.attention.gpu.items import CHUNK_FIELDS, ITEM_FIELDS, LEAST_BLOCKS, MERGE_FIELDS, OVERHEAD
from medha_jax.attention.gpu.launch import MOST_WAVES, Launch, TileConfig


@dataclass(frozen=True)
class PlainTiles:
    """Runs of rows of one request each, `[tiles]`. Fields are as in `work_list.Tiles`; `decode` selects the tile size.

    The list includes rows that see no token: the kernels write 0 and -inf for them.
    """

    row: np.ndarray
    count: np.ndarray
    slot: np.ndarray
    start: np.ndarray
    limit: np.ndarray
    decode: np.ndarray

    def blocks(self, launch: Launch) -> np.ndarray:
        """Blocks of KV that each tile sees."""
        past = np.maximum(np.minimum(self.start + self.count, self.limit), 0)
        keys = np.where(self.decode, launch.decode.keys, launch.prefill.keys if launch.prefill else 1)
        blocks: np.ndarray = -(-past // keys)
        return blocks


def list_tiles(launch: Launch, slots: np.ndarray, lengths: np.ndarray, chunks: np.ndarray) -> PlainTiles:
    """Every row of a tick as tiles.

    Args:
        slots: slots of the decode rows, which come first.
        lengths: tokens that each decode row sees; 0 for padding.
        chunks: prompt rows `[chunks, CHUNK_FIELDS]`, including padding with a limit of 0.
    """
    decodes, size = np.arange(launch.decodes), max(1, launch.tile_tokens)
    row, length, slot, start, limit = chunks.reshape(-1, len(CHUNK_FIELDS)).T
    number = -(-length // size)
    chunk = np.repeat(np.arange(len(number)), number)
    done = (np.arange(len(chunk)) - np.repeat(np.cumsum(number) - number, number)) * size

    def both(decode: np.ndarray, prompt: np.ndarray) -> np.ndarray:
        return np.concatenate([decode, prompt]).astype(np.int64)

    return PlainTiles(
        row=both(decodes, row[chunk] + done),
        count=both(np.ones_like(decodes), np.minimum(size, length[chunk] - done)),
        slot=both(np.where(lengths > 0, slots, 0), slot[chunk]),
        start=both(lengths - 1, start[chunk] + done),
        limit=both(lengths, limit[chunk]),
        decode=np.arange(len(decodes) + len(chunk)) < len(decodes),
    )


def plan_items(launch: Launch, tiles: PlainTiles) -> tuple[np.ndarray, np.ndarray]:
    """Cut tiles into parts and order them.

    Returns the work list, int32 `[launch.items, ITEM_FIELDS]`, and the tiles to merge, int32
    `[launch.merges, MERGE_FIELDS]`. Unused places have a count of 0.
    """
    blocks = tiles.blocks(launch)
    parts = np.ones(len(blocks), np.int64)
    if launch.together and launch.prefill is not None:
        parts = part_counts(blocks, launch, launch.prefill)
    else:
        for kind, mine in ((launch.decode, tiles.decode), (launch.prefill, ~tiles.decode)):
            if kind is not None:
                parts[mine] = part_counts(blocks[mine], launch, kind)
    rows = np.where(tiles.decode, launch.decode.rows, launch.prefill.rows if launch.prefill else 0)
    used = np.where(parts > 1, parts * rows, 0)
    base = np.cumsum(used) - used

    tile = np.repeat(np.arange(len(parts)), parts)
    number = np.arange(len(tile)) - np.repeat(np.cumsum(parts) - parts, parts)
    first, past = (blocks[tile] * at // parts[tile] for at in (number, number + 1))
    part = np.where(parts[tile] > 1, base[tile] + number * rows[tile], -1)
    cut = {"first": first, "past": past, "part": part}
    made = np.stack([cut[name] if name in cut else getattr(tiles, name)[tile] for name in ITEM_FIELDS], axis=1)

    order = _order(past - first, number, tile)
    decode = tiles.decode[tile][order]
    items = np.zeros((launch.items, len(ITEM_FIELDS)), np.int32)
    if launch.together:
        items[: len(order)] = made[order[_interleaved(decode)]]
    else:
        for at, mine in ((0, decode), (launch.decode_items, ~decode)):
            chosen = order[mine]
            items[at : at + len(chosen)] = made[chosen]
    merges = np.zeros((launch.merges, len(MERGE_FIELDS)), np.int32)
    split = np.flatnonzero(parts > 1)
    whole = {"row": tiles.row, "count": tiles.count, "part": base, "stride": rows, "parts": parts}
    merges[: len(split)] = np.stack([whole[name][split] for name in MERGE_FIELDS], axis=1)
    return items, merges


def part_counts(blocks: np.ndarray, launch: Launch, tile: TileConfig) -> np.ndarray:
    """Number of parts of each tile, from its `blocks`: the cut with the least estimated time.

    A cut is the number of parts of the longest tile. The candidates are one part, and the counts that give each
    program one, two or three parts of that size. They are rounded down and up; rounded down, equal tiles fill whole
    rounds. The time is the number of rounds times the mean part, or the largest part if that is longer.
    """
    programs = launch.programs(tile)
    most: np.ndarray = np.maximum(blocks // LEAST_BLOCKS, 1)
    total, longest = int(blocks.sum()), int(blocks.max(initial=0))
    if longest == 0:
        return most
    waves = longest * programs / (total * launch.heads) * np.arange(1, MOST_WAVES + 1)
    cuts = np.unique(np.maximum(np.concatenate([[1], np.floor(waves), np.ceil(waves)]), 1))
    parts: np.ndarray = np.minimum(-(-blocks * cuts[:, None] // longest), most).astype(np.int64)
    parts = np.maximum(parts, 1)
    parts = parts[parts.sum(1) - len(blocks) <= launch.extra(tile)]
    rounds = -(-parts.sum(1) * launch.heads // programs)
    largest = (blocks / parts).max(1)
    time = np.maximum(rounds * (total / parts.sum(1) + OVERHEAD), largest + OVERHEAD)
    quickest: np.ndarray = parts[time.argmin()]
    return quickest


def _order(size: np.ndarray, number: np.ndarray, tile: np.ndarray) -> np.ndarray:
    """Large parts first, in classes of a factor of two. Within a class, parts of the same KV are adjacent."""
    return np.lexsort((tile, number, -np.frexp(size)[1]))


def _interleaved(decode: np.ndarray) -> np.ndarray:
    """An order that mixes both kinds evenly, so that they run side by side; each kind keeps its own order."""
    share = np.zeros(len(decode))
    for kind in (decode, ~decode):
        count = int(np.count_nonzero(kind))
        share[kind] = (np.arange(count) + 0.5) / max(1, count)
    return np.argsort(share, kind="stable")
