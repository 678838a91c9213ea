"""The schedule as a Chrome trace for ui.perfetto.dev: which chunk ran when and where, and which request waited."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medha_jax.engine import ChunkReport, Completed, EngineEvent, Failed, NewTokens, Queued, TickReport

MOST_EVENTS = 1_000_000  # about 250 MB
LEAST_WAIT_S = 1e-3
REQUESTS = 1  # process of the lifelines; the processes of stages and groups follow
ORIGIN = "origin"  # event with the engine's clock at the trace's start, to align other records of that clock
TICKS, DECODES, CHUNKS = 0, 1, 2  # tracks of a stage and group; each prompt chunk of a tick has its own


@dataclass(slots=True)
class _Line:
    """A request's lifeline: its phase, and the end of its last prompt chunk in seconds."""

    phase: str
    served: float = math.nan


class ScheduleTrace:
    """Writes a JSON array of trace events while a server runs.

    Every stage and group is a process with tracks for ticks, for decodes, and for each prompt chunk of a tick.
    Requests are nestable async events: `queued`, `prefill` with the `wait`s between its chunks, `decode`, `preempted`.
    Times are in microseconds since the trace was opened.

    Only the engine's thread may call it, with `on_tick` before `on_events` of the same tick. A write error, or
    `most_events` events, end the trace but not the server. A file at `path` is replaced.

    Raises:
        OSError: the file cannot be written.
    """

    def __init__(self, path: Path, clock: Callable[[], float], most_events: int = MOST_EVENTS) -> None:
        self._file = path.open("w", encoding="utf-8")
        self._clock, self._most = clock, most_events
        self._origin = clock()
        self._written = 0
        self._lines: dict[int, _Line] = {}
        self._named: set[tuple[int, int]] = set()
        self._write({"ph": "M", "name": "process_name", "pid": REQUESTS, "args": {"name": "requests"}})
        self._write({"ph": "M", "name": ORIGIN, "pid": REQUESTS, "args": {"clock_s": self._origin}})

    def on_tick(self, report: TickReport) -> None:
        """Write the chunks of a tick or slice."""
        times = {"ts": self._us(report.started), "dur": (report.ended - report.started) * 1e6}
        groups = len(report.free_pages)
        # a stage without a chunk only waits for the others, so it has no bar
        for stage in sorted({chunk.stage for chunk in report.chunks}):
            for group in range(groups):
                chunks = [chunk for chunk in report.chunks if chunk.stage == stage and group in chunk.groups]
                if chunks:
                    self._ran(
                        REQUESTS + 1 + stage * groups + group, f"stage {stage} group {group}", report, chunks, times
                    )
        if any(report.copied):
            stored, restored = report.copied
            args = {"stored": stored, "restored": restored}
            self._write({"ph": "C", "name": "KV pages copied", "pid": REQUESTS, "ts": times["ts"], "args": args})
        for number in report.preempted:
            self._phase(number, "preempted", report.started)
        for chunk in report.chunks:
            if not chunk.stage and not chunk.decode:
                self._served(chunk, report)
        for number in report.cancelled:
            self._end(number, "cancelled")

    def on_events(self, events: Iterable[tuple[int, EngineEvent]]) -> None:
        """Write the new phases of requests."""
        now = self._clock()
        for number, event in events:
            match event:
                case Queued():
                    args = {"position": event.position, "predicted_ttft_s": event.predicted_ttft_s}
                    self._async("b", number, f"request {number}", now, args)
                    self._async("b", number, "queued", now)
                    self._lines[number] = _Line("queued")
                case NewTokens():
                    self._phase(number, "decode", now)
                case Completed():
                    self._end(number, event.completion.finish_reason)
                case Failed():
                    self._end(number, event.reason)

    def close(self) -> None:
        """End the open lifelines and the file; further calls do nothing."""
        for number in list(self._lines):
            self._end(number, "open when the trace ended")
        self._finish()

    def _ran(self, pid: int, name: str, report: TickReport, chunks: list[ChunkReport], times: dict[str, float]) -> None:
        """Write the bars of one stage and group."""
        measured = report.ended - report.started if report.timed else None
        cost = {"predicted_s": report.predicted, "measured_s": measured}
        self._name(pid, TICKS, name, "ticks")
        tick = {**cost, "bucket": list(report.bucket), "padding": report.padding}
        tokens = sum(chunk.length for chunk in chunks)
        what = f"tick of {tokens}"
        if report.layers is not None:
            first, past = report.layers
            what, tick = f"slice of {tokens}: layers {first} to {past - 1}", {**tick, "layers": [first, past]}
        self._write({"ph": "X", "name": what, "pid": pid, "tid": TICKS, **times, "args": tick})
        decodes = [chunk for chunk in chunks if chunk.decode]
        if decodes:
            self._name(pid, DECODES, name, "decodes")
            args = {
                **cost,
                "requests": [chunk.number for chunk in decodes],
                "contexts": [chunk.start + chunk.length for chunk in decodes],
            }
            label = f"{len(decodes)} decodes"
            self._write({"ph": "X", "name": label, "pid": pid, "tid": DECODES, **times, "args": args})
        for at, chunk in enumerate(chunk for chunk in chunks if not chunk.decode):
            self._name(pid, CHUNKS + at, name, f"chunk {at}")
            args = {
                **cost,
                "request": chunk.number,
                "tokens": chunk.length,
                "context": chunk.start + chunk.length,
                "slack": chunk.slack if math.isfinite(chunk.slack) else None,
            }
            label = f"request {chunk.number}: {chunk.start} + {chunk.length}"
            if report.layers is not None:
                label += f", layers {report.layers[0]} to {report.layers[1] - 1}"
            self._write({"ph": "X", "name": label, "pid": pid, "tid": CHUNKS + at, **times, "args": args})

    def _served(self, chunk: ChunkReport, report: TickReport) -> None:
        """Note a prompt chunk in the first stage; the time since the chunk before it was a wait."""
        line = self._lines.get(chunk.number)
        if line is None:
            return
        if line.phase != "prefill":
            self._phase(chunk.number, "prefill", report.started)
        elif report.started - line.served > LEAST_WAIT_S:
            self._async("b", chunk.number, "wait", line.served)
            self._async("e", chunk.number, "wait", report.started)
        line.served = report.ended

    def _phase(self, number: int, phase: str, now: float) -> None:
        line = self._lines.get(number)
        if line is not None and line.phase != phase:
            self._async("e", number, line.phase, now)
            self._async("b", number, phase, now)
            line.phase = phase

    def _end(self, number: int, how: str) -> None:
        line = self._lines.pop(number, None)
        if line is not None:
            now = self._clock()
            self._async("e", number, line.phase, now)
            self._async("e", number, f"request {number}", now, {"ended": how})

    def _async(self, kind: str, number: int, name: str, now: float, args: dict[str, Any] | None = None) -> None:
        event = {"ph": kind, "cat": "request", "id": number, "name": name, "pid": REQUESTS, "tid": 0}
        self._write({**event, "ts": self._us(now), "args": args or {}})

    def _name(self, pid: int, tid: int, process: str, track: str) -> None:
        """Name a track once; the first track names its process, too."""
        if (pid, tid) in self._named:
            return
        self._named.add((pid, tid))
        if tid == TICKS:
            self._write({"ph": "M", "name": "process_name", "pid": pid, "args": {"name": process}})
        self._write({"ph": "M", "name": "thread_name", "pid": pid, "tid": tid, "args": {"name": track}})

    def _us(self, seconds: float) -> float:
        return round((seconds - self._origin) * 1e6, 1)

    def _write(self, event: dict[str, Any]) -> None:
        if self._file.closed:
            return
        try:
            self._file.write("[\n" if not self._written else ",\n")
            self._file.write(json.dumps(event, allow_nan=False))
        except OSError as error:
            self._give_up(error)
            return
        self._written += 1
        if self._written == self._most:
            self._finish()

    def _finish(self) -> None:
        if self._file.closed:
            return
        try:
            self._file.write("\n]\n")
            self._file.close()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        logging.getLogger(__name__).warning("the schedule trace ends: %s", error.strerror)
        self._lines.clear()
        try:
            self._file.close()
        except OSError:  # the buffer cannot be written either, but the file is closed
            return
