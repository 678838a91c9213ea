"""The paper's evaluation, each figure beside the published one: `python -m research.reproduce kvp`."""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

from medha_jax.cli.progress import SimulationProgress
from medha_jax.collector import exempt_live_objects
from research.reproduce.drawing import draw
from research.reproduce.presets import PRESETS
from research.reproduce.printing import print_reproduction
from research.reproduce.report import PresetRun, Reproduction


def main() -> None:
    """Run a preset and print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("preset", choices=PRESETS, help="what is reproduced")
    parser.add_argument("--duration", type=float, help="seconds in which requests come; default: the preset's own")
    parser.add_argument("--seed", type=int, default=0, help="of lengths and arrivals")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the preset's lines: .svg, .png or .pdf")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    given = parser.parse_args()
    if given.duration is not None and not 1 <= given.duration <= 1e6:
        parser.error(f"--duration is {given.duration}; allowed are 1 to 1,000,000 seconds")
    if given.seed < 0:
        parser.error(f"--seed is {given.seed}; it must be at least 0")
    exempt_live_objects()
    with Progress() as progress:
        found = PRESETS[given.preset](PresetRun(given.duration, given.seed, progress.tell))
    if given.plot is not None:
        if not found.series:
            parser.error(f"preset {given.preset} has no lines to draw")
        draw(given.plot, found)
    if given.json:
        print(json.dumps(as_json(found), allow_nan=False))
    else:
        print_reproduction(found)


def as_json(found: Reproduction) -> dict[str, Any]:
    """A preset's figures with their ratios."""
    rows = [dataclasses.asdict(row) | {"ratio": row.ratio} for row in found.rows]
    return {**dataclasses.asdict(found), "rows": rows, "simulated": True}


class Progress:
    """Shows the progress of one simulation after another; owns the current bar."""

    def __init__(self) -> None:
        self._name = ""
        self._progress: SimulationProgress | None = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        if self._progress is not None:
            self._progress.__exit__(None, None, None)

    def tell(self, name: str, seconds: float, finished: int, total: int) -> None:
        """Show how many seconds of a simulation are done."""
        if self._progress is None or name != self._name:
            self.__exit__()
            self._name, self._progress = name, SimulationProgress(name, total, time.monotonic)
        self._progress.update(seconds, finished)


if __name__ == "__main__":
    main()
