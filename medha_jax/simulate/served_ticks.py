"""Ticks and slices of a real server, read from its schedule trace."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medha_jax.simulate.hardware import SpecError

NAMED = "stage "  # a trace's process of this prefix is one stage and group


def served_ticks(path: Path, since: int = 0) -> list[dict[str, Any]]:
    """Ticks and slices of `medha-jax serve --trace`, in the form of `medha_jax.simulate.calibration`.

    The first tick of each shape is left out, and so are ticks with a request numbered below `since` (warm-up, say). A
    slice has `layers`; its shapes are others than those of ticks.
    `host_s` is set if a request has chunks in this tick and the previous one: then the engine was busy between them.
    `at` is the tick's start in seconds of the server's clock; a calibration ignores it.

    Raises:
        SpecError: the file cannot be read, or is no schedule trace.
    """
    try:
        events = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SpecError(f"cannot read trace {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # also a number of thousands of digits
        raise SpecError(f"{path} is not valid JSON: {error}; a server writes its end when it is stopped") from None
    try:
        return _found(events, since)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise SpecError(f"{path} is no schedule trace: {error!r}") from None


def _found(events: list[dict[str, Any]], since: int) -> list[dict[str, Any]]:
    places: dict[int, tuple[int, int]] = {}
    ticks: dict[float, list[dict[str, Any]]] = {}
    origin = 0.0
    for event in events:
        if event["ph"] == "X":
            ticks.setdefault(event["ts"], []).append(event)
        elif event["name"] == "origin":
            origin = event["args"]["clock_s"]
        elif event["name"] == "process_name" and event["args"]["name"].startswith(NAMED):
            _, stage, _, group = event["args"]["name"].split()
            places[event["pid"]] = int(stage), int(group)
    found: list[dict[str, Any]] = []
    seen: set[tuple[bool, tuple[int, ...]]] = set()
    before: set[int] = set()
    ended = 0.0
    for began, slices in sorted(ticks.items()):
        whole = next((one for one in slices if "bucket" in one["args"]), None)
        if whole is None:
            raise ValueError(f"a tick at {began} has no bucket")
        stages, requests = _stages(slices, places)
        shape, seconds, layers = (whole["args"].get(name) for name in ("bucket", "measured_s", "layers"))
        kind = layers is None, tuple(shape)
        known, goes_on = kind in seen and seconds is not None, bool(requests & before)
        seen.add(kind)
        if known and min(requests, default=0) >= since:
            host = max(0.0, (began - ended) / 1e6) if goes_on else None
            at = origin + began / 1e6
            tick = {"at": at, "shape": shape, "seconds": seconds, "host_s": host, "stages": stages}
            found.append(tick if layers is None else tick | {"layers": layers})
        before, ended = requests, began + whole["dur"]
    return found


def _stages(
    slices: list[dict[str, Any]], places: Mapping[int, tuple[int, int]]
) -> tuple[list[list[list[Any]]], set[int]]:
    """Chunks of every stage of a tick as [start, length, groups], and the numbers of their requests."""
    chunks: dict[tuple[int, int, int, int], list[int]] = {}
    for one in slices:
        stage, group = places[one["pid"]]
        args = one["args"]
        if "contexts" in args:
            for request, context in zip(args["requests"], args["contexts"], strict=True):
                chunks.setdefault((stage, request, context - 1, 1), []).append(group)
        elif "request" in args:
            start = args["context"] - args["tokens"]
            chunks.setdefault((stage, args["request"], start, args["tokens"]), []).append(group)
    stages: list[list[list[Any]]] = [[] for _ in range(1 + max((stage for stage, *_ in chunks), default=0))]
    for (stage, _, start, length), groups in chunks.items():
        stages[stage].append([start, length, sorted(groups)])
    return stages, {request for _, request, *_ in chunks}
