"""Requests on their way between the queue and the pages."""

from __future__ import annotations

from collections.abc import Sequence

from medha_jax.scheduler.prompts import Prompts
from medha_jax.scheduler.request import RequestState
from medha_jax.scheduler.residents import Residents


class Admissions:
    """Gives requests their pages and takes them back; owner of the count of tokens that wait.

    Args:
        prompts: told who may run.
        residents: hands out slots and pages.
    """

    def __init__(self, prompts: Prompts, residents: Residents) -> None:
        self._prompts, self._residents = prompts, residents
        self._waiting_tokens = 0

    @property
    def waiting_tokens(self) -> int:
        """Tokens of requests that are not admitted: of their prompts, and those that they generated before."""
        return self._waiting_tokens

    def count(self, tokens: int) -> None:
        """So many more tokens wait, or fewer."""
        self._waiting_tokens += tokens

    def admit(self, state: RequestState, groups: Sequence[int], tick: int) -> None:
        """Give a waiting request slot and pages on `groups`; its first chunk comes in the tick after `tick`."""
        self._residents.admit(state, groups)
        self.count(-state.known)
        self._prompts.admitted(state, tick)

    def preempt(self, state: RequestState, now: float) -> None:
        """Take a request's pages and slot; its tokens are kept and are computed again later."""
        state.preemptions += 1
        if state.queued:
            self._prompts.remove(state)
        state.leaving = True
        if not state.flying:
            self.requeue(state, now)

    def requeue(self, state: RequestState, now: float) -> None:
        """A preempted request has nothing in flight any more: it waits again."""
        self._residents.release(state)
        state.fill = state.fillable
        self.count(state.known)
        state.scheduled = state.computed = state.chunk = 0
        state.found = None
        self._prompts.waits_again(state, now)
