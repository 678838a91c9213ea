"""Compiles the programs of an 8B model for a GPU that is not there, whose memory weights and pool fill."""

from collections.abc import Sequence
from importlib.util import find_spec

import jax.numpy as jnp
import jaxlib.version
import pytest

from benchmarks.gpu.counts import LLAMA_3_8B
from medha_jax.config import MeshConfig, RuntimeConfig
from medha_jax.inspection import GpuReport, inspect_for_gpu
from medha_jax.inspection.gpu_targets import GpuDescription
from medha_jax.inspection.inspection import Choose, virtual_programs
from medha_jax.runtime.memory import plan_memory
from medha_jax.specs.model import Architecture

LACKING = [name for name in ("triton", "jax_triton", "jax_cuda12_plugin") if find_spec(name) is None]
NEEDED: Sequence[pytest.MarkDecorator] = [
    pytest.mark.kernels,
    pytest.mark.skipif(LACKING != [], reason="the `kernels` extra is not installed"),
    pytest.mark.skipif(jaxlib.version.__version_info__ < (0, 11), reason="calls of jax-triton 0.3 are not recorded"),
]


def compiled(
    gpu: GpuDescription, mesh: MeshConfig, choose: Choose, filled: float, layers: int | None = None
) -> GpuReport:
    """The report about a layout where `filled` of the GPU's memory is taken; the model has `layers`, by default all."""
    number = LLAMA_3_8B["num_hidden_layers"] if layers is None else layers
    arch, dtype = Architecture.from_config({**LLAMA_3_8B, "num_hidden_layers": number}), jnp.dtype("bfloat16")
    limit = int(filled * gpu.memory)

    def config(tokens: int) -> RuntimeConfig:
        return RuntimeConfig(mesh=mesh, slots=64, compilation_cache=None, pool_tokens=tokens)

    memory = plan_memory(virtual_programs(config(mesh.page_size), arch, dtype, gpu.target), limit)
    filling = (limit - memory.total) // memory.pool_per_page * mesh.page_size
    return inspect_for_gpu(gpu, config(filling), arch, dtype, choose=choose)
