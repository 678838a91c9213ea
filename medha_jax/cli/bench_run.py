"""From options to measured runs, and from runs to files and tables."""

from __future__ import annotations

import asyncio
import dataclasses
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from medha_jax.cli.bench_live import LiveDisplay
from medha_jax.cli.bench_target import GUESSED_VOCABULARY, Target, backend_of, stopped_by_signals
from medha_jax.cli.opening import tell

if TYPE_CHECKING:
    from medha_jax.bench.backend import ServerFacts
    from medha_jax.bench.session import Session
    from medha_jax.cli.bench_options import ClientOptions
    from medha_jax.results import Repeat, Run
    from medha_jax.workload import Workload

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Opened:
    """A server with an open session, and what it reports about itself.

    Token ids of prompts are below `vocabulary`.
    """

    session: Session
    facts: ServerFacts
    vocabulary: int


def spoken_to(target: Target, client: ClientOptions, work: Callable[[Opened], Awaitable[T]]) -> T:
    """Open a session with a server and do some work in it, in its own event loop.

    Ctrl-C stops the session; the work goes on with the measurements so far.

    Raises:
        BackendError: the server does not answer.
    """

    async def run() -> T:
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
                return await work(Opened(session, facts, vocabulary))
        finally:
            await backend.close()

    return asyncio.run(run())


async def ready(opened: Opened, workload: Workload, client: ClientOptions) -> None:
    """Warm up, and measure prompts alone if deadlines follow from them."""
    await opened.session.warm_up(workload)
    if client.deadline is not None:
        isolated = await opened.session.isolated(workload)
        if isolated is not None:
            opened.session.deadlines_from(isolated)


class Book:
    """Makes runs from measurements and stamps them. Made when the command begins."""

    def __init__(self) -> None:
        self._started = datetime.now(UTC)

    def run(
        self,
        name: str,
        repeats: Sequence[Repeat],
        config: Mapping[str, Any],
        facts: ServerFacts | None,
        *,
        rate: float | None = None,
        series: str | None = None,
    ) -> Run:
        """A named run.

        Args:
            name: heads its column.
            config: settings to show with it.
            facts: what the server reports about itself.
            rate: offered, requests a second.
            series: the line that it belongs to, among runs at several rates.
        """
        from medha_jax.results import Run, stamp

        said = {} if facts is None else {"served": dataclasses.asdict(facts)}
        stamped = stamp(sys.argv[1:], self._started, said)
        return Run(name, tuple(repeats), dict(config), stamped, rate, series)


def write(out: Path | None, runs: Sequence[Run], title: str) -> None:
    """Write runs and their report, if a directory is given."""
    if out is None or not runs:
        return
    from medha_jax.results import write_report, write_runs

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
