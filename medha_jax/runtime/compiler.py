"""XLA's settings for the ticks on GPUs. They go with each program, so nothing of the process changes."""

from __future__ import annotations

# Weights lie stacked by layer. XLA's own matrix kernels want each layer's copied out first: on an H200 that was 7.8 of
# the 17 ms of a tick of 64 decodes of an 8B model. cuBLAS reads them where they lie, if slices may become part of its
# calls. Command buffers launch a recorded graph in place of kernel after kernel, conditions included, so that the host
# does not wait for one; a list replaces XLA's own, which records neither the layers' loop nor collectives. Latency
# hiding moves collectives beside work that does not need them; with one GPU there is nothing to measure. XLA would
# join the products of queries, keys and values by writing their weights side by side, 100 MB a layer of an 8B model:
# 0.8 of the 9.5 ms of a tick.
GPU_OPTIONS: dict[str, str | bool | int] = {
    "xla_gpu_enable_triton_gemm": False,
    "xla_gpu_enable_dynamic_slice_fusion": True,
    "xla_gpu_enable_command_buffer": (
        "FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,DYNAMIC_SLICE_FUSION,CONDITIONAL,COLLECTIVES,WHILE"
    ),
    "xla_gpu_enable_latency_hiding_scheduler": True,
    "xla_gpu_dot_merger_threshold_mb": 0,
}


def compiler_options(setting: str, platform: str) -> dict[str, str | bool | int]:
    """What a tick is compiled with beside XLA's own settings and `XLA_FLAGS`, by option.

    Args:
        setting: `auto`, or `none` for nothing.
        platform: of the mesh's devices, `gpu` or `cpu`.
    """
    return dict(GPU_OPTIONS) if setting == "auto" and platform == "gpu" else {}
