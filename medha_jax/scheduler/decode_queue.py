"""The decoding requests whose next token can be planned."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

from medha_jax.scheduler.request import DECODING, RequestState

Turn = tuple[RequestState, int, int]
"""A request, with its scheduled tokens and its preemptions at the time of the entry."""


class DecodeQueue:
    """Owns the order in which decoding requests get their next token planned.

    A sampled token is on the devices when its chunk has left the last of `stages` stages. The next tick can feed it,
    even if the host has not read it yet. Every tick has a plan. Where the host must have read it (`reads_tokens`), the
    request is due in the first plan after that.

    They go in the order in which they became due. With classes, an earlier one goes first, except that who found no row
    in `patience` plans comes before all others, who was left most often first.
    """

    def __init__(self, stages: int, patience: int) -> None:
        self._patience = patience
        self._due: list[Turn] = []
        self._left: dict[int, int] = {}  # plans in which requests found no row in a row, by number
        self._unread: list[Turn] = []  # those whose token the host must read first
        self._coming: deque[list[Turn]] = deque([[] for _ in range(stages)])

    def begin(self, classes: bool = False) -> list[RequestState]:
        """Begin a plan: the requests whose token it can feed, in order, with or without `classes`.

        Requests that have ended or lost their pages in the meantime are left out.
        """
        self._due += self._coming.popleft()
        if self._unread:
            self._due += [turn for turn in self._unread if not turn[0].in_flight]
            self._unread = [turn for turn in self._unread if turn[0].in_flight]
        due = [
            state
            for state, scheduled, preemptions in self._due
            if state.phase is DECODING and state.scheduled == scheduled and state.preemptions == preemptions
        ]
        return sorted(due, key=self._turn) if classes else due

    def end(self, left: Sequence[RequestState], sampling: Iterable[RequestState]) -> None:
        """End a plan: `left` found no row, and a chunk of each of `sampling` samples a token."""
        self._due = _turns(left)
        self._left = {state.number: self._left.get(state.number, 0) + 1 for state in left}
        turns = _turns(state for state in sampling if state.wants_more)
        self._coming.append([turn for turn in turns if not turn[0].request.reads_tokens])
        if len(self._coming[-1]) < len(turns):
            self._unread += [turn for turn in turns if turn[0].request.reads_tokens]

    def _turn(self, state: RequestState) -> tuple[bool, int]:
        left = self._left.get(state.number, 0)
        return (True, state.request.priority) if left < self._patience else (False, -left)


def _turns(states: Iterable[RequestState]) -> list[Turn]:
    """Turns of the requests that kept their pages while the plan was made."""
    return [(state, state.scheduled, state.preemptions) for state in states if state.phase is DECODING]
