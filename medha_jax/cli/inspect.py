"""`medha-jax inspect`: what a layout would keep, send and compute, without weights or the devices."""

from __future__ import annotations

import dataclasses
import json as jsons
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medha_jax.cli.attention import KvDtype, KvDtypeOption
from medha_jax.cli.mesh import MeshOption, PageSizeOption, TokensPerGroupOption, mesh_config
from medha_jax.cli.report import reader_may_leave
from medha_jax.config import BUNDLED_MODEL, MeshConfig, RuntimeConfig

if TYPE_CHECKING:
    from medha_jax.inspection import LayoutReport

GIB = 2**30
SLOTS = 32


class Dtype(StrEnum):
    """Precision of weights, activations and KV; `auto` is float32 where the layout is meant for CPUs."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


class Shapes(StrEnum):
    """Which of the layout's shapes to compile."""

    CORNERS = "corners"
    ALL = "all"


_SIZES = "Sizes"


def inspect(
    model: Annotated[
        str, typer.Option(metavar="tiny|DIR|FILE", help="The bundled tiny model, a model directory, or a config.json.")
    ] = "tiny",
    mesh: MeshOption = "tp=1",
    page_size: PageSizeOption = None,
    tokens_per_group: TokensPerGroupOption = None,
    dtype: Annotated[Dtype, typer.Option(help="auto: float32 for CPU layouts, else bfloat16.")] = Dtype.AUTO,
    kv_dtype: KvDtypeOption = KvDtype.AUTO,
    max_context: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Prompt and output together, in tokens; may be more than the model's own limit.",
            rich_help_panel=_SIZES,
        ),
    ] = None,
    pool_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Tokens in the KV pool of each group. Default: one longest request.",
            rich_help_panel=_SIZES,
        ),
    ] = None,
    slots: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Requests at once. Default: 32, or the largest decode shape.",
            rich_help_panel=_SIZES,
        ),
    ] = None,
    memory_gib: Annotated[
        float | None,
        typer.Option(
            min=0,
            metavar="GIB",
            help="Memory of one device, of which the layout's fraction (0.9) may be used. Default: that of the "
            "layout's hardware, if known.",
            rich_help_panel=_SIZES,
        ),
    ] = None,
    buckets: Annotated[
        Shapes, typer.Option(help="Shapes to compile: the smallest and largest of each kind, or all.")
    ] = Shapes.CORNERS,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> None:
    """Report memory, traffic and work of a layout. Nothing is loaded; the devices need not be there.

    The programs are compiled for as many virtual CPU devices as the layout has, and read.
    """
    layout = mesh_config(mesh, page_size=page_size, tokens_per_group=tokens_per_group)
    config = RuntimeConfig(
        mesh=layout,
        kv_dtype=str(kv_dtype),
        max_context=max_context,
        pool_tokens=pool_tokens,
        slots=slots or max(SLOTS, layout.buckets.decode[-1]),
        compilation_cache=None,
    )
    with reader_may_leave():
        report = _inspect(config, model, dtype, _usable(layout, memory_gib), buckets)
        if json:
            print(jsons.dumps(report.as_dict(), allow_nan=False), flush=True)
        else:
            from medha_jax.cli.inspect_tables import print_report

            print_report(report)


def _inspect(config: RuntimeConfig, model: str, dtype: Dtype, usable: int | None, shapes: Shapes) -> LayoutReport:
    import jax
    import jax.numpy as jnp

    from medha_jax.inspection import corners, every, inspect_layout
    from medha_jax.specs.model import Architecture

    # an accelerator that is there must not be taken: only virtual devices are compiled for
    jax.config.update("jax_platforms", "cpu")
    arch = Architecture.from_directory(BUNDLED_MODEL if model == "tiny" else Path(model))
    if config.max_context is not None and config.max_context > arch.context:
        print(f"{config.max_context:,} tokens are more than the model's own {arch.context:,}", file=sys.stderr)
        arch = dataclasses.replace(arch, context=config.max_context)
    if dtype is Dtype.AUTO:
        dtype = Dtype.FLOAT32 if config.mesh.hardware == "cpu" else Dtype.BFLOAT16
    return inspect_layout(
        config,
        arch,
        jnp.dtype(str(dtype)),
        on_progress=lambda line: print(line, file=sys.stderr, flush=True),
        usable_bytes=usable,
        choose=every if shapes is Shapes.ALL else corners,
    )


def _usable(layout: MeshConfig, memory_gib: float | None) -> int | None:
    """Bytes of one device that may be used, None if not known; devices on CPUs share what the host has."""
    from medha_jax.simulate.hardware import hardware_names, load_hardware

    specified = layout.hardware in hardware_names() and layout.hardware != "cpu"
    known = load_hardware(layout.hardware).memory if specified else None
    memory = known if memory_gib is None else int(memory_gib * GIB)
    return None if memory is None else int(memory * layout.memory_fraction)
