"""Every setting, as frozen data; the only place that reads the environment."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

DTYPES = ("auto", "float32", "bfloat16")
KV_DTYPES = ("auto", "fp8")
ATTENTIONS = ("auto", "xla", "triton")
XLA_OPTIONS = ("auto", "none")
BUNDLED_MODEL = Path(__file__).parent / "bundled" / "tiny"


def default_compilation_cache() -> Path:
    """Directory of the persistent compilation cache: `MEDHA_JAX_CACHE`, else below the user's cache directory."""
    stated = os.environ.get("MEDHA_JAX_CACHE")
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(stated) if stated else base / "medha-jax" / "compiled"


class ConfigError(ValueError):
    """A setting is out of its range; the message says what is allowed."""


# Axes of the mesh, and the settings of their sizes; `mesh` alone divides arrays over them.
TENSOR, STAGE, GROUP = "tp", "spp", "kvp"
MESH_CONFIGS = Path(__file__).parent.parent / "mesh_configs"
CPU_COLLECTIVE_FLAGS = (
    "--xla_cpu_collective_call_warn_stuck_timeout_seconds=300",
    "--xla_cpu_collective_call_terminate_timeout_seconds=600",
)


def patient_cpu_collectives() -> None:
    """Give devices that share few cores time to meet in a collective; to be called before JAX starts a backend.

    Flags that `XLA_FLAGS` already states are left as they are.
    """
    stated = os.environ.get("XLA_FLAGS", "")
    missing = [flag for flag in CPU_COLLECTIVE_FLAGS if flag.split("=")[0] not in stated]
    os.environ["XLA_FLAGS"] = " ".join([stated, *missing]).strip()


def _increasing(name: str, sizes: tuple[int, ...], smallest: int) -> None:
    if not sizes or sizes[0] < smallest or list(sizes) != sorted(set(sizes)):
        raise ConfigError(f"{name} is {sizes}; it must increase from at least {smallest}")


@dataclass(frozen=True)
class Buckets:
    """The padded shapes that a tick is compiled for: every pair of a decode and a prefill size.

    `decode` counts rows of one token; `prefill` counts tokens of prompt chunks, with 0 beside them unless
    `mixed_only`, which compiles fewer shapes and makes ticks without a prompt slower;
    `chunks` is the most prefill chunks that one tick may carry.
    """

    decode: tuple[int, ...] = (1, 8, 32)
    prefill: tuple[int, ...] = (16, 64, 256, 1024)
    chunks: int = 8
    mixed_only: bool = False

    @property
    def prefill_sizes(self) -> tuple[int, ...]:
        """All prompt sizes, smallest first."""
        return self.prefill if self.mixed_only else (0, *self.prefill)

    def __post_init__(self) -> None:
        _increasing("decode buckets", self.decode, 1)
        _increasing("prefill buckets", self.prefill, 1)
        if self.chunks < 1:
            raise ConfigError(f"chunks a tick is {self.chunks}; it must be at least 1")


@dataclass(frozen=True)
class Axes:
    """How many devices each axis of the mesh has.

    Args:
        tp: devices that split every layer (tensor axis).
        spp: pipeline stages that hold consecutive layers.
        kvp: groups with a KV pool of their own.
    """

    tp: int = 1
    spp: int = 1
    kvp: int = 1

    def __post_init__(self) -> None:
        for name in (TENSOR, STAGE, GROUP):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1")

    def __str__(self) -> str:
        return f"{TENSOR}={self.tp},{STAGE}={self.spp},{GROUP}={self.kvp}"

    @property
    def devices(self) -> int:
        """Devices in the whole mesh, e.g. tp=8, spp=2 needs 16."""
        return self.tp * self.spp * self.kvp


