"""Find the fastest tile sizes on this GPU and write them to the launch table: `python -m tools.tune_kernels`.

Every candidate must first agree with the result of the shipped sizes. Then it is timed on the loads below with random
data, one load at a time. The chosen rows have the GPU's own name and stand first in the table. `--resources` needs no
GPU: it compiles each row of the table and prints registers, spills and shared memory.
"""

from __future__ import annotations

import argparse
import itertools
import math
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import yaml

from benchmarks.gpu.attention import Load, Prepared, Shape, kernels_for, prepare, random_pool
from benchmarks.gpu.device import NO_GPU
from medha_jax.attention import KernelAttention, Pool
from medha_jax.attention.gpu.launch import TABLE, GpuTarget, LaunchError, LaunchTable, TileConfig, shipped_table

HEAD_DIMS = (64, 128, 256)
MEGA = 2**20
SHARED_BYTES = {80: 163 * 1024, 90: 227 * 1024}  # most of one program, by capability
REGISTERS = 65536
# loads by the row's largest number of query rows per KV head (4 heads share one here)
LOADS = {
    1: [Load(decodes=(MEGA,)), Load(decodes=(16384,) * 64)],
    16: [Load(queries=4, context=MEGA)],
    64: [Load(queries=16, context=MEGA)],
    2**30: [Load(queries=512, context=MEGA // 4), Load(queries=4096, context=MEGA // 8)],
}


@dataclass(frozen=True)
class Resources:
    """Resources of a kernel's program: registers per thread, spilled bytes, bytes of shared memory."""

    registers: int
    spilled: int
    shared: int

    def resident(self, warps: int, capability: int) -> int:
        """Programs that fit on one multiprocessor."""
        room = SHARED_BYTES[90 if capability >= 90 else 80]
        held = 32 * warps * (-(-self.registers // 8) * 8)
        return max(1, min(room // (self.shared + 1024), REGISTERS // held, 64 // warps))


def resources(tile: TileConfig, capability: int) -> Resources:
    """Compile and assemble the kernel for a row of the table; returns its resources.

    Raises:
        LaunchError: it cannot be compiled.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from medha_jax.attention.gpu.kernels import attend_kernel

    fp8 = tile.dtype.startswith("float8")
    kind = {"float32": "fp32", "float16": "fp16"}.get(tile.dtype, "bf16")
    types = dict.fromkeys(("queries", "pool", "out"), f"*{kind}") | dict.fromkeys(("layer", "table", "items"), "*i32")
    types |= dict.fromkeys(("lse", "part_out", "part_lse"), "*fp32") | {"exponents": "*i8"}
    types |= {"pool": "*fp8e4nv"} if fp8 else {}
    wide = 1 << (tile.head_dim - 1).bit_length()
    constants: dict[str, object] = dict(FIRST=0, HEADS=8, GROUP=4, DIM=tile.head_dim, WIDE=wide, PAGE=128, PAGES=8192)
    constants |= dict(WIDTH=8192, PARTS=1024, SCALE=math.log2(math.e) / math.sqrt(tile.head_dim), FP8=fp8)
    constants |= dict(PRECISION="ieee", ROWS=tile.rows, KEYS=tile.keys, STAGES=tile.stages)
    names = attend_kernel.arg_names
    signature = {name: types.get(name, "constexpr") for name in names}
    aligned = {(at,): [["tt.divisibility", 16]] for at, name in enumerate(names) if name in types}
    options = dict(num_warps=tile.warps, num_stages=tile.stages)
    try:
        made = triton.compile(
            ASTSource(attend_kernel, signature, constants, aligned), GPUTarget("cuda", capability, 32), options
        )
    except Exception as error:  # Triton raises many kinds
        raise LaunchError(f"{type(error).__name__}: {str(error).splitlines()[0]}") from None
    ptxas = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
    with tempfile.TemporaryDirectory() as folder:
        ptx = Path(folder) / "kernel.ptx"
        ptx.write_text(made.asm["ptx"])
        arch = "sm_90a" if capability == 90 else f"sm_{capability}"
        command = [str(ptxas), "-v", f"-arch={arch}", str(ptx), "-o", str(ptx.with_suffix(".cubin"))]
        said = subprocess.run(command, capture_output=True, text=True, check=False).stderr
    registers, spilled = re.search(r"Used (\d+) registers", said), re.search(r"(\d+) bytes spill stores", said)
    if registers is None or spilled is None:
        raise LaunchError(f"ptxas: {said.strip().splitlines()[-1:]}")
    return Resources(int(registers[1]), int(spilled[1]), made.metadata.shared)


def print_resources(table: LaunchTable) -> None:
    """Print one line for each row of the table."""
    for tile in table.rows:
        number = tile.gpu.removeprefix("sm")
        capability = int(number) if number.isdigit() else 90
        what = f"{tile.gpu} head_dim {tile.head_dim} {tile.dtype} to {tile.queries} queries"
        sizes = f"{tile.rows}x{tile.keys}, {tile.warps} warps, {tile.stages} stages"
        try:
            found = resources(tile, capability)
        except LaunchError as error:
            print(f"{what}: {sizes}: {error}", flush=True)
            continue
        fits = found.resident(tile.warps, capability)
        print(
            f"{what}: {sizes}: {found.registers} registers, {found.spilled} bytes spilled, "
            f"{found.shared / 1024:.0f} KiB shared, {fits} resident (stated {tile.resident})",
            flush=True,
        )


def candidates(tile: TileConfig, capability: int) -> Iterator[TileConfig]:
    """Other sizes for a row that compile without spilling, each with as many resident programs as fit."""
    if tile.queries == 1 or tile.queries == 16:
        grid = itertools.product((16,), (32, 64, 128), (2, 4, 8), (2, 3, 4, 5))
    elif tile.queries == 64:
        grid = itertools.product((64,), (32, 64, 128), (4, 8), (2, 3, 4))
    else:
        grid = itertools.product((64, 128, 256), (32, 64, 128), (4, 8), (2, 3, 4))
    for rows, keys, warps, stages in grid:
        changed = replace(tile, rows=rows, keys=keys, warps=warps, stages=stages)
        try:
            found = resources(changed, capability)
        except LaunchError:
            continue
        room = SHARED_BYTES[90 if capability >= 90 else 80]
        if found.spilled == 0 and found.shared <= room:
            yield replace(changed, resident=found.resident(warps, capability))


def with_tile(attention: KernelAttention, tile: TileConfig) -> KernelAttention:
    """The kernels with this row first in the table."""
    first = replace(tile, gpu=attention.target.name)
    return replace(attention, table=LaunchTable((first, *attention.table.rows)))


def same(one: Prepared, other: Prepared) -> bool:
    """Whether two results for a load agree."""
    (a, a_lse), (b, b_lse) = one.runner()(), other.runner()()
    wide = a.astype(jnp.float32), b.astype(jnp.float32)
    error = jnp.linalg.norm(wide[0] - wide[1]) / jnp.linalg.norm(wide[0])
    seen = jnp.isfinite(a_lse)
    return bool((error < 1e-2) & (jnp.abs(jnp.where(seen, a_lse - b_lse, 0)).max() < 1e-3))


def tune_row(shape: Shape, tile: TileConfig, attention: KernelAttention, pool: Pool) -> TileConfig:
    """The fastest candidate: the least sum of times over the row's loads, relative to the shipped row."""
    loads = LOADS[tile.queries]
    before = [prepare(shape, load, attention, pool=pool) for load in loads]
    base = [one.seconds for one in before]
    best, least = replace(tile, measured=True), float(len(loads))
    for candidate in candidates(tile, attention.target.capability):
        tried = with_tile(attention, candidate)
        try:
            made = [prepare(shape, load, tried, pool=pool) for load in loads]
            good = all(same(one, other) for one, other in zip(before, made, strict=True))
            cost = sum(one.seconds / seconds for one, seconds in zip(made, base, strict=True)) if good else math.inf
        except Exception as error:  # a refused launch ends this candidate only
            print(f"    {candidate.rows}x{candidate.keys}: {str(error).splitlines()[0][:100]}", flush=True)
            continue
        print(
            f"    {candidate.rows}x{candidate.keys} {candidate.warps} warps {candidate.stages} stages: "
            f"{cost / len(loads):.3f} of the shipped time",
            flush=True,
        )
        if cost < least:
            best, least = replace(candidate, measured=True), cost
    return replace(best, gpu=attention.target.name)


def tune_together(shape: Shape, tile: TileConfig, attention: KernelAttention, pool: Pool) -> TileConfig:
    """Choose one launch or two for prompt tiles and decodes."""
    load = Load(decodes=(8192,) * 64, queries=512, context=MEGA // 8)
    times = {}
    for together in (True, False):
        tried = with_tile(attention, replace(tile, together=together))
        times[together] = prepare(shape, load, tried, pool=pool).seconds
    print(f"  one launch {times[True] * 1e3:.3f} ms, two {times[False] * 1e3:.3f} ms", flush=True)
    return replace(tile, together=times[True] <= times[False])


def write_table(rows: list[TileConfig], file: Path) -> None:
    """Write measured rows of a GPU to the front of the table; they replace its earlier rows."""
    text = file.read_text(encoding="utf-8")
    names = {row.gpu for row in rows}
    kept = [row for row in yaml.safe_load(text) if row["gpu"] not in names]
    heading = [line for line in text.splitlines() if line.startswith("#")]
    stated = [asdict(row) for row in rows] + kept
    lines = [yaml.safe_dump(row, default_flow_style=True, sort_keys=False, width=1000).strip() for row in stated]
    file.write_text("\n".join([*heading, *(f"- {line}" for line in lines)]) + "\n", encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    """Tune and write, or print resources; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resources", action="store_true", help="compile the table's rows and print what they take")
    parser.add_argument("--head-dims", type=int, nargs="+", default=[128], choices=HEAD_DIMS)
    parser.add_argument("--kv", nargs="+", default=["bfloat16"], choices=["bfloat16", "fp8"], help="dtypes of the pool")
    parser.add_argument("--table", type=Path, default=TABLE, help="the file to change")
    given = parser.parse_args(arguments)
    if given.resources:
        print_resources(shipped_table())
        return 0
    try:
        target = GpuTarget.of(jax.devices()[0])
    except LaunchError as error:
        print(f"tune_kernels: nothing was tuned: {error}", file=sys.stderr)
        return NO_GPU
    rows: list[TileConfig] = []
    for head_dim, kv in itertools.product(given.head_dims, given.kv):
        shape = Shape(head_dim=head_dim, fp8=kv == "fp8")
        attention = kernels_for(shape)
        pool = random_pool(shape, MEGA + 128 * shape.page, seed=0)
        for queries in LOADS:
            tile = attention.table.find(target, head_dim, attention.dtype, queries)
            print(f"head_dim {head_dim}, {kv}, to {queries} queries", flush=True)
            chosen = tune_row(shape, tile, attention, pool)
            attention = with_tile(attention, chosen)
            if queries == max(LOADS):
                chosen = tune_together(shape, chosen, attention, pool)
            rows.append(chosen)
            write_table(rows, given.table)  # keeps the rows if a later one hangs
            print(f"  -> {chosen}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
