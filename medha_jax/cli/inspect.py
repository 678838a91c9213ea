"""`medha-jax inspect`: memory, traffic and work of a layout, without its weights or devices."""

from __future__ import annotations

import json as jsons
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medha_jax.cli.opening import tell
from medha_jax.cli.option_groups import takes_groups
from medha_jax.cli.runtime_options import LayoutOptions
from medha_jax.cli.standard_streams import print_result
from medha_jax.config import BUNDLED_MODEL, MeshConfig, RuntimeConfig, same_setting, setting

if TYPE_CHECKING:
    from medha_jax.inspection import GpuReport, LayoutReport

GIB = 2**30
_SIZES = "Sizes"


@dataclass(frozen=True)
class InspectOptions:
    """The layout, and how much of it to inspect."""

    model: str = setting(
        "tiny", "The bundled tiny model, a model directory, or a config.json.", metavar="tiny|DIR|FILE"
    )
    layout: LayoutOptions = field(default_factory=LayoutOptions)
    dtype: str = same_setting(RuntimeConfig, "dtype", help="auto: float32 for CPU layouts, else bfloat16.")
    kv_dtype: str = same_setting(RuntimeConfig, "kv_dtype")
    max_context: int | None = same_setting(
        RuntimeConfig,
        "max_context",
        help="Prompt and output together, in tokens; may be more than the model's own limit.",
        panel=_SIZES,
    )
    pool_tokens: int | None = same_setting(
        RuntimeConfig,
        "pool_tokens",
        help="Tokens in the KV pool of each group. Default: one longest request.",
        panel=_SIZES,
    )
    slots: int | None = same_setting(
        RuntimeConfig,
        "slots",
        default=None,
        panel=_SIZES,
    )
    memory_gib: float | None = setting(
        None,
        "Memory of one device, of which the layout's fraction (0.9) may be used. Default: that of the layout's "
        "hardware, if known.",
        at_least=0,
        metavar="GIB",
        panel=_SIZES,
    )
    target: str | None = setting(
        None,
        "A GPU to compile for, which need not be there: a100, h100 or h200. Reports command buffers, kernels and "
        "copies instead of traffic; needs the kernels extra.",
        metavar="GPU",
    )
    buckets: str = setting(
        "corners",
        "Shapes to compile: the smallest and largest of each kind, or all.",
        choices=("corners", "all"),
    )

    @property
    def config(self) -> RuntimeConfig:
        """The runtime's configuration; errors as in `mesh_config`."""
        layout = self.layout.config
        return RuntimeConfig(
            mesh=layout,
            kv_dtype=self.kv_dtype,
            max_context=self.max_context,
            pool_tokens=self.pool_tokens,
            slots=self.slots or layout.usual_slots,
            compilation_cache=None,
        )


@takes_groups
def inspect(
    options: InspectOptions,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> None:
    """Report memory, traffic and work of a layout. Nothing is loaded; the devices need not be there.

    The programs are compiled for as many virtual CPU devices as the layout has, or with --target for a GPU, and read.
    """
    from medha_jax.cli.inspect_gpu_tables import print_gpu_report
    from medha_jax.cli.inspect_tables import print_report
    from medha_jax.inspection import GpuReport

    report = _inspect(options, options.config)
    print_result(
        json,
        lambda: jsons.dumps(report.as_dict(), allow_nan=False),
        lambda: print_gpu_report(report) if isinstance(report, GpuReport) else print_report(report),
    )


def _inspect(options: InspectOptions, config: RuntimeConfig) -> LayoutReport | GpuReport:
    import jax
    import jax.numpy as jnp

    from medha_jax.inspection import corners, every, inspect_for_gpu, inspect_layout, load_gpu
    from medha_jax.specs.model import Architecture

    gpu = None if options.target is None else load_gpu(options.target)

    # compile for virtual devices only, and take no accelerator of this machine
    jax.config.update("jax_platforms", "cpu")
    arch = Architecture.from_directory(BUNDLED_MODEL if options.model == "tiny" else Path(options.model))
    for note in arch.notes:
        tell(f"warning: {note}")
    if config.max_context is not None and config.max_context > arch.context:
        tell(f"{config.max_context:,} tokens are more than the model's own {arch.context:,}")
        arch = replace(arch, context=config.max_context)
    automatic = "float32" if gpu is None and config.mesh.hardware == "cpu" else "bfloat16"
    dtype = jnp.dtype(automatic if options.dtype == "auto" else options.dtype)
    usable = _usable(config.mesh, options.memory_gib, None if gpu is None else gpu.memory)
    choose = every if options.buckets == "all" else corners
    if gpu is not None:
        return inspect_for_gpu(gpu, config, arch, dtype, tell, usable, choose)
    return inspect_layout(config, arch, dtype, tell, usable, choose)


def _usable(layout: MeshConfig, memory_gib: float | None, known: float | None) -> int | None:
    """Usable bytes of one device with `known` memory, None if not known; devices on a CPU share the host's memory."""
    from medha_jax.simulate.hardware import hardware_names, load_hardware

    if known is None and layout.hardware in hardware_names() and layout.hardware != "cpu":
        known = load_hardware(layout.hardware).memory
    memory = known if memory_gib is None else int(memory_gib * GIB)
    return None if memory is None else int(memory * layout.memory_fraction)
