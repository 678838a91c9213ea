"""The real tick and the real slice, lowered for NVIDIA GPUs under shard_map in a process that has none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

if any(find_spec(name) is None for name in ("triton", "jax_triton", "jax_cuda12_plugin")):
    pytest.skip("the `kernels` extra is not installed", allow_module_level=True)

from tests.attention.lowering import CASES, COMPILED

pytestmark = pytest.mark.kernels

CUDA_12_PTX = [8, 8]  # that CUDA 12.9, the last 12, assembles; Triton 3.9 writes 9.4 for Hopper


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.attention.lowering", *CASES],
        env={**environment, "JAX_PLATFORMS": "cpu"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("case", CASES)
def test_each_layer_calls_every_kernel_once(report: dict[str, Any], case: str) -> None:
    """The first layer is one function, and all others are another, so each call is there twice."""
    names = [call["names"] for call in report[case]["calls"]]
    write = ["write_fp8_kernel" if "fp8" in case else "write_kernel"]
    attend = [["attend_kernel"], ["attend_more_kernel"]] if "apart" in case else [["attend_mixed_kernel"]]
    groups = [["merge_groups_kernel"]] if CASES[case]["layout"].kvp > 1 else []
    assert names == 2 * [write, *attend, ["merge_kernel"], *groups]


@pytest.mark.parametrize("case", CASES)
def test_kernels_are_ptx_for_their_gpu(report: dict[str, Any], case: str) -> None:
    for call in report[case]["calls"]:
        assert call["ptx"] == [".target sm_90a" if "sm90" in case else ".target sm_80"]
    attend = [call for call in report[case]["calls"] if call["names"][0].startswith("attend")]
    assert all(call["copies"] for call in attend), "loads are asynchronous copies"
    if "sm90" in case:
        assert attend[-1]["wgmma"], "prompt tiles use Hopper's own products"
        assert not attend[-1]["fp8"] or "fp8" in case
    assert attend[0]["mma"], "decode tiles are too small for them"


@pytest.mark.parametrize("case", CASES)
def test_cuda_12_can_assemble_the_ptx(report: dict[str, Any], case: str) -> None:
    for call in report[case]["calls"]:
        assert len(call["versions"]) == 1 and call["versions"][0] <= CUDA_12_PTX


@pytest.mark.parametrize("case", CASES)
def test_what_is_changed_shares_its_inputs_memory(report: dict[str, Any], case: str) -> None:
    wanted = {
        "write_kernel": 1,
        "write_fp8_kernel": 2,
        "merge_kernel": 2,
        "merge_groups_kernel": 1,
        "attend_more_kernel": 4,
    }
    for call in report[case]["calls"]:
        assert call["aliases"] == wanted.get(call["names"][0], 0)


@pytest.mark.parametrize("case", COMPILED)
def test_xla_copies_the_pool_nowhere(report: dict[str, Any], case: str) -> None:
    if "compiled" not in report[case]:
        pytest.skip("this jax-triton's calls cannot be compiled for CPU devices")
    compiled = report[case]["compiled"]
    assert (compiled["copies"], compiled["conversions"]) == (0, 0)
    assert compiled["aliased"] >= compiled["pool"]
