"""From options to measured runs, and from runs to files and tables."""

from __future__ import annotations

import asyncio
import dataclasses
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from medha_jax.cli.bench_live import LiveDisplay
from medha_jax.cli.bench_target import GUESSED_VOCABULARY, Target, backend_of, stopped_by_signals
from medha_jax.cli.opening import tell
from medha_jax.cli.option_groups import refusal

if TYPE_CHECKING:
    from medha_jax.bench.backend import ServerFacts
    from medha_jax.bench.session import Session
    from medha_jax.cli.bench_options import ClientOptions
    from medha_jax.results import Repeat, Run
    from medha_jax.workload import ConvoyConfig, Workload, WorkloadConfig, WorkloadRequest

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Opened:
    """A server with an open session.

    Args:
        began: when the command began.
        facts: what the server reports about itself.
        vocabulary: token ids of prompts are below it.
    """

    target: Target
    client: ClientOptions
    began: datetime
    session: Session
    facts: ServerFacts
    vocabulary: int

    async def ready(self, config: WorkloadConfig) -> WorkloadConfig:
        """Warm up, and measure prompts alone if deadlines follow from them.

        Returns the workload with the server's vocabulary, and its context as a limit.
        """
        from medha_jax.workload import build

        fitted = dataclasses.replace(config, vocabulary=self.vocabulary, context_limit=self.facts.context_tokens)
        workload = build(fitted)
        await self.session.warm_up(workload)
        if self.client.deadline is not None:
            isolated = await self.session.isolated(workload)
            if isolated is not None:
                self.session.deadlines_from(isolated)
        return fitted

    def run(
        self,
        repeats: Sequence[Repeat],
        config: WorkloadConfig | ConvoyConfig,
        *,
        name: str | None = None,
        rate: float | None = None,
        series: str | None = None,
        **more: Any,
    ) -> Run:
        """Measurements as a run, with the settings to show, of which `more` are some, and a stamp.

        Args:
            name: heads its column; None for the server's.
            rate: offered, requests a second; None if no single one was.
            series: the line that it belongs to, among runs at several rates.
        """
        from medha_jax.results import Run, stamp
        from medha_jax.workload import describe

        shown = {
            "workload": describe(config),
            "requests": dataclasses.asdict(config),
            "server": self.target.words,
            "client": {key: value for key, value in dataclasses.asdict(self.client).items() if value is not None},
        }
        stamped = stamp(sys.argv[1:], self.began, {"served": dataclasses.asdict(self.facts)})
        return Run(name or self.target.name, tuple(repeats), shown | more, stamped, rate, series)


def spoken_to(
    target: Target, client: ClientOptions, began: datetime, work: Callable[[Opened], Awaitable[T]]
) -> tuple[T, bool]:
    """Open a session with a server and do some work in it, in its own event loop.

    Ctrl-C stops the session; the work goes on with the measurements so far. Returns what came of it, and whether it
    was stopped.

    Raises:
        BackendError: the server does not answer.
    """

    async def run() -> tuple[T, bool]:
        from medha_jax.bench.load_generator import LoadSettings
        from medha_jax.bench.session import Session

        backend = backend_of(target, client)
        try:
            facts = await backend.facts()
            vocabulary = client.vocabulary or facts.vocabulary or GUESSED_VOCABULARY
            settings = LoadSettings(
                slos=client.slos,
                tell_slos=client.tell_slos,
                max_concurrency=client.max_concurrency,
                timeout_s=client.timeout,
            )
            session = Session(backend, settings, vocabulary, LiveDisplay(), time.perf_counter)
            with stopped_by_signals(session.stop):
                return await work(Opened(target, client, began, session, facts, vocabulary)), session.stopped
        finally:
            await backend.close()

    return asyncio.run(run())


def all_requests(first: Workload, config: WorkloadConfig, count: int) -> Iterator[WorkloadRequest]:
    """Requests of a workload with `count` successive seeds, warm-up included; `first` is that of its own seed."""
    from medha_jax.workload import build

    for number, one in enumerate(config.next_seeds(count)):
        drawn = build(one) if number else first
        yield from (*drawn.warmup, *drawn.requests)


@contextmanager
def kept(out: Path | None, title: str) -> Iterator[list[Run]]:
    """A list for runs; after the block, whatever ended it, they and their report are written, if a directory is given.

    Raises:
        typer.BadParameter: the directory holds results.
        OSError: it cannot be made.
    """
    from medha_jax.results import holds_results, write_report, write_runs

    if out is not None:
        if holds_results(out):
            raise refusal("--out", f"{out} holds results; give another directory, or remove them")
        out.mkdir(parents=True, exist_ok=True)  # now: later, it would lose what was measured
    runs: list[Run] = []
    try:
        yield runs
    finally:
        if out is not None and runs:
            write_runs(out, runs)
            tell(f"wrote {write_report(out, runs, title)}")


def complain(repeats: Sequence[Repeat]) -> bool:
    """Report failed requests and a late client; returns whether no request succeeded."""
    records = [record for repeat in repeats for record in repeat.records]
    failed = [record for record in records if record.status == "failed"]
    errors = Counter(record.error or "no reason" for record in failed)
    for error, count in errors.most_common(5):
        tell(f"{count:,} of {len(records):,} requests failed: {error}")
    if len(errors) > 5:
        tell(f"and {len(errors) - 5:,} other errors; requests.jsonl (--out) has all")
    return bool(failed) and len(failed) == len(records)
