"""What a tick has to attend to: a list made on the host, because only the host knows the lengths.

Positions here are *local*: counted from the first token of the request that this device's group holds. A group that
holds an earlier part of the request sees rows at positions beyond what it holds; one that holds nothing yet sees 0
tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import jax
from jaxtyping import Array, Int


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Tiles:
    """Runs of consecutive rows of one request, at most `size` rows each.

    The first `used` entries count; the rest is padding. `row` is the tile's first row in the tick, `start`
    that row's local position, `count` its rows, `limit` the tokens that the group holds once this tick's are
    stored, `stored` how many of the rows this group stores: all of them on their owner, 0 elsewhere.
    """

    slot: Int[Array, " tiles"]
    row: Int[Array, " tiles"]
    start: Int[Array, " tiles"]
    count: Int[Array, " tiles"]
    limit: Int[Array, " tiles"]
    stored: Int[Array, " tiles"]
    used: Int[Array, ""]
    size: int = field(metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class AttentionWork:
    """The rows of a tick: single tokens of many requests first, then tiles of prefill chunks.

    Row i < `decode_slots.shape[0]` is one token of slot `decode_slots[i]` that sees `decode_lengths[i]` local
    tokens, itself included where this group owns it; padding rows see 0. The rows that this group stores are the
    first `writes` of `write_row`; each is stored at the last position that it sees.
    """

    decode_slots: Int[Array, " decode_rows"]
    decode_lengths: Int[Array, " decode_rows"]
    write_row: Int[Array, " decode_rows"]
    writes: Int[Array, ""]
    tiles: tuple[Tiles, ...]
