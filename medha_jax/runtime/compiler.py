"""XLA options for ticks on GPUs. They go with each program, so the process's own settings stay unchanged."""

from __future__ import annotations

# Times: a tick of 64 decodes of an 8B model on an H200.
# - Triton GEMM off, dynamic slice fusion on: weights are stacked by layer. XLA's own matrix kernels first copy each
#   layer's weights out (7.8 of 17 ms). cuBLAS reads the slice in place.
# - Command buffers launch one recorded graph, conditions included, so the host never waits for a condition.
#   The list replaces XLA's default, which records neither the layers' loop nor collectives.
# - Latency hiding overlaps collectives with independent work. It cannot be measured on one GPU.
# - Dot merger off: XLA would copy the query, key and value weights side by side (100 MB a layer, 0.8 of 9.5 ms).
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
    """Options beside XLA's defaults and `XLA_FLAGS`; `setting` is `auto` or `none`, `platform` `gpu` or `cpu`."""
    return dict(GPU_OPTIONS) if setting == "auto" and platform == "gpu" else {}
