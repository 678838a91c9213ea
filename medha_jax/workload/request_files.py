"""Requests in files: prompts in JSON lines, Mooncake traces in JSON lines, Azure traces in CSV."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from medha_jax.workload.config import MAX_OUTPUT, MAX_PROMPT, MAX_REQUESTS
from medha_jax.workload.mixes import WorkloadError

MAX_LINE = 2**27  # characters; 10M token ids take about 70M
MAX_BLOCK_ID = 2**63 - 1
BLOCK_TOKENS = 512  # in each block of Mooncake's hash ids
AZURE_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")


@dataclass(frozen=True)
class Sample:
    """A request in a file; None for what the file does not say.

    Args:
        at: seconds after the first request of the trace.
        text: the prompt as text.
        ids: the prompt as token ids.
        blocks: ids of the prompt's blocks of `BLOCK_TOKENS` tokens; equal ids mean equal content.
    """

    prompt_tokens: int | None
    output_tokens: int | None
    at: float | None = None
    text: str | None = None
    ids: tuple[int, ...] | None = None
    blocks: tuple[int, ...] | None = None


def read(kind: str, path: Path, limit: int) -> list[Sample]:
    """The first `limit` samples of a file of kind "prompts", "mooncake" or "azure", in the order of its lines.

    Raises:
        WorkloadError: the file cannot be read, is empty or too long, or a line is malformed.
    """
    readers: dict[str, Callable[[Path, TextIO], Iterator[Sample]]] = {
        "prompts": _prompts,
        "mooncake": _mooncake,
        "azure": _azure,
    }
    samples: list[Sample] = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for sample in readers[kind](path, file):
                samples.append(sample)
                if len(samples) >= min(limit, MAX_REQUESTS):
                    break
    except OSError as error:
        raise WorkloadError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise WorkloadError(f"{path} is not UTF-8 text: {error.reason}") from None
    if not samples:
        raise WorkloadError(f"{path} holds no requests; a {kind} file needs at least one")
    return samples


def in_time(path: Path, samples: list[Sample]) -> list[Sample]:
    """Samples sorted by time; times are shifted to begin with 0.

    Raises:
        WorkloadError: a sample has no time.
    """
    if any(sample.at is None for sample in samples):
        raise WorkloadError(f"{path} has no times")
    ordered = sorted(samples, key=lambda sample: sample.at or 0.0)
    start = ordered[0].at or 0.0
    return [Sample(s.prompt_tokens, s.output_tokens, (s.at or 0.0) - start, s.text, s.ids, s.blocks) for s in ordered]


def _lines(path: Path, file: TextIO) -> Iterator[str]:
    """Lines of bounded length, so that memory can hold them."""
    number = 0
    while line := file.readline(MAX_LINE + 1):
        number += 1
        if len(line) > MAX_LINE:
            raise WorkloadError(f"{path}, line {number} is longer than {MAX_LINE:,} characters")
        yield line


def _objects(path: Path, file: TextIO) -> Iterator[tuple[str, dict[str, Any]]]:
    """Place and content of every line that is not blank."""
    for number, line in enumerate(_lines(path, file), 1):
        place = f"{path}, line {number}"
        if not line.strip():
            continue
        try:
            found = json.loads(line)
        except (ValueError, RecursionError) as error:
            why = "too deeply nested" if isinstance(error, RecursionError) else error
            raise WorkloadError(f"{place} is not JSON ({why}); each line must be one object") from None
        if not isinstance(found, dict):
            raise WorkloadError(f"{place} is a JSON {type(found).__name__}; each line must be one object")
        yield place, found


def _prompts(path: Path, file: TextIO) -> Iterator[Sample]:
    for place, line in _objects(path, file):
        text, ids = line.get("prompt"), line.get("prompt_token_ids")
        if (text is None) == (ids is None):
            raise WorkloadError(f"{place} must have either prompt (a text) or prompt_token_ids (whole numbers)")
        if text is not None and not (isinstance(text, str) and text):
            raise WorkloadError(f"{place}: prompt must be a text that is not empty")
        if ids is not None:
            ids = _ids(place, "prompt_token_ids", ids, MAX_PROMPT)
        given = [name for name in ("max_tokens", "output_tokens") if line.get(name) is not None]
        output = _whole(place, given[0], line[given[0]], 1, MAX_OUTPUT) if given else None
        yield Sample(None if ids is None else len(ids), output, text=text, ids=ids)


def _mooncake(path: Path, file: TextIO) -> Iterator[Sample]:
    for place, line in _objects(path, file):
        missing = [name for name in ("timestamp", "input_length", "output_length") if name not in line]
        if missing:
            raise WorkloadError(
                f"{place} has no {missing[0]}; a Mooncake trace has timestamp (ms), input_length, output_length, "
                "and hash_ids if it likes"
            )
        moment = line["timestamp"]
        if isinstance(moment, bool) or not isinstance(moment, int | float) or not 0 <= moment < 1e15:
            raise WorkloadError(f"{place}: timestamp must be milliseconds from 0 to 1e15")
        prompt = _whole(place, "input_length", line["input_length"], 1, MAX_PROMPT)
        output = _whole(place, "output_length", line["output_length"], 1, MAX_OUTPUT)
        blocks = line.get("hash_ids")
        if blocks is not None:
            blocks = _ids(place, "hash_ids", blocks, MAX_BLOCK_ID)
        yield Sample(prompt, output, moment / 1000, blocks=blocks)


def _azure(path: Path, file: TextIO) -> Iterator[Sample]:
    rows = csv.DictReader(_lines(path, file))
    try:
        if not set(AZURE_COLUMNS) <= set(rows.fieldnames or ()):
            raise WorkloadError(f"{path}, line 1 must name the columns {', '.join(AZURE_COLUMNS)}")
        for row in rows:
            place = f"{path}, line {rows.line_num}"
            try:
                stated = datetime.fromisoformat(row["TIMESTAMP"])
                # a machine's own zone may have clocks that go back
                moment = (stated if stated.tzinfo else stated.replace(tzinfo=UTC)).timestamp()
            except (TypeError, ValueError, OverflowError):
                raise WorkloadError(f"{place}: TIMESTAMP must be like 2023-11-16 18:17:03.9799600") from None
            prompt = _whole(place, "ContextTokens", row["ContextTokens"], 1, MAX_PROMPT)
            yield Sample(prompt, _whole(place, "GeneratedTokens", row["GeneratedTokens"], 1, MAX_OUTPUT), moment)
    except csv.Error as error:
        raise WorkloadError(f"{path}, line {rows.line_num + 1} is not CSV: {error}") from None


def _whole(place: str, name: str, value: Any, low: int, high: int) -> int:
    """Check a whole number in [low, high]; CSV has it as text."""
    if isinstance(value, str) and value.strip().isdecimal() and len(value) < 20:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise WorkloadError(f"{place}: {name} must be a whole number from {low:,} to {high:,}")
    return value


def _ids(place: str, name: str, values: Any, most: int) -> tuple[int, ...]:
    """Check a list of at least one id."""
    if not isinstance(values, list) or not values or len(values) > MAX_PROMPT:
        raise WorkloadError(f"{place}: {name} must be a list of 1 to {MAX_PROMPT:,} whole numbers")
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
            raise WorkloadError(f"{place}: {name} must be whole numbers from 0 to {most:,}")
    return tuple(values)
