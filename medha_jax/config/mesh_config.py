"""The layout of the devices, and the shapes of compiled ticks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from medha_jax.config.declaration import ConfigError, check_settings, setting
from medha_jax.config.yaml_file import read_mapping

# Axes of the mesh, and the settings of their sizes; only `mesh` divides arrays over them.
TENSOR, STAGE, GROUP = "tp", "spp", "kvp"
MESH_CONFIGS = Path(__file__).parents[2] / "mesh_configs"
USUAL_SLOTS = 32  # requests at once where nothing else is stated


def _increasing(name: str, sizes: tuple[int, ...], smallest: int) -> None:
    if not sizes or sizes[0] < smallest or list(sizes) != sorted(set(sizes)):
        raise ConfigError(f"{name} is {sizes}; it must increase from at least {smallest}")


@dataclass(frozen=True)
class Buckets:
    """The padded shapes of compiled ticks: every pair of a decode and a prefill size; and those of slices.

    Prefill size 0 is added unless `mixed_only`.
    """

    decode: tuple[int, ...] = setting((0, 1, 16, 32), "Rows of one token; 0: for prompts that nobody decodes beside.")
    prefill: tuple[int, ...] = setting((32, 128), "Tokens of prompt chunks.")
    chunks: int = setting(8, "Most prefill chunks that one tick may carry.", at_least=1, words="chunks a tick")
    mixed_only: bool = setting(False, "Fewer shapes are compiled; ticks without a prompt are slower.")
    slices: tuple[int, ...] = setting(
        (128, 256, 512, 1024), "Tokens of a prompt chunk that runs some layers at a time; none: every chunk is a tick."
    )

    @cached_property
    def prefill_sizes(self) -> tuple[int, ...]:
        """All prompt sizes, smallest first."""
        return self.prefill if self.mixed_only else (0, *self.prefill)

    @cached_property
    def fewest_decodes(self) -> int:
        """The smallest decode size that holds a decode."""
        return next(size for size in self.decode if size)

    def __post_init__(self) -> None:
        _increasing("decode buckets", self.decode, 0)
        if not self.decode[-1]:
            raise ConfigError("decode buckets is (0,); it must have a size of at least 1")
        _increasing("prefill buckets", self.prefill, 1)
        if self.slices:
            _increasing("slices", self.slices, 2)
        check_settings(self)

    def for_slots(self, slots: int) -> Buckets:
        """The same sizes without decode rows that `slots` requests never fill: sizes above are cut to `slots`."""
        return replace(self, decode=tuple(sorted({min(size, slots) for size in self.decode})))

    def in_rows_of(self, multiple: int) -> Buckets:
        """The same sizes, each rounded up to a multiple."""

        def rounded(sizes: tuple[int, ...]) -> tuple[int, ...]:
            return tuple(sorted({-(-size // multiple) * multiple for size in sizes}))

        return replace(self, decode=rounded(self.decode), prefill=rounded(self.prefill), slices=rounded(self.slices))


@dataclass(frozen=True)
class Axes:
    """How many devices each axis of the mesh has."""

    tp: int = setting(1, "Devices that split every layer (tensor axis).", at_least=1)
    spp: int = setting(1, "Pipeline stages that hold consecutive layers.", at_least=1)
    kvp: int = setting(1, "Groups with a KV pool of their own.", at_least=1)

    def __post_init__(self) -> None:
        check_settings(self)

    def __str__(self) -> str:
        return f"{TENSOR}={self.tp},{STAGE}={self.spp},{GROUP}={self.kvp}"

    @property
    def devices(self) -> int:
        """Devices in the whole mesh, e.g. tp=8, spp=2 needs 16."""
        return self.tp * self.spp * self.kvp


@dataclass(frozen=True)
class MeshConfig(Axes):
    """A layout of devices and the sizes that belong to it; the first three settings are those of `Axes`."""

    page_size: int = setting(64, "Tokens in a KV page; a power of two.", metavar="N")
    # None: one group holds everything
    tokens_per_group: int | None = setting(None, "Tokens of one request that a KV group holds.", metavar="N")
    overlap_rows: int | None = setting(
        None,
        "Fewest rows of a tick or slice whose halves take turns: one's sums over tp run beside the other's products. "
        "Default: never.",
        at_least=16,
        words="overlap rows",
        metavar="N",
    )
    # rows that belong to one group
    buckets: Buckets = field(default_factory=Buckets)
    # rows of requests that are spread over groups; None if there are none
    shared_buckets: Buckets | None = field(
        default_factory=lambda: Buckets(decode=(4,), prefill=(128,), slices=(256,), chunks=2)
    )
    memory_fraction: float = setting(
        0.9,
        "Of a device's memory (of a GPU's, what JAX takes of it) that weights, pool and programs may take.",
        above=0,
        at_most=1,
        words="memory fraction",
    )
    hardware: str = setting("cpu", "Device kind that the layout is meant for.")

    def __post_init__(self) -> None:
        if not 1 <= self.page_size <= 1024 or self.page_size & (self.page_size - 1):
            raise ConfigError(f"page size is {self.page_size}; allowed are powers of two from 1 to 1024")
        if self.tokens_per_group is not None and (self.tokens_per_group < 1 or self.tokens_per_group % self.page_size):
            raise ConfigError(
                f"tokens per group is {self.tokens_per_group}; it must be a multiple of the page size {self.page_size}"
            )
        if self.overlap_rows is not None and self.tp == 1:
            raise ConfigError(f"overlap rows is {self.overlap_rows} with tp 1; it needs a tp of at least 2")
        super().__post_init__()

    def for_slots(self, slots: int) -> MeshConfig:
        """The same layout with the decode rows of `slots` requests at once (`Buckets.for_slots`)."""
        shared = self.shared_buckets and self.shared_buckets.for_slots(slots)
        return replace(self, buckets=self.buckets.for_slots(slots), shared_buckets=shared)

    def in_rows_of(self, multiple: int) -> MeshConfig:
        """The same layout with the rows of every shape rounded up to a multiple (`Buckets.in_rows_of`)."""
        shared = self.shared_buckets and self.shared_buckets.in_rows_of(multiple)
        return replace(self, buckets=self.buckets.in_rows_of(multiple), shared_buckets=shared)

    @property
    def usual_slots(self) -> int:
        """Requests at once where nothing else is stated: `USUAL_SLOTS`, or the largest decode size."""
        return max(USUAL_SLOTS, self.buckets.decode[-1])

    @property
    def spread_buckets(self) -> Buckets | None:
        """`shared_buckets` if there are several groups, None if there is one."""
        return self.shared_buckets if self.kvp > 1 else None


def load_mesh(text: str) -> MeshConfig:
    """Read a layout: a YAML file, a name in `mesh_configs/`, or settings such as `tp=2,spp=2,kvp=2`.

    Raises:
        ConfigError: there is no such file or name, or a setting is unknown or out of range.
    """
    if "=" in text:
        stated: dict[str, int] = {}
        for part in text.split(","):
            name, _, value = (word.strip() for word in part.partition("="))
            if name in stated:
                raise ConfigError(f"layout setting {name} is stated twice in {text!r}")
            stated[name] = _number(name, value)
        return mesh_from(stated)
    named = MESH_CONFIGS / f"{text}.yaml"
    path = Path(text) if text.endswith((".yaml", ".yml")) else named
    try:
        return mesh_from(read_mapping(path, what=f"layout {text!r}"))
    except OSError as error:
        names = ", ".join(sorted(file.stem for file in MESH_CONFIGS.glob("*.yaml")))
        raise ConfigError(
            f"cannot read layout {text!r} ({error.strerror}); give a YAML file, tp=N,spp=N,kvp=N, or one of: {names}"
        ) from None


def mesh_from(stated: Mapping[str, Any]) -> MeshConfig:
    """A layout from named settings; `buckets` and `shared_buckets` are mappings of decode, prefill and chunks.

    Raises:
        ConfigError: a setting is unknown, of the wrong type or out of range.
    """
    values = dict(stated)
    _known("layout", values, MeshConfig)
    for name in ("buckets", "shared_buckets"):
        if isinstance(values.get(name), Mapping):
            sizes: dict[str, Any] = dict(values[name])
            _known(name, sizes, Buckets)
            sizes = {key: tuple(size) if isinstance(size, list) else size for key, size in sizes.items()}
            values[name] = Buckets(**sizes)
    try:
        return MeshConfig(**values)
    except TypeError as error:
        raise ConfigError(f"layout: {error}") from None


def _known(what: str, values: Mapping[str, Any], kind: type) -> None:
    allowed = [field.name for field in fields(kind)]
    unknown = [str(name) for name in values if name not in allowed]
    if unknown:
        raise ConfigError(f"{what} has unknown settings {', '.join(unknown)}; allowed are {', '.join(allowed)}")


def _number(name: str, value: str) -> int:
    if not re.fullmatch("[0-9]{1,9}", value):
        raise ConfigError(
            f"layout setting {name}={value} is not a whole number of at most nine digits; give for example "
            "tp=2,spp=2,kvp=2"
        )
    return int(value)
