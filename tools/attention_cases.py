"""Random mixes of requests for both attention implementations, and the expected results in float64."""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jax import Array

from medha_jax.attention import AttentionWork, Fp8Pool, KernelWork, Launch, Pool, Tiles, list_tiles, plan_items
from medha_jax.attention.gpu.launch import TileConfig
from medha_jax.attention.pool import from_fp8, to_fp8
from medha_jax.attention.rotate import Angles

LAYERS, LAYER, SLOTS = 2, 1, 5


@dataclass(frozen=True)
class Case:
    """Sizes of a program; `prompt` rows follow `decodes`, in at most `chunks` chunks."""

    heads: int
    kv_heads: int
    head_dim: int
    page: int
    keys: int
    decode_keys: int
    rows: int = 32
    dtype: str = "float32"
    fp8: bool = False
    together: bool = True
    processors: int = 8
    decodes: int = 4
    prompt: int = 40
    chunks: int = 3
    pages_per_slot: int = 0

    @property
    def context(self) -> int:
        """Most tokens of a slot."""
        return self.width * self.page

    @property
    def width(self) -> int:
        """Pages of a slot."""
        return self.pages_per_slot or -(-max(256, self.page) // self.page)

    @property
    def launch(self) -> Launch:
        """The launch with the case's own tile sizes."""

        def tile(rows: int, keys: int) -> TileConfig:
            return TileConfig("any", 256, self.dtype, 1, rows, keys, 4, 2, 1, self.together)

        group = self.heads // self.kv_heads
        tiles = -(-self.prompt // (self.rows // group)) + self.chunks + 1
        prefill = tile(self.rows, self.keys) if self.prompt else None
        decode = tile(16, self.decode_keys)
        return Launch(decode, prefill, self.decodes, tiles, self.kv_heads, group, self.processors)


@dataclass(frozen=True)
class Mix:
    """Runs of rows `(row, count, slot, start, limit, stored)`; a decode is a run of one before all prompt rows."""

    case: Case
    runs: tuple[tuple[int, int, int, int, int, bool], ...]

    @property
    def decodes(self) -> tuple[np.ndarray, np.ndarray]:
        """Slot and visible tokens of every decode row."""
        slots, lengths = np.zeros(self.case.decodes, np.int32), np.zeros(self.case.decodes, np.int32)
        for row, _, slot, start, limit, _ in self.runs:
            if row < self.case.decodes:
                slots[row], lengths[row] = slot, min(start + 1, limit)
        return slots, lengths

    def kernel_work(self, launch: Launch | None = None) -> KernelWork:
        """Work for the kernels, with the tile sizes of the case or of `launch`."""
        case, launch = self.case, launch or self.case.launch
        rows = case.decodes + case.prompt
        slot, position = np.full(rows, SLOTS, np.int32), np.full(rows, -1, np.int32)
        for row, count, of, start, _, stored in self.runs:
            slot[row : row + count] = of
            if stored:
                position[row : row + count] = np.arange(start, start + count)
        prompts = [run[:5] for run in self.runs if run[0] >= case.decodes]
        end = max((row + count for row, count, *_ in prompts), default=case.decodes)
        chunks = np.array([*prompts, (end, rows - end, 0, 0, 0)], np.int64)
        items, merges = plan_items(launch, list_tiles(launch, *self.decodes, chunks))
        return KernelWork(items, merges, slot, position, launch)  # type: ignore[arg-type]

    def xla_work(self) -> AttentionWork:
        """Work for the XLA implementation, every run as one tile."""
        case = self.case
        prompts = [run for run in self.runs if run[0] >= case.decodes]
        columns = np.zeros((6, case.chunks + 1), np.int32)
        columns[:, : len(prompts)] = np.array(prompts, np.int32).reshape(-1, 6).T
        row, count, slot, start, limit, stored = map(jnp.asarray, columns)
        tiles = Tiles(slot, row, start, count, limit, stored * count, jnp.int32(len(prompts)), case.prompt)
        slots, lengths = self.decodes
        writes = [run[0] for run in self.runs if run[0] < case.decodes and run[5]]
        return AttentionWork(
            jnp.asarray(slots),
            jnp.asarray(lengths),
            jnp.asarray(writes + [0] * (case.decodes - len(writes)), jnp.int32),
            jnp.int32(len(writes)),
            (tiles,) if case.prompt else (),
        )


def random_mix(case: Case, rng: np.random.Generator) -> Mix:
    """Ragged decodes and chunks: first tokens, ends at page borders, shards that hold no or only earlier tokens."""
    slots = [int(slot) for slot in rng.permutation(SLOTS)]
    most, runs = case.context, []

    def length() -> int:
        return int(rng.choice([1, case.page, 2 * case.page, case.keys + 1, most, int(rng.integers(1, most + 1))]))

    def shard(start: int, count: int) -> tuple[int, bool]:
        kind = str(rng.choice(["own", "own", "own", "earlier", "nothing"]))
        return {"own": (start + count, True), "earlier": (max(1, start // 2), False), "nothing": (0, False)}[kind]

    runs.append((0, 1, slots.pop(), most - 1, most, True))  # a full context, which is cut into parts
    for row in range(1, int(rng.integers(1, case.decodes + 1))):
        start = min(length(), most) - 1
        runs.append((row, 1, slots.pop(), start, *shard(start, 1)))
    row = case.decodes
    for _ in range(int(rng.integers(0, case.chunks + 1))):
        left = case.decodes + case.prompt - row
        if left < 1 or not slots:
            break
        count = int(rng.integers(1, left + 1))
        start = max(0, min(length() - 1, most - count))
        runs.append((row, count, slots.pop(), start, *shard(start, count)))
        row += count
    return Mix(case, tuple(runs))


def border_mixes(case: Case) -> list[Mix]:
    """Three mixes: their rows end one token before, at, and one token after a page's border.

    Decodes: a full context, one that ends there, one beyond an earlier shard that ends there, one where this shard
    holds nothing. Chunks: one that ends there, one that begins where an earlier shard ends, one where this shard holds
    nothing. Blocks of `keys` tokens also end at a page's border, or a page ends at theirs.
    """
    border, most, mixes = case.page * -(-64 // case.page), case.context, []
    for end in (border - 1, border, border + 1):
        decodes = [(most - 1, most, True), (end - 1, end, True), (end + 5, end, False), (border, 0, False)]
        runs = [(row, 1, row, *where) for row, where in enumerate(decodes[: case.decodes])]
        row = case.decodes
        chunks = [(9, 4, end - 9, end, True), (7, 2, end, end, False), (5, 3, border, 0, False)]
        for count, slot, start, limit, stored in chunks[: case.chunks]:
            runs.append((row, count, slot, start, limit, stored))
            row += count
        mixes.append(Mix(case, tuple(runs)))
    return mixes


def expected(
    mix: Mix, queries: np.ndarray, pool: np.ndarray, table: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Attention in float64 over the values of a pool.

    Args:
        mix: the rows.
        queries: `[rows, heads, head_dim]`, rotated.
        pool: `[layers, 2, pages, kv_heads, page, head_dim]`, with this tick's keys and values.
        table: `[slots, pages_per_slot]`.

    Returns:
        Output, log-sum-exp, and a mask of the rows that the mix has.
    """
    case, wide = mix.case, pool[LAYER].astype(np.float64)
    out, lse = np.zeros(queries.shape), np.full(queries.shape[:2], -np.inf)
    real, group = np.zeros(len(queries), bool), case.heads // case.kv_heads
    for first, count, slot, start, limit, _ in mix.runs:
        rows = slice(first, first + count)
        real[rows] = True
        visible = np.minimum(start + 1 + np.arange(count), limit)
        if (most := visible.max()) < 1:
            continue
        unseen = np.arange(most) >= visible[:, None]
        held = wide[:, table[slot]].transpose(0, 2, 1, 3, 4).reshape(2, case.kv_heads, -1, case.head_dim)
        for head in range(case.heads):
            keys, values = held[:, head // group, :most]
            scores = queries[rows, head].astype(np.float64) @ keys.T / np.sqrt(case.head_dim)
            scores[unseen] = -np.inf
            top = scores.max(-1, keepdims=True)
            weights = np.exp(scores - top)
            total = weights.sum(-1, keepdims=True)
            lse[rows, head] = (top + np.log(total))[:, 0]
            out[rows, head] = weights @ values / total
    return out, lse, real


def random_arrays(case: Case, rng: np.random.Generator) -> tuple[Array, Array, Array, Angles, Pool, np.ndarray]:
    """Queries, keys, values and angles of the rows, a pool of random values, and a table of scattered pages.

    Angles are quarter turns, which are exact in any dtype, however their products and sums are rounded.
    """
    dtype = jnp.dtype(case.dtype)
    rows, pages = case.decodes + case.prompt, SLOTS * case.width
    sizes = [(rows, heads, case.head_dim) for heads in (case.heads, case.kv_heads, case.kv_heads)]
    queries, keys, values = (jnp.asarray(rng.normal(size=size) * 2, dtype) for size in sizes)
    turns = rng.integers(0, 4, (rows, case.head_dim // 2))
    cos, sin = (jnp.asarray(np.array(of, np.float32)[turns]) for of in ((1, 0, -1, 0), (0, 1, 0, -1)))
    held = (LAYERS, 2, pages, case.kv_heads, case.page, case.head_dim)
    full = jnp.asarray(rng.standard_normal(held, np.float32), dtype)
    pool = Fp8Pool(*to_fp8(full)) if case.fp8 else full
    return queries, keys, values, (cos, sin), pool, rng.permutation(pages).reshape(SLOTS, -1).astype(np.int32)


def wide(pool: Pool, dtype: str) -> np.ndarray:
    """The values of a pool in the model's dtype."""
    made = from_fp8(pool.values, pool.exponents, jnp.dtype(dtype)) if isinstance(pool, Fp8Pool) else pool
    return np.asarray(made)
