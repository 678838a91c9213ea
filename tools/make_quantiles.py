"""Make the quantile tables of simulated workloads from traces: `make_quantiles.py OUT NAME=TRACE.csv ...`.

A trace is a CSV file with the columns num_prefill_tokens and num_decode_tokens. Requests of at least LONG prompt tokens
are long. Each trace becomes the mix of its NAME.
"""

import csv
import sys
from pathlib import Path
from typing import Any

import numpy as np
import yaml

LONG = 65536
PROBABILITIES = [0.0, 0.001, 0.005, *(percent / 100 for percent in range(1, 100)), 0.995, 0.999, 1.0]


def read_trace(path: Path) -> np.ndarray:
    """Prompt and output tokens `[requests, 2]`."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = [(int(row["num_prefill_tokens"]), int(row["num_decode_tokens"])) for row in csv.DictReader(file)]
    return np.array(rows, np.int64)


def tables(traces: dict[str, np.ndarray]) -> dict[str, Any]:
    """The content of the tables' file."""
    return {"probabilities": PROBABILITIES, "mixes": {name: mix(trace) for name, trace in traces.items()}}


def mix(trace: np.ndarray) -> dict[str, Any]:
    """The tables of one trace; `long` is left out where it has no long requests."""
    long = trace[:, 0] >= LONG
    made: dict[str, Any] = {"long_share": round(float(long.mean()), 5)}
    for kind, rows in (("short", trace[~long]), ("long", trace[long])):
        if len(rows):
            columns = zip(("prompt", "output"), rows.T, strict=True)
            made[kind] = {name: np.quantile(column, PROBABILITIES).round(1).tolist() for name, column in columns}
    return made


def main(arguments: list[str]) -> int:
    """Write the tables; return the process's exit status."""
    if len(arguments) < 2 or not all("=" in argument for argument in arguments[1:]):
        print(__doc__, file=sys.stderr)
        return 2
    named = dict(argument.split("=", 1) for argument in arguments[1:])
    made = tables({name: read_trace(Path(path)) for name, path in named.items()})
    head = "# Lengths in tokens at cumulative probabilities, and the share of long requests of each mix.\n"
    head += "# Made by tools/make_quantiles.py from the traces of project-vajra/veeksha (Apache-2.0).\n"
    text = yaml.safe_dump(made, sort_keys=False, width=110, default_flow_style=None)
    Path(arguments[0]).write_text(head + text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
