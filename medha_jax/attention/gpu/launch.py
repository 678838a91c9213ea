"""How the kernels are launched: sizes of tiles from a table, and what follows from them for one shape of a tick."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import yaml

TABLE = Path(__file__).parent / "launches.yaml"
LARGEST_HEAD_DIM = 256
MOST_WAVES = 3  # most parts that every program gets on average where KV is split
ROWS, KEYS = (16, 32, 64, 128, 256), (16, 32, 64, 128, 256)


class LaunchError(ValueError):
    """The kernels cannot run what is asked for; the message says what they can."""


@dataclass(frozen=True)
class GpuTarget:
    """What the kernels are compiled for: JAX's name of the device, compute capability times ten, multiprocessors."""

    name: str
    capability: int
    processors: int

    @classmethod
    def of(cls, device: Any) -> GpuTarget:
        """The facts of a device of JAX.

        Raises:
            LaunchError: it is no NVIDIA GPU.
        """
        major, _, minor = str(getattr(device, "compute_capability", "")).partition(".")
        if not (major.isdigit() and minor.isdigit()):
            where = f"{device.platform} ({device.device_kind})"
            raise LaunchError(f"the kernels need an NVIDIA GPU; the mesh is on {where}")
        return cls(device.device_kind, 10 * int(major) + int(minor), device.core_count)


@dataclass(frozen=True)
class TileConfig:
    """One row of the table: what a tile is made of, and for what it is the choice.

    Args:
        gpu: a device's name, or `sm90` for all of that capability and later ones without rows of their own.
        head_dim: the largest that it is for.
        dtype: of the pool.
        queries: most query rows of one KV head that it is for, which are prompt tokens times heads of a group; 1 for
            decodes.
        rows: query rows of a tile; tokens times the heads of a group.
        keys: tokens of a block.
        warps: of a program.
        stages: blocks under way.
        resident: programs that a multiprocessor holds at once.
        together: prompt tiles and decodes in one launch (stated with prompt tiles).
        measured: whether a tuning run chose it on that GPU.
    """

    gpu: str
    head_dim: int
    dtype: str
    queries: int
    rows: int
    keys: int
    warps: int
    stages: int
    resident: int
    together: bool = True
    measured: bool = False

    def __post_init__(self) -> None:
        if self.rows not in ROWS or self.keys not in KEYS:
            raise LaunchError(f"a tile of {self.rows} x {self.keys}; allowed are {ROWS} rows and {KEYS} keys")
        for name, allowed in (("warps", (1, 2, 4, 8, 16)), ("stages", range(1, 9)), ("resident", range(1, 17))):
            if getattr(self, name) not in allowed:
                raise LaunchError(f"{name} is {getattr(self, name)}; allowed are {', '.join(map(str, allowed))}")


@dataclass(frozen=True)
class Launch:
    """The attention of one shape of a tick on one device.

    Args:
        decode: tile of one token.
        prefill: tile of prompt tokens, None where the shape has none.
        decodes: decode rows.
        prompt_tiles: most prompt tiles.
        heads: KV heads of the device; `group` query heads share each.
        processors: multiprocessors.
    """

    decode: TileConfig
    prefill: TileConfig | None
    decodes: int
    prompt_tiles: int
    heads: int
    group: int
    processors: int

    @property
    def together(self) -> bool:
        """Whether both kinds are one launch."""
        return self.prefill is not None and self.prefill.together

    @property
    def tile_tokens(self) -> int:
        """Prompt tokens of a tile."""
        return self.prefill.rows // self.group if self.prefill else 0

    def programs(self, tile: TileConfig) -> int:
        """Programs of a kind that run at once."""
        return self.processors * tile.resident

    def extra(self, tile: TileConfig) -> int:
        """Most parts beyond the first of each tile, for one KV head."""
        return -(-MOST_WAVES * self.programs(tile) // self.heads)

    @property
    def decode_items(self) -> int:
        """Places for decodes in the work list, before those of prompt tiles; none where they share places."""
        return 0 if self.together else self.decodes + self.extra(self.decode)

    @property
    def prefill_items(self) -> int:
        """Places for prompt tiles, or for both kinds where they are launched together."""
        if self.prefill is None:
            return 0
        return self.prompt_tiles + self.extra(self.prefill) + (self.decodes if self.together else 0)

    @property
    def items(self) -> int:
        """Places in the work list."""
        return self.decode_items + self.prefill_items

    @property
    def merges(self) -> int:
        """Most tiles that come in parts: every one of them has at least one extra part."""
        extra = self.extra(self.prefill) if self.prefill else 0
        return min(self.decodes + self.prompt_tiles, extra + (0 if self.together else self.extra(self.decode)))

    @property
    def part_rows(self) -> int:
        """Rows of partial results for one KV head: a tile of n parts has n - 1 extra ones, so at most two for each."""
        large = self.prefill.rows * 2 * self.extra(self.prefill) if self.prefill else 0
        return large + (0 if self.together else self.decode.rows * 2 * self.extra(self.decode))


@dataclass(frozen=True)
class LaunchTable:
    """Tile sizes by GPU, head_dim, dtype and prompt bucket."""

    rows: tuple[TileConfig, ...]

    def find(self, target: GpuTarget, head_dim: int, dtype: str, queries: int) -> TileConfig:
        """The row for so many query rows of one KV head, or for decodes where `queries` is 1.

        A GPU's own rows come before those of its capability, and these before those of lower ones.

        Raises:
            LaunchError: there is none.
        """
        dtype = {"float16": "bfloat16"}.get(dtype, dtype)  # as many bits, the same instructions
        fitting = [row for row in self.rows if row.dtype == dtype and (row.queries == 1) == (queries == 1)]
        fitting = [row for row in fitting if row.head_dim >= head_dim and row.queries >= queries]
        named = [(_rank(row.gpu, target), row) for row in fitting]
        ranked = [(rank, row.head_dim, row.queries, row) for rank, row in named if rank is not None]
        if not ranked:
            raise LaunchError(
                f"no launch configuration for {target.name} (sm{target.capability}), head_dim {head_dim}, {dtype}, "
                f"{queries} queries; {TABLE.name} has {self._known()}"
            )
        return min(ranked, key=lambda found: found[:3])[3]

    def _known(self) -> str:
        return ", ".join(sorted({f"{row.gpu} {row.dtype} up to head_dim {row.head_dim}" for row in self.rows}))


def _rank(gpu: str, target: GpuTarget) -> int | None:
    """How well a row's GPU names a target, 0 best; None if it does not."""
    if gpu == target.name:
        return 0
    number = gpu.removeprefix("sm")
    if number == gpu or not number.isdigit() or int(number) > target.capability:
        return None
    return 1 + target.capability - int(number)


def parse_table(stated: Iterable[Mapping[str, Any]]) -> LaunchTable:
    """A table from rows of settings by name.

    Raises:
        LaunchError: a row has unknown or missing settings, or one out of range.
    """
    allowed = {field.name for field in fields(TileConfig)}
    rows = []
    for row in stated:
        if unknown := ", ".join(sorted(set(row) - allowed)):
            raise LaunchError(f"unknown settings {unknown}; allowed are {', '.join(sorted(allowed))}")
        try:
            rows.append(TileConfig(**row))
        except TypeError as error:
            raise LaunchError(f"a row of the launch table: {error}") from None
    return LaunchTable(tuple(rows))


@cache
def shipped_table() -> LaunchTable:
    """The table that comes with the package; `tools/tune_kernels.py` writes it."""
    return parse_table(yaml.safe_load(TABLE.read_text(encoding="utf-8")))
