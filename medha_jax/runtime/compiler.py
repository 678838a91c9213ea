"""XLA's settings for the ticks on GPUs. They go with each program, so nothing of the process changes."""

from __future__ import annotations

# Command buffers launch a recorded graph in place of kernel after kernel; a list replaces XLA's own, which records
# neither the layers' loop nor collectives. Latency hiding moves collectives beside work that does not need them.
# Neither was measured on a GPU yet.
GPU_OPTIONS: dict[str, str | bool] = {
    "xla_gpu_enable_command_buffer": (
        "FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,DYNAMIC_SLICE_FUSION,CONDITIONAL,COLLECTIVES,WHILE"
    ),
    "xla_gpu_enable_latency_hiding_scheduler": True,
}


def compiler_options(setting: str, platform: str) -> dict[str, str | bool]:
    """What a tick is compiled with beside XLA's own settings and `XLA_FLAGS`, by option.

    Args:
        setting: `auto`, or `none` for nothing.
        platform: of the mesh's devices, `gpu` or `cpu`.
    """
    return dict(GPU_OPTIONS) if setting == "auto" and platform == "gpu" else {}
