"""Simulated requests as the records that benchmarks keep, so that both are reported the same way."""

from __future__ import annotations

from medha_jax.results import RequestRecord
from medha_jax.simulate.run import Outcome, Served, default_deadline


def records(outcome: Outcome, tpot_slo_s: float | None = None) -> list[RequestRecord]:
    """What every request got, on the virtual clock.

    A simulation notes the first token and the last one, not those between, so `outputs` has two entries at most: gaps
    between tokens are not in it, their mean (TPOT) is exact.

    Args:
        outcome: of a simulation.
        tpot_slo_s: seconds per output token that were promised.
    """
    return [_record(index, served, tpot_slo_s) for index, served in enumerate(outcome.served)]


def _record(index: int, served: Served, tpot_slo_s: float | None) -> RequestRecord:
    arrival, first, finished = served.arrival, served.first, served.finished
    outputs: list[tuple[float, int]] = [] if first is None else [(first, 1)]
    if finished is not None and arrival.output > 1:
        outputs.append((finished, arrival.output - 1))
    return RequestRecord(
        index=index,
        kind="long" if arrival.long else "short",
        prompt_tokens=arrival.prompt,
        output_tokens=arrival.output,
        due=arrival.at,
        sent=arrival.at,
        outputs=tuple(outputs),
        ended=served.end if finished is None else finished,
        status="unfinished" if finished is None else "ok",
        deadline_s=default_deadline(served.isolated),
        tpot_slo_s=tpot_slo_s,
        alone_s=served.isolated,
    )