@dataclass(frozen=True)
class MeshConfig(Axes):
    """A layout of devices and the sizes that go with it; the first three settings are those of `Axes`.

    Args:
        page_size: tokens in a KV page.
        tokens_per_group: tokens of one request that a group holds before the next group takes over; None for
            everything, which one group always does.
        buckets: shapes of the rows that each group has of its own.
        shared_buckets: shapes of the rows of requests that are spread over groups; None if there are none.
        memory_fraction: of a device's memory that weights, pool and programs may take.
        hardware: name of the device kind that the layout is meant for.
    """

    page_size: int = 64
    tokens_per_group: int | None = None
    buckets: Buckets = field(default_factory=Buckets)
    shared_buckets: Buckets | None = field(default_factory=lambda: Buckets(decode=(4,), prefill=(256,), chunks=2))
    memory_fraction: float = 0.9
    hardware: str = "cpu"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.page_size <= 1024 or self.page_size & (self.page_size - 1):
            raise ConfigError(f"page size is {self.page_size}; allowed are powers of two from 1 to 1024")
        if self.tokens_per_group is not None and (self.tokens_per_group < 1 or self.tokens_per_group % self.page_size):
            raise ConfigError(
                f"tokens per group is {self.tokens_per_group}; it must be a multiple of the page size {self.page_size}"
            )
        if not 0 < self.memory_fraction <= 1:
            raise ConfigError(f"memory fraction is {self.memory_fraction}; allowed is (0, 1]")

    @property
    def spread_buckets(self) -> Buckets | None:
        """`shared_buckets` where there are several groups to share rows, None where there is one."""
        return self.shared_buckets if self.kvp > 1 else None


def load_mesh(text: str) -> MeshConfig:
    """Read a layout: a YAML file, the name of one in `mesh_configs/`, or settings as in `tp=2,spp=2,kvp=2`.

    Raises:
        ConfigError: there is no such file or name, or a setting is unknown or out of range.
    """
    if "=" in text:
        pairs = [part.partition("=") for part in text.split(",")]
        return mesh_from({name.strip(): _number(name, value) for name, _, value in pairs})
    named = MESH_CONFIGS / f"{text}.yaml"
    path = Path(text) if text.endswith((".yaml", ".yml")) else named
    try:
        stated = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        names = ", ".join(sorted(file.stem for file in MESH_CONFIGS.glob("*.yaml")))
        raise ConfigError(
            f"cannot read layout {text!r} ({error.strerror}); give a YAML file, tp=N,spp=N,kvp=N, or one of: {names}"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"layout {text!r} is not valid YAML: {error}") from None
    if not isinstance(stated, dict):
        raise ConfigError(f"layout {text!r} must be a mapping of settings")
    return mesh_from(stated)


