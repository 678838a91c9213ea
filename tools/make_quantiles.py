"""Make the quantile tables of workloads from traces: `make_quantiles.py OUT NAME=TRACE ...`.

A trace is a CSV file with the columns num_prefill_tokens and num_decode_tokens (project-vajra/veeksha), one of
Azure's (TIMESTAMP, ContextTokens, GeneratedTokens), or Mooncake's JSON lines. Requests of at least LONG prompt tokens
are long. Each trace becomes the mix NAME; a trace with times also gives the variation of the gaps.
"""

import csv
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from medha_jax.workload.request_files import AZURE_COLUMNS, in_time, read

LONG = 65536
PROBABILITIES = [0.0, 0.001, 0.005, *(percent / 100 for percent in range(1, 100)), 0.995, 0.999, 1.0]
HEAD = """\
# Lengths in tokens at cumulative probabilities, the share of long requests of each mix, and the coefficient of
# variation of the gaps between requests where the trace has times. Of whole traces, by tools/make_quantiles.py:
# - 0, 1, 5: project-vajra/veeksha (Apache-2.0).
# - azure-code-2023, azure-conv-2023: Azure/AzurePublicDataset, AzureLLMInferenceTrace_code.csv and _conv.csv
#   (Microsoft, CC BY 4.0; changed: reduced to quantiles).
# - mooncake-conv: kvcache-ai/Mooncake, FAST25-release/traces/conversation_trace.jsonl (Apache-2.0). Its times are
#   in steps of 3 s.
"""


@dataclass(frozen=True)
class Trace:
    """Prompt and output tokens `[requests, 2]`, and seconds `[requests]` if known."""

    tokens: np.ndarray
    times: np.ndarray | None = None


def read_trace(path: Path) -> Trace:
    """Read a trace of any format."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        if file.read(1) == "{":
            return _timed("mooncake", path)
        file.seek(0)
        rows = csv.DictReader(file)
        if set(AZURE_COLUMNS) <= set(rows.fieldnames or ()):
            return _timed("azure", path)
        tokens = [(int(row["num_prefill_tokens"]), int(row["num_decode_tokens"])) for row in rows]
    return Trace(np.array(tokens, np.int64))


def _timed(kind: str, path: Path) -> Trace:
    samples = in_time(path, read(kind, path, sys.maxsize))
    tokens = np.array([(sample.prompt_tokens, sample.output_tokens) for sample in samples], np.int64)
    return Trace(tokens, np.array([sample.at for sample in samples]))


def tables(traces: dict[str, Trace]) -> dict[str, Any]:
    """The content of the tables' file."""
    return {"probabilities": PROBABILITIES, "mixes": {name: mix(trace) for name, trace in traces.items()}}


def mix(trace: Trace) -> dict[str, Any]:
    """The tables of one trace; `short` or `long` is missing without such requests."""
    tokens = trace.tokens
    long = tokens[:, 0] >= LONG
    made: dict[str, Any] = {"long_share": round(float(long.mean()), 5)}
    if trace.times is not None:
        gaps = np.diff(trace.times)
        made["gaps_cv"] = round(float(gaps.std() / gaps.mean()), 2)
    for kind, rows in (("short", tokens[~long]), ("long", tokens[long])):
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
    text = yaml.safe_dump(made, sort_keys=False, width=110, default_flow_style=None)
    Path(arguments[0]).write_text(HEAD + text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
