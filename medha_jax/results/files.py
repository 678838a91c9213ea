"""A run as a directory: `summary.json` and `requests.jsonl`."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from itertools import count
from pathlib import Path
from typing import get_args

from medha_jax.results.metrics import FORMULAS, e2el, tpot, ttft
from medha_jax.results.outputs import Outputs
from medha_jax.results.records import Counted, RequestRecord, Status
from medha_jax.results.run import JSON, Repeat, ResultsError, Run
from medha_jax.results.spread import Interval

SUMMARY, REQUESTS = "summary.json", "requests.jsonl"
FORMAT = 1  # of the files
MOST_LETTERS = 60  # of a run's folder; UTF-8 has up to 4 bytes each, and file systems take 255
_NUMBERS = ("due", "sent", "ended")
_OPTIONAL_NUMBERS = ("deadline_s", "tpot_slo_s", "alone_s", "queue_s")
_COUNTS = ("index", "prompt_tokens", "output_tokens", "priority")
_OPTIONAL_COUNTS = ("cached_tokens", "preemptions")
_WORDS = {"status": get_args(Status), "counted": get_args(Counted)}
_STORED = [field.name for field in fields(RequestRecord) if field.name != "outputs"]


def write_run(directory: Path | str, run: Run) -> None:
    """Write `summary.json` and `requests.jsonl`; creates the directory. Times are rounded to microseconds.

    Each file takes its place when it is whole, so an interrupted writer leaves no half of one.
    """
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    halves = [folder / f"{name}.part" for name in (REQUESTS, SUMMARY)]
    with halves[0].open("w", encoding="utf-8") as file:
        for number, repeat in enumerate(run.repeats):
            for record in repeat.records:
                file.write(json.dumps({"repeat": number} | _line(record), allow_nan=False) + "\n")
    text = json.dumps(_finite(_summary(run)), indent=1, allow_nan=False)
    halves[1].write_text(text + "\n", encoding="utf-8")
    for half in halves:
        os.replace(half, half.with_suffix(""))


def runs_json(runs: Sequence[Run]) -> str:
    """Runs as one line of JSON: name, configuration, stamp, and the figures of every repeat."""
    stated = [
        {
            "name": run.name,
            "config": run.config,
            "stamp": run.stamp,
            "rate": run.rate,
            "repeats": [summary.flat() for summary in run.summaries],
        }
        for run in runs
    ]
    return json.dumps({"runs": _finite(stated)}, allow_nan=False)


def write_runs(directory: Path, runs: Sequence[Run]) -> None:
    """Write runs; several runs get a folder each, named after them, with a number where names are alike."""
    if len(runs) == 1:
        write_run(directory, runs[0])
        return
    taken: set[str] = set()
    for run in runs:
        letters = "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in run.name)
        plain = letters[:MOST_LETTERS] if letters.strip(".") else f"run{letters}"
        names = (plain if number == 1 else f"{plain}-{number}" for number in count(1))
        # file systems may not tell capitals from small letters
        folder = next(name for name in names if name.casefold() not in taken)
        taken.add(folder.casefold())
        write_run(directory / folder, run)


def holds_results(directory: Path) -> bool:
    """Whether a directory holds a run, or folders of runs."""
    return (directory / SUMMARY).exists() or any(directory.glob(f"*/{SUMMARY}"))


def read_runs(directories: Sequence[Path]) -> list[Run]:
    """Read the runs of directories, or of the folders in them. Runs of one name are renamed by their directories.

    Raises:
        ResultsError: a directory holds no run.
    """
    found: list[tuple[Path, Run]] = []
    for directory in directories:
        inner = sorted(summary.parent for summary in directory.glob(f"*/{SUMMARY}"))
        folders = inner if inner and not (directory / SUMMARY).exists() else [directory]
        found += [(folder, read_run(folder)) for folder in folders]
    names = [run.name for _, run in found]
    return [
        run if names.count(run.name) == 1 else replace(run, name=f"{run.name} ({folder.name})") for folder, run in found
    ]


def read_run(directory: Path | str) -> Run:
    """Read a directory of `write_run`.

    Raises:
        ResultsError: a file is missing or damaged.
    """
    folder = Path(directory)
    try:
        summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
        if summary["format"] != FORMAT:
            raise ResultsError(f"{folder / SUMMARY} is of format {summary['format']!r}; this version reads {FORMAT}")
        windows = [None if window is None else tuple(window) for window in summary["windows"]]
        records: list[list[RequestRecord]] = [[] for _ in windows]
        with (folder / REQUESTS).open(encoding="utf-8") as file:
            for number, text in enumerate(file, 1):
                try:
                    line = json.loads(text, parse_constant=_no_number)
                    if line["repeat"] not in range(len(records)):
                        raise ValueError(f"repeat is {line['repeat']!r} of {len(records)}")
                    records[line["repeat"]].append(_record(line))
                except (ValueError, LookupError, TypeError, OverflowError, RecursionError) as error:
                    raise ResultsError(f"{folder / REQUESTS}, line {number} is no request: {error}") from None
        found = [len(of) for of in records]
        if summary.get("records", found) != found:  # results of earlier versions do not count them
            raise ResultsError(f"{folder / REQUESTS} has {found} requests, and its summary counts {summary['records']}")
        repeats = tuple(Repeat(tuple(of), window) for of, window in zip(records, windows, strict=True))
        return _run(summary, repeats)
    except ResultsError:
        raise
    except UnicodeDecodeError as error:
        raise ResultsError(f"the results in {folder} are not UTF-8 text: {error.reason}") from None
    except OSError as error:
        raise ResultsError(f"cannot read {error.filename}: {error.strerror}; give a directory of results") from None
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ResultsError(f"{folder / SUMMARY} is not a summary of results: {error}") from None


def _run(summary: Mapping[str, JSON], repeats: tuple[Repeat, ...]) -> Run:
    """The run of a summary; a rate that is infinite stands there as a word."""
    rate = summary["rate"]
    rate = math.inf if rate == "inf" else rate
    for name, value, kinds in (
        ("name", summary["name"], str),
        ("config", summary["config"], dict),
        ("stamp", summary["stamp"], dict),
        ("rate", rate, int | float | None),
        ("series", summary["series"], str | None),
    ):
        if not isinstance(value, kinds):
            raise ValueError(f"{name} is {value!r}")
    return Run(summary["name"], repeats, summary["config"], summary["stamp"], rate, summary["series"])


def _no_number(word: str) -> float:
    raise ValueError(f"{word} is no number of JSON")


def _summary(run: Run) -> dict[str, JSON]:
    """The content of `summary.json`. Figures are means over the repeats."""
    several = len(run.repeats) > 1

    def means(found: Mapping[str, Interval]) -> dict[str, JSON]:
        return {name: one.mean for name, one in found.items()}

    return {
        "format": FORMAT,
        "name": run.name,
        "series": run.series,
        "rate": run.rate,
        "windows": [repeat.window for repeat in run.repeats],
        "records": [len(repeat.records) for repeat in run.repeats],
        **dict.fromkeys(run.summaries[0].flat()),
        **means(run.figures),
        "client_lagged": any(one.lateness is not None and one.lateness.lagged for one in run.summaries),
        "intervals_95": {name: [one.low, one.high] for name, one in run.figures.items()} if several else None,
        "by_kind": {kind: means(run.of_kind(kind)) for kind in run.kinds()},
        "by_length": {name: means(run.of_length(name)) for name in run.lengths()},
        "errors": [dict(summary.errors) for summary in run.summaries],
        "repeats": [summary.flat() for summary in run.summaries],
        "formulas": FORMULAS,
        "config": run.config,
        "stamp": run.stamp,
    }


def _finite(value: JSON) -> JSON:
    """Replace `inf` and `nan` by words, because JSON has no numbers for them."""
    if isinstance(value, Mapping):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _line(record: RequestRecord) -> dict[str, JSON]:
    """A record with its metrics."""
    line = {name: getattr(record, name) for name in _STORED}
    line |= {name: round(line[name], 6) for name in _NUMBERS}
    outputs = Outputs.of(record.outputs)
    counts = outputs.counts.tolist()
    line["output_times"] = outputs.seconds.round(6).tolist()
    line["output_counts"] = 1 if set(counts) <= {1} else counts  # nearly always
    made = {"ttft_s": ttft(record), "tpot_s": tpot(record), "e2el_s": e2el(record)}
    return line | {name: None if value is None else round(value, 6) for name, value in made.items()}


def _record(line: Mapping[str, JSON]) -> RequestRecord:
    line = {"priority": 0} | dict(line)  # runs of earlier versions have none
    for names, kinds in ((_NUMBERS + _OPTIONAL_NUMBERS, (int, float)), (_COUNTS + _OPTIONAL_COUNTS, (int,))):
        for name in names:
            optional = name in _OPTIONAL_NUMBERS + _OPTIONAL_COUNTS
            if not (isinstance(line[name], kinds) or (optional and line[name] is None)):
                raise ValueError(f"{name} is {line[name]!r}")
    for name, words in _WORDS.items():
        if line[name] not in words:
            raise ValueError(f"{name} is {line[name]!r}; allowed are {', '.join(words)}")
    times, counts = line["output_times"], line["output_counts"]
    outputs = Outputs(times, [1] * len(times) if counts == 1 else counts)
    return RequestRecord(**{name: line[name] for name in _STORED}, outputs=outputs)
