"""Launch configurations of the kernels: tile sizes from a table, and the resulting sizes for one shape of a tick."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import yaml

TABLE = Path(__file__).parent / "launches.yaml"
LARGEST_HEAD_DIM = 256
MOST_WAVES = 3  # most parts per program, on average, if KV is split
ROWS, KEYS = (16, 32, 64, 128, 256), (16, 32, 64, 128, 256)


class LaunchError(ValueError):
    """The kernels cannot run a configuration; the message says what they can run."""


@dataclass(frozen=True)
class GpuTarget:
    """The GPU to compile for: JAX's device name, compute capability times ten, number of multiprocessors."""

    name: str
    capability: int
    processors: int

    @classmethod
    def of(cls, device: Any) -> GpuTarget:
        """The target for a JAX device. Raises LaunchError if it is not an NVIDIA GPU."""
        major, _, minor = str(getattr(device, "compute_capability", "")).partition(".")
        if not (major.isdigit() and minor.isdigit()):
            where = f"{device.platform} ({device.device_kind})"
            raise LaunchError(f"the kernels need an NVIDIA GPU; the mesh is on {where}")
        return cls(device.device_kind, 10 * int(major) + int(minor), device.core_count)


@dataclass(frozen=True)
class TileConfig:
    """One row of the table: the sizes of a tile, and the cases that it is for.

    Args:
        gpu: a device name, or e.g. `sm90` for that capability and later ones without their own rows.
        head_dim: largest head_dim.
        dtype: of the pool.
        queries: most query rows of one KV head (prompt tokens times heads of a group); 1 for decodes.
        rows: query rows of a tile (tokens times heads of a group).
        keys: tokens of a block.
        warps: warps per program.
        stages: blocks loaded ahead by the pipeline.
        resident: programs that run on a multiprocessor at once.
        together: prompt tiles and decodes share one launch (set on prompt tiles).
        measured: a tuning run on that GPU chose this row.
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
    """The attention launch for one shape of a tick on one device.

    Args:
        decode: tile of one token.
        prefill: tile of prompt tokens; None if the shape has no prompt rows.
        decodes: number of decode rows.
        prompt_tiles: most prompt tiles.
        heads: KV heads of the device; `group` query heads share each.
        processors: number of multiprocessors.
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
        """Whether prompt tiles and decodes share one launch."""
        return self.prefill is not None and self.prefill.together

    @property
    def tile_tokens(self) -> int:
        """Prompt tokens of a tile."""
        return self.prefill.rows // self.group if self.prefill else 0

    def programs(self, tile: TileConfig) -> int:
        """Programs that run at once with this tile."""
        return self.processors * tile.resident

    def extra(self, tile: TileConfig) -> int:
        """Most parts beyond the first of each tile, for one KV head."""
        return -(-MOST_WAVES * self.programs(tile) // self.heads)

    @property
    def decode_items(self) -> int:
        """Places for decodes in the work list, before those of prompt tiles; 0 if both share one launch."""
        return 0 if self.together else self.decodes + self.extra(self.decode)

    @property
    def prefill_items(self) -> int:
        """Places for prompt tiles, or for both kinds if they share one launch."""
        if self.prefill is None:
            return 0
        return self.prompt_tiles + self.extra(self.prefill) + (self.decodes if self.together else 0)

    @property
    def items(self) -> int:
        """Places in the work list."""
        return self.decode_items + self.prefill_items

    @property
    def merges(self) -> int:
        """Most tiles that are cut; each has at least one extra part."""
        extra = self.extra(self.prefill) if self.prefill else 0
        return min(self.decodes + self.prompt_tiles, extra + (0 if self.together else self.extra(self.decode)))

    @property
    def part_rows(self) -> int:
        """Rows of partial results of one KV head: n parts are n - 1 extra ones, so at most two per extra part."""
        large = self.prefill.rows * 2 * self.extra(self.prefill) if self.prefill else 0
        return large + (0 if self.together else self.decode.rows * 2 * self.extra(self.decode))


@dataclass(frozen=True)
class LaunchTable:
    """Tile sizes by GPU, head_dim, dtype and prompt bucket."""

    rows: tuple[TileConfig, ...]

    def find(self, target: GpuTarget, head_dim: int, dtype: str, queries: int) -> TileConfig:
        """The row for `queries` query rows of one KV head; 1 means decodes. Raises LaunchError if there is none.

        Rows of the GPU itself have priority, then rows of its capability, then those of lower capabilities.
        """
        dtype = {"float16": "bfloat16"}.get(dtype, dtype)  # same size, same instructions
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
    """How closely a row's GPU matches a target: 0 is best, None is no match."""
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
