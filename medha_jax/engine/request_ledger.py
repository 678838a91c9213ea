"""The ledger of a service: which requests are open, and how the others ended."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from medha_jax.engine.events import Completed, EngineEvent, Failed, FailReason, FinishReason

EndReason = Literal["cancelled"] | FailReason
FINISH_REASONS: tuple[FinishReason, ...] = get_args(FinishReason)
END_REASONS: tuple[EndReason, ...] = ("cancelled", *get_args(FailReason))


@dataclass(frozen=True)
class RequestCounts:
    """Requests since the start. Of the `accepted` ones, those that are neither in `completed` nor in `failed` are open.

    `completed` are those with a completion, by finish reason; `failed` all others that have ended, by reason.
    """

    accepted: int = 0
    completed: Mapping[FinishReason, int] = field(default_factory=dict)
    failed: Mapping[EndReason, int] = field(default_factory=dict)


class RequestLedger:
    """Owns the numbers of the open requests, and counts: each is accepted once and ends once.

    Its owner calls it under a lock.
    """

    def __init__(self) -> None:
        self._open: set[int] = set()
        self._accepted = 0
        self._completed: Counter[FinishReason] = Counter()
        self._failed: Counter[EndReason] = Counter()

    def __len__(self) -> int:
        return len(self._open)

    def __contains__(self, number: int) -> bool:
        return number in self._open

    def accept(self, number: int) -> None:
        """Note a request that will run, or wait."""
        self._open.add(number)
        self._accepted += 1

    def cancel(self, number: int) -> bool:
        """Note that nobody wants a request any more; returns whether it was open."""
        if number not in self._open:
            return False
        self._open.remove(number)
        self._failed["cancelled"] += 1
        return True

    def note(self, number: int, event: EngineEvent) -> None:
        """Note an event of an open request, which may be its last one."""
        match event:
            case Completed(completion=completion):
                self._open.remove(number)
                self._completed[completion.finish_reason] += 1
            case Failed(reason=reason):
                self._open.remove(number)
                self._failed[reason] += 1

    def fail_all(self, reason: FailReason) -> list[int]:
        """Note that every open request has ended; returns their numbers."""
        ended = sorted(self._open)
        self._failed[reason] += len(ended)
        self._open.clear()
        return ended

    @property
    def counts(self) -> RequestCounts:
        """The counts now."""
        return RequestCounts(
            self._accepted,
            {reason: self._completed[reason] for reason in FINISH_REASONS},
            {reason: self._failed[reason] for reason in END_REASONS},
        )
