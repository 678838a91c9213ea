"""Six requests with round timestamps, and a convoy: what the tests of results compute by hand."""

from __future__ import annotations

from datetime import UTC, datetime

from medha_jax.results import Outputs, Repeat, RequestRecord, Run, stamp

STARTED = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)


def recorded(deadline: float = 2.0) -> list[RequestRecord]:
    """Two short and one long request that finished, one that failed, one cancelled, one unfinished.

    Args:
        deadline: of the unfinished one, which has waited 1.1 s when the run ends.
    """
    return [
        RequestRecord(
            index=0,
            kind="short",
            prompt_tokens=100,
            output_tokens=4,
            due=0.99,
            sent=1.0,
            outputs=((1.5, 1), (1.7, 1), (2.1, 2)),
            ended=2.15,
            status="ok",
            deadline_s=0.5,
            tpot_slo_s=0.25,
            queue_s=0.1,
            preemptions=1,
            cached_tokens=64,
        ),
        RequestRecord(1, "short", 300, 1, 2.0, 2.0, ((2.2, 1),), 2.2, "ok", deadline_s=0.1, preemptions=2),
        RequestRecord(
            index=2,
            kind="long",
            prompt_tokens=5000,
            output_tokens=2,
            due=0.5,
            sent=0.5,
            outputs=Outputs([4.5, 5.0], [1, 1]),
            ended=5.1,
            status="ok",
            deadline_s=5,
            tpot_slo_s=0.4,
            alone_s=2.0,
        ),
        RequestRecord(3, "short", 10, 9, 3.0, 3.0, ((3.4, 1),), 3.6, "failed", error="boom <b>", deadline_s=10),
        RequestRecord(4, "short", 10, 9, 3.1, 3.1, (), 3.2, "cancelled", deadline_s=0.01),
        RequestRecord(5, "short", 10, 9, 4.0, 4.0, (), 5.1, "unfinished", deadline_s=deadline),
    ]


def convoy(wait: float, shift: float = 0.0) -> Repeat:
    """A long request of 60 s and five short ones that wait `wait` seconds and a little."""
    long = RequestRecord(0, "long", 32_768, 3, 0.0, 0.0, ((60.0, 1), (60.1, 1), (60.2, 1)), 60.3, "ok", deadline_s=90)
    short = []
    for i in range(1, 6):
        first = i + wait * (1 + 0.1 * (i - 3)) + shift
        outputs = tuple((first + 0.05 * step, 1) for step in range(4))
        ended, queue = first + 0.2, wait / 2
        short.append(
            RequestRecord(i, "short", 128, 4, i, i + 0.001, outputs, ended, "ok", deadline_s=0.5, queue_s=queue)
        )
    return Repeat((long, *short))


def run(name: str, *repeats: Repeat, rate: float | None = None, series: str | None = None) -> Run:
    """A run with a configuration and a stamp."""
    config = {"workload": {"source": "medha-5pct", "rate": rate, "seed": 0}, "policy": name}
    return Run(name, repeats, config, stamp(["bench", "convoy"], STARTED), rate, series)
