"""Traffic served by engine and scheduler on a virtual clock."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from medha_jax.config import SchedulerConfig
from medha_jax.engine import Completed, Engine, GenerationRequest, NewTokens, scheduler_for
from medha_jax.plan import SamplingParams
from medha_jax.results import RequestRecord
from medha_jax.scheduler.request import Slo
from medha_jax.simulate.clock import Clock, VirtualClock
from medha_jax.simulate.counted_output import CountedOutput
from medha_jax.simulate.deployments import Deployment
from medha_jax.simulate.executor import SimulatedExecutor, Slowed, Totals
from medha_jax.simulate.held_chunks import SimulationError
from medha_jax.simulate.simulated_records import record_of
from medha_jax.workload import WorkloadRequest

STUCK_STEPS, STUCK_PAUSE_S = 1000, 0.001  # limit and pause for an engine that has requests but runs nothing
Progress = Callable[[float, int], None]


@dataclass(frozen=True)
class Outcome:
    """A simulation's requests in order of arrival, its end (seconds), and what was computed."""

    records: tuple[RequestRecord, ...]
    end: float
    totals: Totals


def executor_of(deployment: Deployment, clock: Clock, slowed: Slowed | None = None) -> SimulatedExecutor:
    """The devices of a deployment."""
    return SimulatedExecutor(
        deployment.config,
        deployment.context,
        deployment.times,
        clock,
        slowed,
        slice_lengths=deployment.slice_lengths,
    )


def alone(deployment: Deployment, settings: SchedulerConfig) -> Callable[[int], float]:
    """Seconds of a prompt alone, as a function of its tokens, in chunks that leave room for decodes.

    This is the scheduler's prediction, with ticks of at most the TPOT target over the stages. It leaves out the filling
    of the pipeline, so the time in chunks of the largest size is a lower bound. Short prompts always come in those.
    """
    executor = executor_of(deployment, VirtualClock())
    predicted = scheduler_for(executor, settings, deployment.model).prefill_seconds

    def seconds(prompt: int) -> float:
        return max(predicted(prompt), deployment.isolated_prefill(prompt))

    return seconds


def simulate(
    deployment: Deployment,
    settings: SchedulerConfig,
    requests: Sequence[WorkloadRequest],
    until: float | None = None,
    on_progress: Progress = lambda seconds, finished: None,
    isolated: Callable[[int], float] | None = None,
    most: int | None = None,
    slowed: Slowed | None = None,
) -> Outcome:
    """Serve requests as they arrive, until all are done.

    Args:
        deployment: machine and time model. The scheduler predicts with the same model.
        settings: of the scheduler. The prefix cache is off, because simulated prompts have no content.
        requests: in the order in which they are due, with known prompt lengths.
        until: stop at this second, finished or not; None to serve everything.
        on_progress: takes simulated seconds and finished requests, after every step.
        isolated: seconds of a prompt alone, by its tokens, from which deadlines follow; None for those of this machine.
        most: most requests under way at once, None for any number. A later request arrives when another finishes.
        slowed: tick seconds of a machine whose speed changes; the scheduler does not know.

    Raises:
        SimulationError: the engine stands still, or asks for something that no runtime can do.
    """
    clock = VirtualClock()
    executor = executor_of(deployment, clock, slowed)
    settings = replace(settings, prefix_cache=False)
    model = deployment.model
    engine = Engine(executor, scheduler_for(executor, settings, model), model, clock, CountedOutput)
    seconds_alone = isolated or alone(deployment, settings)
    prefills = [seconds_alone(request.length) for request in requests]
    deadlines = [settings.default_deadline_s(seconds) for seconds in prefills]
    first: list[float | None] = [None] * len(requests)
    finished: list[float | None] = [None] * len(requests)
    of_number: dict[int, int] = {}
    sent, freed = list(requests), 0.0
    came = done = stuck = 0
    while until is None or clock() < until:
        while came < len(sent) and sent[came].at <= clock() and (most is None or came - done < most):
            if most is not None:
                sent[came] = replace(sent[came], at=max(sent[came].at, freed))
            of_number[engine.add(request_for(sent[came], deadlines[came]), sent[came].at)] = came
            came += 1
        if not engine.busy:
            if came == len(sent):
                break
            clock.advance_to(sent[came].at)
            continue
        before = executor.totals.seconds
        for number, event in engine.step():
            place = of_number[number]
            if isinstance(event, NewTokens) and first[place] is None:
                first[place] = clock()
            elif isinstance(event, Completed):
                finished[place] = freed = clock()
                done += 1
        stuck = stuck + 1 if executor.totals.seconds == before else 0
        if stuck:
            clock.advance_to(clock() + STUCK_PAUSE_S)
        if stuck > STUCK_STEPS:
            raise SimulationError(f"nothing runs at {clock():.1f} s, and {came - done} requests wait")
        on_progress(clock(), done)
    end = clock()
    rows = zip(sent[:came], deadlines, prefills, first, finished, strict=False)
    records = tuple(record_of(index, *row, end) for index, row in enumerate(rows))
    return Outcome(records, end, executor.totals)


def request_for(request: WorkloadRequest, deadline_s: float) -> GenerationRequest:
    """The engine's request for a request of a workload, with its deadline."""
    return GenerationRequest(
        range(request.length),
        SamplingParams(temperature=0, max_tokens=request.output_tokens, ignore_eos=True),
        slo=Slo(ttft_s=deadline_s),
        priority=request.priority,
    )
