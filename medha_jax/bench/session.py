"""The sequence of loads for one server: warm-up, prompts alone, and the repeats of the load."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from medha_jax.bench.backend import Backend, BackendError
from medha_jax.bench.load_generator import LoadGenerator, LoadSettings, Tally
from medha_jax.results import Repeat, RequestRecord
from medha_jax.workload import ConvoyConfig, Isolated, Workload, WorkloadConfig, WorkloadRequest, build, build_convoy

SHOWN_EVERY_S = 0.5
ALONE_LENGTHS, ALONE_TIMES, ALONE_SECONDS = 4, 3, 2.0
# other seeds than the load's: a prompt measured alone must not be in the prefix cache during the load
ALONE_SEED = 2**62


class Display(Protocol):
    """Shows the progress of a run."""

    def show(self, what: str, tally: Tally, seconds: float) -> None:
        """Called twice a second with the name of the run, its counts, and the seconds since its start."""

    def close(self) -> None:
        """Called at the end of a run."""


class Session:
    """Sends loads through one backend. Owns the running generator.

    Args:
        backend: connection to the server.
        settings: how requests are sent.
        vocabulary: upper limit of the token ids in the session's own prompts.
        display: shows the progress.
        clock: seconds, monotonic.
    """

    def __init__(
        self, backend: Backend, settings: LoadSettings, vocabulary: int, display: Display, clock: Callable[[], float]
    ) -> None:
        self.stopped = False
        self._vocabulary = vocabulary
        self._backend, self._settings, self._display, self._clock = backend, settings, display, clock
        self._running: LoadGenerator | None = None

    def stop(self) -> None:
        """End the current load and start no other; the calls return what was measured so far."""
        self.stopped = True
        if self._running is not None:
            self._running.stop()

    def deadlines_from(self, alone: Callable[[int], float]) -> None:
        """Derive deadlines from `alone`: the seconds of a prompt alone, by its tokens."""
        self._settings = dataclasses.replace(self._settings, alone=alone)

    async def send(
        self, what: str, workload: Workload, requests: Sequence[WorkloadRequest], settings: LoadSettings | None = None
    ) -> tuple[RequestRecord, ...]:
        """Send requests of a workload and wait for their ends."""
        if self.stopped:
            return ()
        generator = LoadGenerator(workload, requests, self._backend, settings or self._settings, self._clock)
        self._running = generator
        shower = asyncio.create_task(self._show(what, generator.tally))
        try:
            return await generator.run()
        finally:
            self._running = None
            shower.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await shower
            self._display.close()

    async def warm_up(self, workload: Workload) -> None:
        """Send the warm-up requests of a workload, all at once.

        Raises:
            BackendError: all of them failed.
        """
        if not workload.warmup:
            return
        records = await self.send("warm-up", workload, workload.warmup, LoadSettings(tell_slos=False))
        failed = [record for record in records if record.status == "failed"]
        if failed and len(failed) == len(records):
            raise BackendError(f"all {len(failed)} warm-up requests failed; the first: {failed[0].error}")

    async def alone(self, prompt: int, output: int, number: int = 0) -> RequestRecord | None:
        """Measure one request on the idle server; None if the session was stopped.

        Args:
            prompt: number of prompt tokens.
            output: number of output tokens.
            number: selects the content of the prompt.

        Raises:
            BackendError: it failed.
        """
        config = ConvoyConfig(
            long_prompt=prompt,
            long_output=output,
            shorts=0,
            seed=ALONE_SEED + number,
            vocabulary=self._vocabulary,
        )
        workload = build_convoy(config)
        plain = LoadSettings(tell_slos=False, timeout_s=self._settings.timeout_s)
        records = await self.send(f"{prompt:,} tokens alone", workload, workload.requests, plain)
        if self.stopped or not records:
            return None
        (record,) = records
        if record.status != "ok":
            raise BackendError(f"a prompt of {prompt:,} tokens, sent alone, failed: {record.error}")
        return record

    async def isolated(self, workload: Workload) -> Isolated | None:
        """Measure prompts of a few lengths of the workload alone; None if the session was stopped.

        Short prompts are measured a few times, and the shortest time counts: a server's first requests are slow.

        Raises:
            BackendError: a request failed.
        """
        measured = []
        for number, length in enumerate(_lengths(workload)):
            times: list[float] = []
            while len(times) < ALONE_TIMES and sum(times) < ALONE_SECONDS:
                record = await self.alone(length, 1, ALONE_TIMES * number + len(times))
                if record is None:
                    return None
                times.append(record.outputs[0][0] - record.sent)
            measured.append((length, min(times)))
        return Isolated(measured)

    async def repeat(self, config: WorkloadConfig, repeats: int) -> tuple[Repeat, ...]:
        """Run a workload `repeats` times with successive seeds; a stopped repeat is the last one.

        Raises:
            WorkloadError: one of them cannot be made; none is sent then.
        """
        found = []
        configs = config.next_seeds(repeats)
        for one in configs[1:]:
            build(one)  # and again below: all of them at once may be large
        for number, workload in enumerate(map(build, configs), 1):
            what = "load" if repeats == 1 else f"load {number}/{repeats}"
            records = await self.send(what, workload, workload.requests)
            if records:
                found.append(Repeat(records))
            if self.stopped:
                break
        return tuple(found)

    async def _show(self, what: str, tally: Tally) -> None:
        began = self._clock()
        while True:
            await asyncio.sleep(SHOWN_EVERY_S)
            self._display.show(what, tally, self._clock() - began)


def _lengths(workload: Workload) -> Iterator[int]:
    """A few prompt lengths of a workload, from the shortest to the longest in equal ratios."""
    known = sorted({request.prompt_tokens for request in workload.requests if request.prompt_tokens})
    if not known:
        raise BackendError("a deadline by length needs prompts whose tokens are known")
    low, high = known[0], known[-1]
    steps = ALONE_LENGTHS - 1
    yield from sorted({round(low * (high / low) ** (step / steps)) for step in range(ALONE_LENGTHS)})
