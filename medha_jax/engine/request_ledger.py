"""The ledger of a service: which requests are open, and how the others ended."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from medha_jax.engine.events import Completed, EngineEvent, Failed, FailReason, FinishReason
from medha_jax.tenants import TenantCounts

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

    A request's outputs have its number and those that follow. Its owner calls it under a lock.
    """

    def __init__(self) -> None:
        self._outputs: dict[int, list[int]] = {}  # open outputs of each open request
        self._open: dict[int, int] = {}  # the request of each open output
        self._tenant: dict[int, str] = {}  # of each open request
        self._by_tenant = TenantCounts()
        self._accepted = 0
        self._completed: Counter[FinishReason] = Counter()
        self._failed: Counter[EndReason] = Counter()

    def __len__(self) -> int:
        """Open requests."""
        return len(self._outputs)

    def __contains__(self, number: int) -> bool:
        """Whether an output is open."""
        return number in self._open

    @property
    def by_tenant(self) -> dict[str, int]:
        """Open requests of each tenant that has some."""
        return self._by_tenant.copied()

    def accept(self, number: int, outputs: int = 1, tenant: str = "") -> None:
        """Note a tenant's request that will run, or wait."""
        self._tenant[number] = tenant
        self._by_tenant.add(tenant, 1)
        self._outputs[number] = list(range(number, number + outputs))
        self._open.update(dict.fromkeys(self._outputs[number], number))
        self._accepted += 1

    def cancel(self, number: int) -> list[int]:
        """Note that nobody wants a request any more; returns its open outputs, none if it was not open."""
        if number not in self._outputs:
            return []
        self._failed["cancelled"] += 1
        return self._end(number)

    def note(self, number: int, event: EngineEvent) -> list[int]:
        """Note an event of an open output, which may be its last one.

        Returns:
            The other open outputs of its request, if the request has failed: they must end, too.
        """
        match event:
            case Completed(request=totals):
                self._outputs[self._open[number]].remove(number)
                request = self._open.pop(number)
                if totals is not None:
                    self._end(request)
                    self._completed[totals.finish_reason] += 1
            case Failed(reason=reason):
                self._failed[reason] += 1
                return [one for one in self._end(self._open[number]) if one != number]
        return []

    def fail_all(self, reason: FailReason) -> list[int]:
        """Note that every open request has ended; returns their numbers."""
        ended = sorted(self._outputs)
        self._failed[reason] += len(ended)
        self._outputs.clear()
        self._open.clear()
        self._tenant.clear()
        self._by_tenant.clear()
        return ended

    def _end(self, number: int) -> list[int]:
        """Close a request; returns the outputs that were open."""
        outputs = self._outputs.pop(number)
        self._by_tenant.add(self._tenant.pop(number), -1)
        for one in outputs:
            del self._open[one]
        return outputs

    @property
    def counts(self) -> RequestCounts:
        """The counts now."""
        return RequestCounts(
            self._accepted,
            {reason: self._completed[reason] for reason in FINISH_REASONS},
            {reason: self._failed[reason] for reason in END_REASONS},
        )
