"""Every layout of 2, 4 and 8 GPUs, as many as there are, in less than ten minutes: `python -m tools.gpu_mesh_check`.

Each layout (tp, spp, kvp) is checked against one device: greedy tokens and logits of a small model in float32. Then
it is timed with the sizes of Llama-3 8B and random weights: ticks of decodes, ticks with prompt chunks, and these in
slices of one layer; with tp alone also ticks whose rows' halves take turns, which are compared as well. Each has a
process and a time limit of its own, so one that crashes or hangs costs no other. It prints a table and writes
everything as JSON. `--small` is a trial with a tiny model on any machine, on eight virtual devices; its times mean
nothing. Exit code: 0 if all checks passed, 1 if one failed, 2 for bad arguments, 3 without an NVIDIA GPU.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.gpu.device import NO_GPU
from medha_jax.specs.layout import Layout
from tools.gpu_mesh_layout import SETTINGS, VIRTUAL

ONE = Layout()
LAST_LINES = 3  # of what a process said before it crashed


@dataclass
class LayoutResult:
    """What one layout gave: `passed` is None where nothing was compared. Owned by `main`."""

    layout: Layout
    passed: bool | None = None
    detail: str = ""
    numbers: dict[str, float] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def name(self) -> str:
        """Sizes of the axes, e.g. `2x2x1`."""
        return f"{self.layout.tp}x{self.layout.spp}x{self.layout.kvp}"

    @property
    def failed(self) -> bool:
        """Whether anything went wrong."""
        return bool(self.errors) or not self.passed

    def take(self, found: dict[str, Any]) -> None:
        """Note a line of the layout's process."""
        if "error" in found:
            self.errors.append(found["error"])
        elif "passed" in found:
            self.passed, self.detail = found["passed"], found["detail"]
        else:
            self.numbers |= {name: value for name, value in found.items() if isinstance(value, int | float)}


def layouts(devices: int) -> list[Layout]:
    """One device, then every layout of 2, 4 and 8 devices that are there."""
    powers = (1, 2, 4, 8)
    found = [Layout(t, s, k) for t in powers for s in powers for k in powers if t * s * k in powers]
    return sorted((one for one in found if one.devices <= devices), key=lambda one: one.devices)


def run_one(result: LayoutResult, folder: Path, limit: float) -> dict[str, Any]:
    """Run a layout's process for at most `limit` seconds; returns what it says of the machine."""
    layout, machine = result.layout, dict[str, Any]()
    sizes = [str(size) for size in (layout.tp, layout.spp, layout.kvp)]
    command = [sys.executable, "-m", "tools.gpu_mesh_layout", str(folder), *sizes]
    started = time.monotonic()
    log = folder / f"{result.name}.log"
    with log.open("wb") as errors, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as child:
        timer = threading.Timer(limit, child.kill)
        timer.start()
        for line in child.stdout or ():
            found = json.loads(line)
            if "platform" in found:
                machine = found
            else:
                result.take(found)
        status = child.wait()
        over = not timer.is_alive()
        timer.cancel()
    result.seconds = time.monotonic() - started
    if over:
        result.errors.append(f"not done in {limit:.0f} s")
    elif status:
        said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-LAST_LINES:]
        result.errors.append(f"ended with status {status}: {' '.join(said)[:300]}")
    return machine


def table(results: Sequence[LayoutResult]) -> str:
    """The results as aligned text."""
    columns = ("decode_ms", "host_ms", "prefill_ms", "slices_ms", "halves_ms")
    heads = ("tp x spp x kvp", "check", *(name.replace("_ms", ", ms") for name in columns), "seconds", "")
    rows = [heads]
    for one in results:
        check = {None: "none", True: "ok", False: "FAIL"}[one.passed]
        numbers = [f"{one.numbers[name]:.3f}" if name in one.numbers else "-" for name in columns]
        rows.append((one.name, check, *numbers, f"{one.seconds:.0f}", "; ".join([one.detail, *one.errors])))
    widths = [max(len(row[at]) for row in rows) for at in range(len(heads) - 1)]
    return "\n".join("  ".join([*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[-1]]) for row in rows)


def parse_layout(text: str) -> Layout:
    """A layout as on the command line, e.g. `2x2x1`."""
    try:
        tp, spp, kvp = (int(size) for size in text.split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} is no layout; write tp, spp and kvp as in 2x2x1") from None
    if min(tp, spp, kvp) < 1:
        raise argparse.ArgumentTypeError(f"{text}: every axis has at least one device")
    return Layout(tp, spp, kvp)


def main(arguments: list[str] | None = None) -> int:
    """Check every layout; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu_mesh_check"), help="folder of the JSON and the logs")
    parser.add_argument(
        "--minutes", type=float, default=9.0, help="for all layouts; each gets an equal part of the rest"
    )
    parser.add_argument(
        "--layouts", nargs="+", type=parse_layout, help="only these, e.g. 2x1x1; one device always runs"
    )
    parser.add_argument("--no-speed", action="store_true", help="only compare results")
    parser.add_argument("--small", action="store_true", help="a tiny model on any machine, to try this out")
    given = parser.parse_args(arguments)
    given.out.mkdir(parents=True, exist_ok=True)
    settings = dict(small=given.small, speed=not given.no_speed)
    (given.out / SETTINGS).write_text(json.dumps(settings), encoding="utf-8")

    end = time.monotonic() + 60 * given.minutes
    wanted = [ONE, *(one for one in given.layouts or layouts(VIRTUAL) if one != ONE)]
    results, machine = list[LayoutResult](), dict[str, Any]()
    while wanted:
        result, left = LayoutResult(wanted.pop(0)), end - time.monotonic()
        limit = left / (len(wanted) + 1)
        if left <= 0:
            result.errors.append(f"left out: {given.minutes:g} minutes are over")
        elif result.layout == ONE:
            machine = run_one(result, given.out, limit)
            if not given.small and machine.get("platform") == "cpu":
                print("gpu_mesh_check: nothing was checked: there is no NVIDIA GPU", file=sys.stderr)
                return NO_GPU
            if not given.layouts:
                wanted = [one for one in wanted if one.devices <= machine.get("devices", 1)]
        else:
            run_one(result, given.out, limit)
        results.append(result)
        print(table([result]).splitlines()[-1], flush=True)
        stated = [dict(asdict(one), name=one.name) for one in results]
        file = given.out / "gpu_mesh_check.json"
        file.write_text(json.dumps(dict(machine=machine, settings=settings, layouts=stated), indent=1) + "\n")
    failed = [one.name for one in results if one.failed]
    print(f"\n{machine.get('devices', 0)} x {machine.get('device', 'unknown')}\n{table(results)}")
    print(f"{len(results) - len(failed)} layouts passed, {len(failed)} failed; written to {file}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
