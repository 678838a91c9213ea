"""All checks that need a GPU, in less than eight minutes: `python -m tools.gpu_check`.

Correctness comes first: the kernels against float64 at many shapes, a pool beyond 2^32 elements, a million tokens, the
compiled tick, and greedy generation against the CPU. Then come speeds, each against a ceiling measured in the same run.
It prints one line per check and a short table, and writes everything as JSON. It needs no network. Exit code: 0 if all
checks passed, 1 if one failed, 2 for bad arguments, 3 without an NVIDIA GPU.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import jax

from benchmarks.gpu.attention import LOADS, Row, attention_rows
from benchmarks.gpu.ceilings import Ceilings, measure_ceilings
from benchmarks.gpu.device import NO_GPU, facts
from benchmarks.gpu.writes import write_rows
from medha_jax.attention.gpu.launch import GpuTarget, LaunchError
from tools.gpu_correctness import Outcome, all_cases, check_large_pool, check_million
from tools.gpu_program import check_generation

SECTIONS = ("cases", "large", "program", "speed", "torch")


@dataclass
class Report:
    """Results so far, written to `folder` after every section. Owned by `main`."""

    folder: Path
    facts: dict[str, Any]
    ceilings: Ceilings | None = None
    outcomes: list[Outcome] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    torch: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def add(self, outcome: Outcome) -> None:
        """Record a check and print it."""
        self.outcomes.append(outcome)
        print(outcome.line(), flush=True)

    def add_row(self, row: Row) -> None:
        """Record a measurement and print it."""
        self.rows.append(row)
        print(row.line(), flush=True)

    def write(self) -> Path:
        """Write everything as JSON; returns the file."""
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / "gpu_check.json"
        stated = dict(
            facts=self.facts,
            ceilings=self.ceilings and asdict(self.ceilings),
            checks=[asdict(outcome) for outcome in self.outcomes],
            rows=[asdict(row) for row in self.rows],
            torch=self.torch,
            seconds=self.seconds,
        )
        file.write_text(json.dumps(stated, indent=1) + "\n", encoding="utf-8")
        return file


def torch_rates() -> dict[str, Any]:
    """PyTorch's rates on the shapes of the prefill rows; why not, where it cannot run."""
    loads = [f"{load.queries}@{load.context}" for load in LOADS["prefill"] if load.queries >= 512]
    command = [sys.executable, "-m", "benchmarks.gpu.torch_attention", *loads]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=True)
    except subprocess.CalledProcessError as error:
        return {"error": error.stderr.strip().splitlines()[-1:]}
    except subprocess.TimeoutExpired:
        return {"error": "no answer in 90 s"}
    rates: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return rates


def measure(report: Report) -> None:
    """Measure the ceilings, then every row against them."""
    report.ceilings = measure_ceilings()
    for line in report.ceilings.lines():
        print(line, flush=True)
    attention_rows(report.ceilings, report.add_row)
    for row in write_rows(report.ceilings):
        report.add_row(row)


def check(report: Report, outcomes: Iterable[Outcome]) -> None:
    """Record every outcome."""
    for outcome in outcomes:
        report.add(outcome)


def run(report: Report, sections: list[str], device: jax.Device, target: GpuTarget, seed: int, minutes: float) -> None:
    """Run every section. A section that raises, or that has no time left, is a failed check."""

    def large() -> None:
        check(report, [check_large_pool()])
        check(report, check_million())

    steps: dict[str, Callable[[], None]] = dict(
        cases=lambda: check(report, all_cases(seed, eight_bits=target.capability >= 89)),
        large=large,
        program=lambda: check(report, check_generation(device)),
        speed=lambda: measure(report),
        torch=lambda: report.torch.update(torch_rates()),
    )
    begun = time.monotonic()
    for name in sections:
        if time.monotonic() - begun > 60 * minutes:
            report.add(Outcome(name, False, f"left out: {minutes:g} minutes are over"))
            continue
        started = time.monotonic()
        print(f"-- {name}", flush=True)
        try:
            steps[name]()
        except Exception as error:  # an error in one section must not stop the others
            traceback.print_exc()
            report.add(Outcome(name, False, f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"))
        report.seconds[name] = round(time.monotonic() - started, 1)
        report.write()


def print_table(report: Report) -> None:
    """Print the facts, ceilings, rows and failed checks."""
    print("\n" + ", ".join(f"{name} {value}" for name, value in report.facts.items()))
    for line in report.ceilings.lines() if report.ceilings else []:
        print(line)
    for row in report.rows:
        print(row.line())
    for load, rate in report.torch.get("rates", {}).items():
        print(f"torch flash {load}: {rate if isinstance(rate, str) else f'{rate:.1f} TFLOP/s'}")
    if "error" in report.torch:
        print(f"torch: {report.torch['error']}")
    failed = [outcome for outcome in report.outcomes if not outcome.passed]
    for outcome in failed:
        print(outcome.line())
    print(f"{len(report.outcomes) - len(failed)} checks passed, {len(failed)} failed; {report.seconds} s")


def main(arguments: list[str] | None = None) -> int:
    """Run the checks; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu_check"), help="folder of the JSON")
    parser.add_argument("--seed", type=int, help="of the random inputs; a fresh one if not given")
    parser.add_argument("--minutes", type=float, default=7.0, help="after which no further section begins")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    given = parser.parse_args(arguments)
    device = jax.devices()[0]
    try:
        target = GpuTarget.of(device)
    except LaunchError as error:
        print(f"gpu_check: nothing was checked: {error}", file=sys.stderr)
        return NO_GPU
    seed = time.time_ns() % 2**31 if given.seed is None else given.seed
    report = Report(given.out, facts(device, target, seed))
    run(report, given.sections, device, target, seed, given.minutes)
    print_table(report)
    print(f"written to {report.write()}")
    return 1 if any(not outcome.passed for outcome in report.outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
