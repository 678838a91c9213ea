"""Simulated against real: `python -m benchmarks.simulation --model tiny --out DIR`. Results in DIR are reused.

For each workload, `medha-jax bench serve` sends a server pieces of 20 s, alternately of the calibration and of the
workload, because the machine's speed changes within a minute. The calibration has requests of all lengths. Its ticks
give the times of the machine. Its requests give what client and network add to a TTFT: the median of real - simulated.
The workload is compared: the same requests at the same times go through the same scheduler on the virtual clock.
Nothing is fitted to it. Only the core's speed over time comes from it, measured by a probe beside the server
(`benchmarks.speed`).

The client has the last core, the server all others. Outputs are generated to their last token.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.comparison import SETTINGS, Calibrated, Compared, Machine
from benchmarks.measure import machine
from medha_jax.simulate.fitting import Errors

TICKS_OFF, SECONDS_OFF = 0.10, 0.15  # allowed errors of ticks and of the percentiles of requests


def main() -> None:
    """Measure what is missing, simulate the same, print both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=tuple(SETTINGS), default="tiny", help="bundled, or 26M random weights")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs; figures.json goes there, too")
    parser.add_argument("--workload", action="append", help="preset to compare, may be repeated; all, if none is named")
    parser.add_argument("--seconds", type=float, default=100, help="of each workload, and as many of its calibration")
    given = parser.parse_args()
    print(machine())
    under = Machine(given.model, given.out, given.seconds)
    wanted = [one for one in under.setting.workloads if not given.workload or one[0] in given.workload]
    found = []
    for one in wanted:
        found.append(under.compare(*one))
        print_calibration(one[0], found[-1].calibrated)
    print_table(found)
    stated = {
        "machine": machine(),
        "model": given.model,
        "workloads": [
            {name: value for name, value in vars(one).items() if name != "calibrated"}
            | {"delay_s": one.calibrated.delay}
            | {"calibration_errors": [asdict(each) for each in one.calibrated.calibration.errors]}
            for one in found
        ],
    }
    (given.out / "figures.json").write_text(json.dumps(stated, indent=1) + "\n", encoding="utf-8")


def print_calibration(beside: str, calibrated: Calibrated) -> None:
    """Print the fitted times, and their error on ticks that were not used for the fit."""
    times = calibrated.calibration.times
    longer = ", ".join(f"{bucket.own} {1e3 * times.longer(bucket):.1f}" for bucket in times.bases)
    print(
        f"\nBeside {beside}: KV is read in blocks of {times.block} (prompts) and {times.decode_block} (decodes) "
        f"tokens; where fetching takes twice as long, ticks (decodes+prompt tokens) take {longer} ms more and the host "
        f"{1e3 * times.host_felt:.1f}; host {1e3 * times.host:.2f} ms a tick and {1e3 * times.host_row:.2f} ms a row; "
        f"client and network {1e3 * calibrated.delay:.1f} ms of a TTFT\n"
    )
    print("| ticks of the calibration | number | median error | P90 |")
    print("|---|---|---|---|")
    every: Sequence[Errors] = calibrated.calibration.errors
    for one in every:
        print(f"| {one.regime} | {one.ticks:,} | {one.median:.3f} | {one.p90:.3f} |", flush=True)


def print_table(found: Sequence[Compared]) -> None:
    """Print real and simulated percentiles side by side; too large errors are bold."""
    names = [f"{name} P{percent}" for name in ("TTFT", "TPOT") for percent in (50, 90)]
    print("\n| workload | requests | busy | slowness | ticks | tick error | " + " | ".join(names) + " |")
    print("|---" * (6 + len(names)) + "|")
    for one in found:
        cells = [mark(f"{one.tick_error:.3f}", one.tick_error <= TICKS_OFF)]
        for name in names:
            real, simulated = one.seconds[name.lower().replace(" ", "_")]
            ratio = simulated / real
            cells.append(
                mark(f"{1e3 * real:.1f} / {1e3 * simulated:.1f} ms, {ratio:.2f}", abs(ratio - 1) <= SECONDS_OFF)
            )
        start = f"| {one.workload} | {one.requests} | {one.busy:.2f} | {one.slowness:.2f} | {one.ticks:,} | "
        print(start + " | ".join(cells) + " |")
    print("\nreal / simulated, and simulated over real; **bold** is off by more than 10 % (ticks) or 15 % (requests)")


def mark(text: str, good: bool) -> str:
    """The text, in bold if it is not good."""
    return text if good else f"**{text}**"


if __name__ == "__main__":
    main()
