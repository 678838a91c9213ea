"""Every setting, as frozen data; the only place that reads the environment."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

DTYPES = ("auto", "float32", "bfloat16")
BUNDLED_MODEL = Path(__file__).parent / "bundled" / "tiny"


def default_compilation_cache() -> Path:
    """Directory of the persistent compilation cache: `MEDHA_JAX_CACHE`, else below the user's cache directory."""
    stated = os.environ.get("MEDHA_JAX_CACHE")
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(stated) if stated else base / "medha-jax" / "compiled"


class ConfigError(ValueError):
    """A setting is out of its range; the message says what is allowed."""


def _increasing(name: str, sizes: tuple[int, ...], smallest: int) -> None:
    if not sizes or sizes[0] < smallest or list(sizes) != sorted(set(sizes)):
        raise ConfigError(f"{name} is {sizes}; it must increase from at least {smallest}")


@dataclass(frozen=True)
class Buckets:
    """The padded shapes that a tick is compiled for: every pair of a decode and a prefill size.

    `decode` counts rows of one token; `prefill` counts tokens of prompt chunks (0 is always there beside them);
    `chunks` is the most prefill chunks that one tick may carry.
    """

    decode: tuple[int, ...] = (1, 8, 32)
    prefill: tuple[int, ...] = (16, 64, 256, 1024)
    chunks: int = 8

    def __post_init__(self) -> None:
        _increasing("decode buckets", self.decode, 1)
        _increasing("prefill buckets", self.prefill, 1)
        if self.chunks < 1:
            raise ConfigError(f"chunks a tick is {self.chunks}; it must be at least 1")


@dataclass(frozen=True)
class MeshConfig:
    """A layout of devices and the sizes that go with it.

    Args:
        tp: devices that split every layer (tensor axis).
        spp: pipeline stages that hold consecutive layers.
        kvp: groups with a KV pool of their own.
        page_size: tokens in a KV page.
        tokens_per_group: tokens of one request that a group holds before the next group takes over; None for
            everything, which one group always does.
        buckets: shapes of the rows that each group has of its own.
        shared_buckets: shapes of the rows of requests that are spread over groups.
        memory_fraction: of a device's memory that weights, pool and programs may take.
        hardware: name of the device kind that the layout is meant for.
    """

    tp: int = 1
    spp: int = 1
    kvp: int = 1
    page_size: int = 64
    tokens_per_group: int | None = None
    buckets: Buckets = field(default_factory=Buckets)
    shared_buckets: Buckets = field(default_factory=lambda: Buckets(decode=(4,), prefill=(256,), chunks=2))
    memory_fraction: float = 0.9
    hardware: str = "cpu"

    def __post_init__(self) -> None:
        if not 1 <= self.page_size <= 1024 or self.page_size & (self.page_size - 1):
            raise ConfigError(f"page size is {self.page_size}; allowed are powers of two from 1 to 1024")
        for name in ("tp", "spp", "kvp"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.tokens_per_group is not None and (self.tokens_per_group < 1 or self.tokens_per_group % self.page_size):
            raise ConfigError(
                f"tokens per group is {self.tokens_per_group}; it must be a multiple of the page size {self.page_size}"
            )
        if not 0 < self.memory_fraction <= 1:
            raise ConfigError(f"memory fraction is {self.memory_fraction}; allowed is (0, 1]")


@dataclass(frozen=True)
class RuntimeConfig:
    """What a runtime is built from.

    Args:
        model: Hugging Face or Orbax directory.
        dtype: of weights, activations and KV; `auto` is float32 on a CPU (XLA converts bf16 weights on every
            step there: 26 against 6 ms a token were measured) and bfloat16 elsewhere.
        max_context: most tokens of prompt and output together, None for the model's own limit.
        mesh: layout of the devices.
        slots: most requests that run at once.
        pool_tokens: tokens that the KV pool of each group holds, None for one request of `max_context`.
        keep_logits: return the logits of sampled rows to the host (for tests; costs a copy).
        seed: of requests that state none.
    """

    model: Path = BUNDLED_MODEL
    dtype: str = "auto"
    max_context: int | None = None
    mesh: MeshConfig = field(default_factory=MeshConfig)
    slots: int = 32
    pool_tokens: int | None = None
    keep_logits: bool = False
    seed: int = 0
    compilation_cache: Path | None = field(default_factory=default_compilation_cache)

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ConfigError(f"dtype is {self.dtype!r}; allowed are {', '.join(DTYPES)}")
        for name in ("slots", "max_context", "pool_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}; it must be at least 1")
        if self.mesh.buckets.decode[-1] > self.slots:
            raise ConfigError(f"decode bucket {self.mesh.buckets.decode[-1]} is larger than {self.slots} slots")
