"""Lowers real ticks and slices for CUDA in a process without a GPU, and says as JSON what is in them.

`python -m tests.attention.lowering CASE…`. A process of its own, because the kernels are compiled here and interpreted
in the tests beside it.
"""

from __future__ import annotations

import ctypes
import json
import math
import re
import sys
import zlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from medha_jax.attention import GpuTarget, KernelAttention, values_of
from medha_jax.config import Buckets, MeshConfig, RuntimeConfig
from medha_jax.inspection.hlo import CONVERSIONS, COPIES, instructions, making
from medha_jax.mesh import build_mesh, request_cpu_devices
from medha_jax.runtime.programs import Programs
from medha_jax.runtime.shapes import SliceShape
from medha_jax.specs.layout import Layout
from medha_jax.specs.model import Architecture

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 256,
    "hidden_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "intermediate_size": 96,
    "max_position_embeddings": 2**20,
}
TARGETS = {80: GpuTarget("NVIDIA A100", 80, 108), 90: GpuTarget("NVIDIA H200", 90, 132)}
CALLS = ("triton_kernel_call", "triton_kernel_call_ffi")  # jax-triton 0.3 and 0.4
COMPILED = ("sm90", "sm90 apart", "sm90 fp8", "sm90 slice", "sm90 slice apart", "sm90 slice fp8")
CASES: dict[str, dict[str, Any]] = {
    "sm90": dict(capability=90, layout=Layout(2, 2, 2)),
    "sm80": dict(capability=80, layout=Layout(2, 2, 2)),
    "sm90 apart": dict(capability=90, layout=Layout(), together=False),
    "sm90 fp8": dict(capability=90, layout=Layout(2, 1, 1), kv_dtype="fp8"),
    "sm90 float16 96": dict(capability=90, layout=Layout(), dtype="float16", head_dim=96),
    "sm80 256": dict(capability=80, layout=Layout(), head_dim=256),
    "sm90 slice": dict(capability=90, layout=Layout(2, 2, 2), sliced=True),
    "sm90 slice apart": dict(capability=90, layout=Layout(), sliced=True, together=False),
    "sm90 slice fp8": dict(capability=90, layout=Layout(1, 2, 1), sliced=True, kv_dtype="fp8"),
}


def programs(
    capability: int,
    layout: Layout,
    dtype: str = "bfloat16",
    head_dim: int = 128,
    together: bool = True,
    **settings: Any,
) -> Programs:
    """Programs of a small model on virtual CPU devices, lowered for a GPU; `together` whatever the table says."""
    mesh = MeshConfig(
        tp=layout.tp,
        spp=layout.spp,
        kvp=layout.kvp,
        page_size=128,
        tokens_per_group=2**19,
        buckets=Buckets((8,), (64, 512), 2, slices=(512,)),
        shared_buckets=Buckets((2,), (64,), 1, slices=(64,)),
    )
    config = RuntimeConfig(
        mesh=mesh, slots=16, pool_tokens=2**17, attention="triton", compilation_cache=None, **settings
    )
    arch = Architecture.from_config({**CONFIG, "head_dim": head_dim})
    made = Programs(config, arch, jnp.dtype(dtype), build_mesh(layout), TARGETS[capability])
    attention = made.attention
    assert isinstance(attention, KernelAttention)
    rows = tuple(replace(row, together=together) for row in attention.table.rows)
    made.__dict__["attention"] = replace(attention, table=replace(attention.table, rows=rows))
    return made


def kernel_calls(lowered: jax.stages.Lowered) -> list[dict[str, Any]]:
    """Every Triton call of a lowered program: kernel, what its PTX is, and which outputs share an input's memory."""
    found = []
    for operation in _operations(lowered.compiler_ir("stablehlo").operation):
        if operation.name != "stablehlo.custom_call":
            continue
        if operation.attributes["call_target_name"].value not in CALLS:
            continue
        attributes = (
            {item.name: item.attr for item in operation.attributes}
            if hasattr(next(iter(operation.attributes)), "attr")
            else dict(operation.attributes)
        )
        stated = str(attributes.get("output_operand_aliases", ""))
        payload = _payload(attributes)
        text = payload.decode("latin-1")
        found.append(
            dict(
                ptx=[line for line in text.splitlines() if line.startswith(".target")],
                versions=[
                    tuple(map(int, found)) for found in re.findall(r"^\.version (\d+)\.(\d+)", text, re.MULTILINE)
                ],
                wgmma=payload.count(b"wgmma.mma_async"),
                mma=payload.count(b"mma.sync"),
                copies=payload.count(b"cp.async.cg"),
                fp8=payload.count(b"e4m3x2"),
                aliases=stated.count("output_operand_alias<"),
                names=sorted(set(re.findall(r"^\.visible \.entry (\w+)\(", text, re.MULTILINE))),
            )
        )
    return found


def _payload(attributes: dict[str, Any]) -> bytes:
    """The kernel as jax-triton packs it: a compressed message that holds the PTX."""
    # newer MLIR has an empty `backend_config` beside the one that counts
    config = attributes.get("mhlo.backend_config", attributes.get("backend_config"))
    value = config.value_bytes if hasattr(config, "value_bytes") else config["opaque"].value_bytes
    return zlib.decompress(value)


def _operations(operation: Any) -> Iterator[Any]:
    yield operation
    for region in operation.regions:
        for block in region.blocks:
            for inner in block.operations:
                yield from _operations(inner.operation)


def pool_copies(made: Programs, lowered: jax.stages.Lowered) -> dict[str, int]:
    """What XLA, compiling for CPU devices, makes of the program: it inserts copies by the same rules for every backend.

    The calls are never run, so any address will do for them.
    """
    new = ctypes.pythonapi.PyCapsule_New
    new.restype, new.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
    address = ctypes.cast(ctypes.CDLL(None).abs, ctypes.c_void_p).value
    jax.ffi.register_ffi_target(CALLS[0], new(address, b"xla._CUSTOM_CALL_TARGET", None), platform="cpu", api_version=0)
    compiled = lowered.compile()
    shape = values_of(made.state_shapes.pool)
    elements = math.prod(shape.sharding.shard_shape(shape.shape))
    program = instructions(compiled.as_text() or "")
    memory = compiled.memory_analysis()
    return dict(
        copies=len(making(program, COPIES, elements)),
        conversions=len(making(program, CONVERSIONS, elements)),
        pool=elements * shape.dtype.itemsize,
        aliased=memory.alias_size_in_bytes,
    )


def main(cases: list[str]) -> None:
    """Print what is in each largest tick, or in each largest slice of two layers."""
    request_cpu_devices(8)
    report = {}
    for case in cases:
        settings = dict(CASES[case])
        sliced = settings.pop("sliced", False)
        made = programs(**settings)
        lowered = made.lower(SliceShape(made.slice_buckets[-1], 2) if sliced else made.buckets[-1])
        report[case] = dict(calls=kernel_calls(lowered))
        legacy = f"@{CALLS[0]}(" in lowered.as_text()
        if legacy and case in COMPILED:
            report[case]["compiled"] = pool_copies(made, lowered)
    print(json.dumps(report))


if __name__ == "__main__":
    main(sys.argv[1:])
