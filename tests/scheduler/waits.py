"""What bounds on waits are made of, measured while requests are served."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from medha_jax.scheduler.request import SchedulerRequest
from tests.scheduler.serving import Server


@dataclass
class Waits:
    """Seconds of a served mix.

    Args:
        blocked: in which the request that is owed time waited for pages.
        longest: of the longest tick or slice.
        held: of slices while a chunk was in the slice lane, at most.
        chunks: chunks that entered it, by request.
    """

    blocked: float = 0.0
    longest: float = 0.0
    held: float = 0.0
    chunks: Counter[int] = field(default_factory=Counter)


def serve(server: Server, requests: Sequence[SchedulerRequest], owed: Callable[[], int | None]) -> Waits:
    """Serve requests in the order of their arrivals; `owed` gives the number of the one that is owed time now."""
    waits, coming, scheduler = Waits(), list(requests)[::-1], server.scheduler
    entered: dict[int, float] = {}  # seconds of slices before each chunk entered the slice lane, by id
    sliced = 0.0
    while coming or scheduler.busy:
        while coming and coming[-1].arrival_s <= server.now:
            server.add(coming.pop())
        before, number = server.now, owed()
        state = None if number is None else scheduler._states.get(number)
        blocked = state is not None and state.queued and state.holding is None
        planned = server.step()
        assert len(server.plans) < 50_000
        waits.longest = max(waits.longest, server.now - before)
        if planned.step is not None:
            waits.chunks.update(state.number for state in planned.states)
            entered |= {id(chunk): sliced for chunk in planned.plan.chunks}
            sliced += planned.step.seconds
            done = planned.step.slice.stages[-1].chunks if planned.step.leaving else ()
            waits.held = max([waits.held, *(sliced - entered[id(chunk)] for chunk in done)])
        if blocked:
            waits.blocked += server.now - before
    return waits
