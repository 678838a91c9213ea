"""What a tick has to attend to: a list made on the host, because only the host knows the lengths."""

from __future__ import annotations

from dataclasses import dataclass, field

import jax
from jaxtyping import Array, Int


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Tiles:
    """Runs of consecutive rows of one request, at most `size` rows each.

    The first `used` entries count; the rest is padding. `row` is the tile's first row in the tick, `start`
    that row's position in its request, `count` its rows.
    """

    slot: Int[Array, " tiles"]
    row: Int[Array, " tiles"]
    start: Int[Array, " tiles"]
    count: Int[Array, " tiles"]
    used: Int[Array, ""]
    size: int = field(metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class AttentionWork:
    """The rows of a tick: single tokens of many requests first, then tiles of prefill chunks.

    Row i < `decodes` is one token of slot `decode_slots[i]` that sees `decode_lengths[i]` tokens, itself
    included; `decode_lengths` is 0 from `decodes` on.
    """

    decode_slots: Int[Array, " decode_rows"]
    decode_lengths: Int[Array, " decode_rows"]
    decodes: Int[Array, ""]
    tiles: tuple[Tiles, ...]
