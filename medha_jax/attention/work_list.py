"""The work list of XLA's attention: single tokens, then tiles of prefill chunks.

The host makes this list, because only it knows the lengths. Positions are local (`interface.RowRun`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import jax
from jax import numpy as jnp
from jaxtyping import Array, Int

from medha_jax.attention.interface import Fields, FieldViews, PlanField, RowRun, TickRows
from medha_jax.specs.buckets import SMALL_TILE, Bucket


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Tiles:
    """Runs of consecutive rows of one request, at most `size` rows each. TILE_FIELDS explains the arrays.

    The first `used` entries are valid; the rest is padding.
    """

    slot: Int[Array, " tiles"]
    row: Int[Array, " tiles"]
    start: Int[Array, " tiles"]
    count: Int[Array, " tiles"]
    limit: Int[Array, " tiles"]
    stored: Int[Array, " tiles"]
    used: Int[Array, ""]
    size: int = field(metadata={"static": True})


TILE_FIELDS = {
    "slot": "Slot of each tile.",
    "row": "First row of each tile.",
    "start": "Local position of that row.",
    "count": "Rows of each tile.",
    "limit": "Tokens that this group holds once this tick's are stored.",
    "stored": "Rows of each tile that this group stores: all on their owner, 0 elsewhere.",
}


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class AttentionWork:
    """The rows of a tick: single tokens of many requests first, then tiles of prefill chunks.

    Decode row i is a token of slot `decode_slots[i]`. It sees `decode_lengths[i]` local tokens, including itself if
    this group owns it; padding rows see 0. This group stores the rows in the first `writes` entries of `write_row`,
    each at the last position that it sees.
    """

    decode_slots: Int[Array, " decode_rows"]
    decode_lengths: Int[Array, " decode_rows"]
    write_row: Int[Array, " decode_rows"]
    writes: Int[Array, ""]
    tiles: tuple[Tiles, ...]


@dataclass(frozen=True)
class TileLayout:
    """The plan fields that XLA's attention needs for one shape."""

    bucket: Bucket

    @cached_property
    def tiles(self) -> dict[int, int]:
        """Tile sizes, largest first, each with its number of tiles."""
        return self.bucket.tiles

    @cached_property
    def fields(self) -> tuple[PlanField, ...]:
        """Fields of decodes, then of the tiles of each size."""
        decodes = self.bucket.decodes
        found = [
            PlanField("decode_length", (decodes,), "Local tokens that a decode row sees; 0 for padding."),
            PlanField("writes", (), "Decode rows that this group stores."),
            PlanField("write_row", (decodes,), "Those rows; the first `writes` count."),
        ]
        for size, count in self.tiles.items():
            found.append(PlanField(f"tile{size}_used", (), f"Tiles of {size} rows; the rest is padding."))
            found += [PlanField(f"tile{size}_{name}", (count,), meaning) for name, meaning in TILE_FIELDS.items()]
        return tuple(found)

    def write(self, view: FieldViews, rows: TickRows) -> None:
        """Write the lengths and stored rows of decodes, and cut longer runs into tiles."""
        view["decode_length"][rows.row] = rows.seen
        stored = rows.row[rows.stored]
        view["write_row"][: len(stored)] = stored
        view["writes"][...] = len(stored)
        if not rows.longer:
            return
        made: dict[int, list[tuple[int, ...]]] = {size: [] for size in self.tiles}
        for run in rows.longer:
            for size, tile in self._cut(run):
                made[size].append(tile)
        for size, tiles in made.items():
            view[f"tile{size}_used"][...] = len(tiles)
            for name, column in zip(TILE_FIELDS, zip(*tiles, strict=True), strict=False):  # no columns without tiles
                view[f"tile{size}_{name}"][: len(tiles)] = column

    def _cut(self, run: RowRun) -> Iterator[tuple[int, tuple[int, ...]]]:
        """The tiles of a run: the size and TILE_FIELDS of each."""
        sizes = tuple((self.bucket.shared if run.shared else self.bucket.own).tiles)
        done = 0
        while done < run.length:
            left = run.length - done
            size = sizes[0] if left > sizes[0] // 2 or len(sizes) == 1 else SMALL_TILE
            count = min(size, left)
            stored = count if run.owner else 0
            yield size, (run.slot, run.row + done, run.start + done, count, run.limit, stored)
            done += count

    def work(self, fields: Fields) -> AttentionWork:
        """The rows of a tick, traced."""
        names = (*TILE_FIELDS, "used")
        tiles = (Tiles(**{name: fields[f"tile{size}_{name}"] for name in names}, size=size) for size in self.tiles)
        lengths = fields["decode_length"]
        return AttentionWork(
            # Padding has a slot number beyond the table. It sees no token, so any valid slot works.
            decode_slots=jnp.where(lengths > 0, fields["row_slot"][: self.bucket.decodes], 0),
            decode_lengths=lengths,
            write_row=fields["write_row"],
            writes=fields["writes"],
            tiles=tuple(tiles),
        )
