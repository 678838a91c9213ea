"""XLA options for ticks. They go with each program, so the process's own settings stay unchanged."""

from __future__ import annotations

import jaxlib.version

# - Triton GEMM off: cuBLAS multiplies. XLA's own matrix kernels were slower on an H200, where they had to read stacked
#   weights; not tried since each layer's weights are arrays of their own.
# - Dynamic slice fusion off: it would wrap each kernel call that reads a part of the plan. XLA makes some without it,
#   which command buffers must record, too.
# - Command buffers launch one recorded graph, conditions included, so the host never waits for a condition.
#   The list replaces XLA's default, which records no collectives.
# - Loops are unrolled in them: those of the sampler, whose steps then need no condition on the device.
# - Latency hiding overlaps collectives with independent work. It cannot be measured on one GPU.
# - No rematerialization: where weights and pool take most of the memory, it computes products of a layer two and three
#   times to save activations, which are small.
# - Dot merger off: XLA would copy the query, key and value weights side by side (100 MB a layer, 0.8 of 9.5 ms).
GPU_OPTIONS: dict[str, str | bool | int] = {
    "xla_gpu_enable_triton_gemm": False,
    "xla_gpu_enable_dynamic_slice_fusion": False,
    "xla_gpu_enable_command_buffer": (
        "FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,DYNAMIC_SLICE_FUSION,CONDITIONAL,COLLECTIVES,WHILE"
    ),
    "xla_gpu_command_buffer_unroll_loops": True,
    "xla_gpu_enable_latency_hiding_scheduler": True,
    "xla_disable_hlo_passes": "rematerialization",
    "xla_gpu_dot_merger_threshold_mb": 0,
}

# Where halves of the rows take turns: XLA would join their sums over tp into one, up to 30 MiB, and wait for both.
GPU_OPTIONS_OF_HALVES: dict[str, str | bool | int] = {"xla_gpu_all_reduce_combine_threshold_bytes": 0}

# jaxlib 0.10 sums some arrays wrongly on CPUs: with over 32,768 rows of few entries, it takes the last rows' values
# from others (jax#39103). Its library of fused sums is at fault, without which the softmax of a prompt takes a quarter
# longer. So programs go without where they may have so many rows: rows of a tick times heads.
SUMMED_ROWS = 32_768
CPU_OPTIONS: dict[str, str | bool | int] = (
    {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"}
    if jaxlib.version.__version_info__ < (0, 11)
    else {}
)


def compiler_options(setting: str, platform: str, rows: int = 0, halves: bool = False) -> dict[str, str | bool | int]:
    """Options beside XLA's defaults and `XLA_FLAGS`.

    Args:
        setting: `auto` or `none`, of GPUs.
        platform: `gpu` or `cpu`.
        rows: most rows that a program may sum over, those of each head included.
        halves: halves of the rows take turns in some programs.
    """
    if platform == "cpu" and rows > SUMMED_ROWS:
        return dict(CPU_OPTIONS)
    if setting == "none" or platform != "gpu":
        return {}
    return GPU_OPTIONS | GPU_OPTIONS_OF_HALVES if halves else dict(GPU_OPTIONS)
