"""Simulates the requests of a real run, for comparison."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from medha_jax.results import Repeat, ResultsError, Run, read_run
from medha_jax.simulate.deployments import Deployment
from medha_jax.simulate.simulation import Outcome
from medha_jax.workload import WorkloadRequest


def read_real(directory: Path) -> Run:
    """The first measurement of a benchmark's run, its requests in the order in which they were due.

    Raises:
        ResultsError: there is none.
    """
    run = read_run(directory)
    first = run.repeats[0]
    ordered = replace(first, records=tuple(sorted(first.records, key=lambda one: one.due)))
    return replace(run, repeats=(ordered,))


def requests_of(real: Run) -> list[WorkloadRequest]:
    """The requests that were sent to the server.

    Raises:
        ResultsError: there are none, or the tokens of one's prompt are not known.
    """
    records = real.repeats[0].records
    if not records:
        raise ResultsError(f"run {real.name!r} has no requests in its first measurement")
    unknown = [one for one in records if not one.prompt_tokens]
    if unknown:
        raise ResultsError(
            f"request {unknown[0].index} has 0 prompt tokens, which stands for a text of unknown length; "
            f"{len(unknown):,} of {len(records):,} requests have; a simulation needs the tokens of each"
        )
    return [
        WorkloadRequest(one.index, one.due, one.kind, one.prompt_tokens, one.output_tokens, priority=one.priority)
        for one in records
    ]


def simulated_run(outcome: Outcome, machine: Deployment, real: Run) -> Run:
    """A simulation as a run, judged by the objectives of the real one."""
    records = tuple(
        replace(simulated, deadline_s=one.deadline_s, tpot_slo_s=one.tpot_slo_s)
        for simulated, one in zip(outcome.records, real.repeats[0].records, strict=True)
    )
    return Run("simulated", (Repeat(records),), {"machine": machine.about}, {})
