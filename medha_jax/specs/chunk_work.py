"""Attention work of a chunk, on the KV group that holds most of the chunk's context.

A chunk lies in one group's part of a request: it does not cross a multiple of `per_group` tokens. After the first
part, a full group holds most of the context. Scalars and NumPy arrays have separate functions, because planning
asks for one chunk at a time, thousands of times a second.
"""

from __future__ import annotations

import numpy as np


def chunk_attention(start: int, length: int, per_group: int) -> float:
    """Sum over a chunk's rows of the context that each row sees, in tokens²."""
    if start < per_group:
        return length * (start + (length + 1) / 2)
    return float(length * per_group)


def chunk_attentions(starts: np.ndarray, lengths: np.ndarray, per_group: int) -> np.ndarray:
    """`chunk_attention` of many chunks, float64 `[chunks]`."""
    return np.where(starts < per_group, lengths * (starts + (lengths + 1) / 2), lengths * per_group)


def chunk_read(end: int, per_group: int) -> int:
    """KV tokens that a chunk up to position `end` reads."""
    return end if end <= per_group else per_group


def chunk_reads(ends: np.ndarray, per_group: int) -> np.ndarray:
    """`chunk_read` of many chunks `[chunks]`."""
    reads: np.ndarray = np.minimum(ends, per_group)
    return reads
