from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest

from medha_jax.attention import KernelAttention, LaunchError, LlvmAttention, choose, implementations
from medha_jax.attention.gpu.launch import GpuTarget
from medha_jax.specs.buckets import Bucket, Segment

H200 = GpuTarget("NVIDIA H200", 90, 132)
A100 = GpuTarget("NVIDIA A100", 80, 108)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(implementations, "find_spec", lambda name: object())


def chosen(setting: str, target: GpuTarget | None = None, **change: Any):
    sizes: dict[str, Any] = dict(heads=8, group=4, head_dim=128, page=64, dtype=jnp.dtype("bfloat16"), fp8=False)
    return choose(setting, jax.devices("cpu")[0], target=target, **{**sizes, **change})


def test_a_cpu_mesh_gets_attention_by_llvm() -> None:
    for setting in ("auto", "llvm"):
        attention = chosen(setting, dtype=jnp.dtype("float32"))
        assert isinstance(attention, LlvmAttention) and attention.why.startswith("by kernels for")
        assert "item" not in {field.name for field in attention.layout(Bucket(Segment(8, 64, 2))).fields}
    for change in ({}, dict(dtype=jnp.dtype("float32"), page=2)):
        attention = chosen("auto", **change)
        assert isinstance(attention, LlvmAttention) and attention.why.endswith("prompts by XLA")
    assert chosen("xla").name == chosen("xla", H200).name == "xla"


@pytest.mark.parametrize(
    "target, change, message",
    [
        (H200, {}, "it compiles for CPUs, and the mesh is on GPUs"),
        (None, dict(fp8=True), "read no eight-bit pool"),
        (None, dict(dtype=jnp.dtype("float16")), "dtype is float16; the kernels for CPUs take float32 and bfloat16"),
        (None, dict(head_dim=18), "head_dim is 18; the kernels for CPUs take multiples of 4"),
    ],
)
def test_what_llvm_cannot_do_is_an_error_when_asked_for(
    target: GpuTarget | None, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(LaunchError, match=f"attention=llvm cannot run here: .*{message}"):
        chosen("llvm", target, **change)
    if target is None:
        attention = chosen("auto", **change)
        assert attention.name == "xla" and message in attention.why


def test_a_gpu_gets_the_kernels(installed: None) -> None:
    for setting in ("auto", "triton"):
        attention = chosen(setting, H200)
        assert isinstance(attention, KernelAttention)
        assert attention.why == "NVIDIA H200, sm90; tile sizes not measured on it"


@pytest.mark.parametrize(
    "target, change, message",
    [
        (GpuTarget("Tesla T4", 75, 40), {}, "need compute capability 8.0; Tesla T4 has 7.5"),
        (A100, dict(fp8=True), "an eight-bit pool needs compute capability 8.9; NVIDIA A100 has 8.0"),
        (H200, dict(head_dim=512), "head_dim is 512; the kernels take multiples of 8 up to 256"),
        (H200, dict(head_dim=36), "head_dim is 36"),
        (H200, dict(dtype=jnp.dtype("float64")), "dtype is float64; the kernels take bfloat16, float16, float32"),
        (H200, dict(dtype=jnp.dtype("float32"), group=512), "512 x 32; allowed are"),
    ],
)
def test_what_cannot_run_is_an_error_when_asked_for_and_a_reason_otherwise(
    installed: None, target: GpuTarget, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(LaunchError, match=message) as raised:
        chosen("triton", target, **change)
    assert "Use attention=auto or xla" in str(raised.value)
    attention = chosen("auto", target, **change)
    assert attention.name == "xla" and attention.why in str(raised.value)


def test_the_kernels_need_a_gpu(installed: None) -> None:
    with pytest.raises(LaunchError, match="cannot run here: the kernels need an NVIDIA GPU; the mesh is on cpu"):
        chosen("triton")


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(implementations, "find_spec", lambda name: None if name == "jax_triton" else object())
    with pytest.raises(LaunchError, match="jax_triton not installed; pip install"):
        chosen("triton", H200)