def mesh_from(stated: Mapping[str, Any]) -> MeshConfig:
    """A layout from settings by name; `buckets` and `shared_buckets` are mappings of decode, prefill and chunks.

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
    if not (value.strip().isascii() and value.strip().isdigit()):
        raise ConfigError(
            f"layout setting {name.strip()}={value} is not a whole number; give for example tp=2,spp=2,kvp=2"
        )
    return int(value)


@dataclass(frozen=True)
class RuntimeConfig:
    """What a runtime is built from.

    Args:
        model: Hugging Face or Orbax directory.
        dtype: of weights and activations; `auto` is float32 on a CPU (XLA converts bf16 weights on every
            step there: 26 against 6 ms a token were measured) and bfloat16 elsewhere.
        kv_dtype: of the KV pool; `auto` is that of the activations, `fp8` is e4m3 with an exponent a token and head.
        attention: `triton` for the GPU kernels, `xla`, or `auto` for the kernels where they run.
        xla_options: `auto` compiles the ticks of a GPU with `runtime.compiler.GPU_OPTIONS`, `none` without.
        max_context: most tokens of prompt and output together, None for the model's own limit.
        mesh: layout of the devices.
        slots: most requests that run at once.
        pool_tokens: tokens that the KV pool of each group holds, None for one request of `max_context`.
        keep_logits: return the logits of sampled rows to the host (for tests; costs a copy).
        seed: of requests that state none.
    """

    model: Path = BUNDLED_MODEL
    dtype: str = "auto"
    kv_dtype: str = "auto"
    attention: str = "auto"
    xla_options: str = "auto"
    max_context: int | None = None
    mesh: MeshConfig = field(default_factory=MeshConfig)
    slots: int = 32
    pool_tokens: int | None = None
    keep_logits: bool = False
    seed: int = 0
    compilation_cache: Path | None = field(default_factory=default_compilation_cache)

    def __post_init__(self) -> None:
        for name, allowed in (
            ("dtype", DTYPES),
            ("kv_dtype", KV_DTYPES),
            ("attention", ATTENTIONS),
            ("xla_options", XLA_OPTIONS),
        ):
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{name} is {getattr(self, name)!r}; allowed are {', '.join(allowed)}")
        for name in ("slots", "max_context", "pool_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}; it must be at least 1")
        if self.mesh.buckets.decode[-1] > self.slots:
            raise ConfigError(f"decode bucket {self.mesh.buckets.decode[-1]} is larger than {self.slots} slots")


POLICIES = ("fcfs", "srtf", "edf", "lrs", "lars", "red")


@dataclass(frozen=True)
class SchedulerConfig:
    """What a scheduler is built from. Times are in seconds.

    Args:
        policy: order of the prompts, one of POLICIES (`medha_jax.scheduler.policies`).
        chunk_preemption: whether prompts take turns chunk by chunk. Without it one prompt runs to its end before the
            next begins, and decodes of others ride along in its ticks.
        deadline_margin: fraction of the time to its deadline within which LARS aims to finish a prompt.
        relegated_share: part of the time that RED guarantees to requests that have missed their deadline.
        relegated_tokens: KV tokens that such prompts may keep while others are served, None for half of the pool; the
            one that is next among them keeps its own beside these.
        rho_max: most of a tick that a long prompt with slack leaves to others, as a fraction.
        ttft_multiple: a request without a deadline gets this multiple of its predicted prefill alone.
        ttft_floor_s: and at least this.
        tpot_target_s: time per output token of requests that state none.
        tpot_floor_s: stated targets below are raised to it, so that no client holds up the prompts of all others.
        idle_tick_s: what a tick without decodes aims at; a new arrival waits for its end to be looked at. It may take
            twice as long where a smaller chunk would hardly make it shorter, because reading the context takes most.
        long_tokens: prompts from this length on are long: one a tick and group, and they yield when they have slack.
        ageing_ticks: every so many ticks the admitted prompt that has waited longest goes first.
        preemption: whether a more urgent request may take the pages and the slot of a less urgent one.
        max_preemptions: times that one request can lose its pages.
        bypass_s: time that requests may be admitted past a more urgent one that does not fit; and time after which
            a preempted request goes before all others.
        max_waiting: requests that may wait; more are refused.
        max_waiting_tokens: prompt tokens of all waiting requests, None for no limit; a lone one may have more.
        prefix_cache: whether pages of finished requests are found again by their tokens.
    """

    policy: str = "red"
    chunk_preemption: bool = True
    deadline_margin: float = 0.3
    relegated_share: float = 0.05
    relegated_tokens: int | None = None
    rho_max: float = 0.4
    ttft_multiple: float = 1.5
    ttft_floor_s: float = 0.5
    tpot_target_s: float = 0.05
    tpot_floor_s: float = 0.01
    idle_tick_s: float = 0.2
    long_tokens: int = 65536
    ageing_ticks: int = 20
    preemption: bool = True
    max_preemptions: int = 3
    bypass_s: float = 10.0
    max_waiting: int = 4096
    max_waiting_tokens: int | None = None
    prefix_cache: bool = True

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise ConfigError(f"policy is {self.policy!r}; allowed are {', '.join(POLICIES)}")
        for name in ("ttft_multiple", "ttft_floor_s", "tpot_target_s", "tpot_floor_s", "idle_tick_s"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be above 0")
        for name in ("long_tokens", "ageing_ticks", "max_waiting"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("max_waiting_tokens", "relegated_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}; it must be at least 1")
        for name in ("max_preemptions", "bypass_s"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 0")
        if not 0 < self.deadline_margin <= 1:
            raise ConfigError(f"deadline_margin is {self.deadline_margin}; allowed is (0, 1]")
        if not 0 < self.relegated_share < 1:
            raise ConfigError(f"relegated_share is {self.relegated_share}; it must be above 0 and below 1")
        if not 0 <= self.rho_max < 1:
            raise ConfigError(f"rho_max is {self.rho_max}; allowed is [0, 1)")
