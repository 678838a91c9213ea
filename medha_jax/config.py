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


def _increasing(name: str, sizes: tuple[int, ...], smallest: int) -> None:
    if not sizes or sizes[0] < smallest or list(sizes) != sorted(set(sizes)):
        raise ValueError(f"{name} is {sizes}; it must increase from at least {smallest}")


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
            raise ValueError(f"chunks a tick is {self.chunks}; it must be at least 1")


@dataclass(frozen=True)
class RuntimeConfig:
    """What a runtime is built from.

    Args:
        model: Hugging Face or Orbax directory.
        dtype: of weights, activations and KV; `auto` is float32 on a CPU (XLA converts bf16 weights on every
            step there: 26 against 6 ms a token were measured) and bfloat16 elsewhere.
        max_context: most tokens of prompt and output together, None for the model's own limit.
        page_size: tokens in a KV page.
        slots: most requests that run at once.
        pool_tokens: tokens that the KV pool holds, None for `max_context`.
        keep_logits: return the logits of sampled rows to the host (for tests; costs a copy).
        seed: of requests that state none.
    """

    model: Path = BUNDLED_MODEL
    dtype: str = "auto"
    max_context: int | None = None
    page_size: int = 64
    slots: int = 32
    pool_tokens: int | None = None
    buckets: Buckets = field(default_factory=Buckets)
    keep_logits: bool = False
    seed: int = 0
    compilation_cache: Path | None = field(default_factory=default_compilation_cache)

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype is {self.dtype!r}; allowed are {', '.join(DTYPES)}")
        if not 1 <= self.page_size <= 1024 or self.page_size & (self.page_size - 1):
            raise ValueError(f"page size is {self.page_size}; allowed are powers of two from 1 to 1024")
        for name in ("slots", "max_context", "pool_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        if self.buckets.decode[-1] > self.slots:
            raise ValueError(f"decode bucket {self.buckets.decode[-1]} is larger than {self.slots} slots")
