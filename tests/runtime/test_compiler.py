from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import jaxlib.version
import numpy as np
import pytest

from medha_jax.config import Buckets, ConfigError, MeshConfig, RuntimeConfig
from medha_jax.mesh import build_mesh
from medha_jax.runtime.compiler import CPU_OPTIONS, GPU_OPTIONS, GPU_OPTIONS_OF_HALVES, SUMMED_ROWS, compiler_options
from medha_jax.runtime.executables import ExecutableTable
from medha_jax.runtime.programs import Programs
from medha_jax.specs.buckets import Bucket, Segment
from medha_jax.specs.layout import Layout
from medha_jax.specs.model import Architecture

SHAPE = Bucket(Segment(1, 0, 0), Segment(0, 0, 0))


def compiled(options: dict[str, Any]) -> ExecutableTable:
    lower = {SHAPE: lambda: jax.jit(lambda x: x + 1).lower(jnp.ones(3))}
    return ExecutableTable.compile(lower, 1, lambda *_: None, options)


def test_only_gpus_get_options_and_none_means_none() -> None:
    assert compiler_options("auto", "gpu") == GPU_OPTIONS
    assert compiler_options("auto", "gpu", halves=True) == GPU_OPTIONS | GPU_OPTIONS_OF_HALVES
    assert compiler_options("auto", "cpu", halves=True) == compiler_options("none", "gpu", halves=True) == {}
    assert compiler_options("auto", "cpu") == compiler_options("none", "gpu") == {}
    with pytest.raises(ConfigError, match="xla_options is 'all'; allowed are auto, none"):
        RuntimeConfig(xla_options="all")


def test_this_xla_knows_every_option_and_value() -> None:
    """XLA checks names and values before it looks at the platform, so a CPU can tell."""
    assert compiled(compiler_options("auto", "gpu", halves=True)).shapes == (SHAPE,)


def summed(rows: int, options: dict[str, Any]) -> float:
    """The last of many short sums, which is `(rows - 1) ** 2`."""
    numbers = jnp.arange(rows, dtype=jnp.float32)
    x = jnp.stack((numbers, jnp.zeros_like(numbers), jnp.zeros_like(numbers)), axis=1)
    program = jax.jit(lambda x: jax.vmap(lambda row: jnp.sum((jnp.eye(3) @ row) ** 2))(x)).lower(x)
    stated: dict[str, Any] = {"xla_backend_optimization_level": 3, **options}
    return float(program.compile(stated)(x)[-1])


def test_sums_over_many_rows_are_right_on_cpus() -> None:
    """jax#39103."""
    assert compiler_options("auto", "cpu", SUMMED_ROWS) == {}
    assert summed(SUMMED_ROWS, {}) == float(np.float32(32767**2))
    assert compiler_options("auto", "cpu", SUMMED_ROWS + 1) == CPU_OPTIONS
    assert summed(SUMMED_ROWS + 1, CPU_OPTIONS) == 2.0**30
    if jaxlib.version.__version_info__ < (0, 11):
        assert summed(SUMMED_ROWS + 1, {}) != 2.0**30, "this jaxlib needs the option"


def test_programs_with_many_rows_state_the_option() -> None:
    few = RuntimeConfig()
    many = RuntimeConfig(mesh=MeshConfig(buckets=Buckets(slices=(8192,))), max_context=16384)
    options: dict[RuntimeConfig, Any] = {}
    for config in (few, many):
        arch = Architecture.from_directory(config.model)  # 8 heads
        programs = Programs(config, arch, jnp.dtype("float32"), build_mesh(Layout()))
        options[config] = programs.compiler_options
    assert options == {few: {}, many: CPU_OPTIONS}


@pytest.mark.parametrize(
    "wrong", [{"xla_gpu_enable_nothing": True}, {"xla_gpu_enable_command_buffer": "WHILE,NOTHING"}]
)
def test_options_reach_the_compiler(wrong: dict[str, Any]) -> None:
    with pytest.raises(jax.errors.JaxRuntimeError, match=next(iter(wrong))):
        compiled(wrong)


def test_the_start_of_a_gpu_says_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything after the lines that say what is chosen is left out here."""
    from medha_jax.runtime import start

    class Stop(Exception):
        pass

    def stop(*_: Any) -> None:
        raise Stop

    lines: list[str] = []
    monkeypatch.setattr(Programs, "compiler_options", compiler_options("auto", "gpu"))
    monkeypatch.setattr(start, "stored_shardings", stop)
    monkeypatch.setattr(start, "plan_memory", lambda *_: SimpleNamespace(lines=lambda: []))
    monkeypatch.setattr(start, "check_memory", lambda *_: None)
    with pytest.raises(Stop):
        start.open_executor(RuntimeConfig(max_context=512, pool_tokens=512), lines.append)
    assert lines[1].startswith("attention: llvm (by kernels for ")
    assert lines[2].startswith("XLA options: xla_gpu_enable_triton_gemm=False, ")
    assert lines[2].endswith("xla_disable_hlo_passes=rematerialization, xla_gpu_dot_merger_threshold_mb=0")
