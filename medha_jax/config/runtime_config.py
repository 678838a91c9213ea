"""Settings of a runtime."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from medha_jax.config.declaration import check_settings, setting
from medha_jax.config.environment import default_compilation_cache
from medha_jax.config.mesh_config import USUAL_SLOTS, MeshConfig

DTYPES = ("auto", "float32", "bfloat16")
KV_DTYPES = ("auto", "fp8")
ATTENTIONS = ("auto", "xla", "llvm", "triton")
XLA_OPTIONS = ("auto", "none")
BUNDLED_MODEL = Path(__file__).parents[1] / "bundled" / "tiny"
_MEMORY = "Memory"


@dataclass(frozen=True)
class RuntimeConfig:
    """Settings of a runtime.

    `runtime.dtype.choose_dtype` says what `dtype` auto is. `kv_dtype` fp8 is e4m3 with an exponent for each token and
    head. `xla_options` auto compiles the ticks of a GPU with `runtime.compiler.GPU_OPTIONS`. Of `mesh`, decode sizes
    above `slots` are cut to `slots`.
    """

    model: Path = BUNDLED_MODEL  # a Hugging Face or Orbax directory
    dtype: str = setting(
        "auto",
        "auto: bfloat16; on a CPU float32, unless the weights are bfloat16 and that is measured to be faster.",
        choices=DTYPES,
    )
    kv_dtype: str = setting(
        "auto", "Of the KV cache; auto: that of the activations, fp8: half the bytes of bfloat16.", choices=KV_DTYPES
    )
    attention: str = setting(
        "auto",
        "auto: the Triton kernels on NVIDIA GPUs, and on CPUs decodes by LLVM, where they run; else XLA.",
        choices=ATTENTIONS,
    )
    xla_options: str = setting(
        "auto",
        "auto: command buffers and latency hiding for ticks on GPUs; none: XLA's own settings.",
        choices=XLA_OPTIONS,
    )
    bind_threads: bool = setting(
        True,
        "On CPUs, bind each thread that computes to a core of its own; after a pause several could wake on one core.",
    )
    max_context: int | None = setting(
        None, "Prompt and output together, in tokens. Default: the model's.", at_least=1, panel=_MEMORY
    )
    mesh: MeshConfig = field(default_factory=MeshConfig)
    slots: int = setting(
        USUAL_SLOTS,
        f"Requests that run at once. Default: {USUAL_SLOTS}, or the layout's largest decode size.",
        at_least=1,
        panel=_MEMORY,
    )
    pool_tokens: int | None = setting(
        None,
        "KV tokens of each group. Default: what the memory leaves, on CPUs a quarter of it; at most what all slots can "
        "use.",
        at_least=1,
        panel=_MEMORY,
    )
    host_kv_gib: float = setting(
        0.0,
        "Host memory for KV pages that leave the devices' prefix cache, in GiB of each process; 0: none.",
        at_least=0,
        at_most=2**20,
        panel=_MEMORY,
    )
    prompt_logprobs: bool = setting(
        False,
        "Compile what requests with prompt_logprobs need; other servers refuse them.",
        switch=True,
    )
    keep_logits: bool = False  # return the logits of sampled rows to the host: for tests, because it costs a copy
    compilation_cache: Path | None = field(default_factory=default_compilation_cache)

    def __post_init__(self) -> None:
        check_settings(self)
        object.__setattr__(self, "mesh", self.mesh.for_slots(self.slots))
