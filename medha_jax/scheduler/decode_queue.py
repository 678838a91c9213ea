"""The decoding requests whose next token can be planned."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from medha_jax.scheduler.request import DECODING, RequestState

Turn = tuple[RequestState, int, int]
"""A request, the tokens that were scheduled of it, and how often it had been preempted, when its turn was noted."""


class DecodeQueue:
    """Owns the order in which requests that have their whole prompt behind them get their next token planned.

    A token that a chunk samples lies on the devices when the chunk has left the last of `stages` stages, so it can be
    fed in the tick after that, whether or not the host has read it. A plan is made for every tick.
    """

    def __init__(self, stages: int) -> None:
        self._due: list[Turn] = []
        self._coming: deque[list[Turn]] = deque([[] for _ in range(stages)])

    def begin(self) -> list[RequestState]:
        """Begin a plan: the requests whose token can be fed in it, in order.

        Those that have ended, or lost their pages, since their turn was noted are left out.
        """
        self._due += self._coming.popleft()
        return [
            state
            for state, scheduled, preemptions in self._due
            if state.phase is DECODING and state.scheduled == scheduled and state.preemptions == preemptions
        ]

    def end(self, left: Iterable[RequestState], sampling: Iterable[RequestState]) -> None:
        """End a plan.

        Args:
            left: those of `begin` that found no row.
            sampling: requests of which a chunk in this plan samples a token.
        """
        self._due = _turns(left)
        self._coming.append(_turns(state for state in sampling if state.wants_more))


def _turns(states: Iterable[RequestState]) -> list[Turn]:
    """Turns of those that did not lose their pages while the plan was made."""
    return [(state, state.scheduled, state.preemptions) for state in states if state.phase is DECODING]
