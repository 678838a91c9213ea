"""Counts by tenant. The tenant of a request is who sent it: a name, or "" where the senders are not told apart."""

from __future__ import annotations


class TenantCounts:
    """A whole number for each tenant; one that is 0 takes no memory."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._total = 0

    def __getitem__(self, tenant: str) -> int:
        return self._counts.get(tenant, 0)

    @property
    def total(self) -> int:
        """The sum of all."""
        return self._total

    def add(self, tenant: str, change: int) -> None:
        """Change the number of a tenant."""
        self._total += change
        count = self[tenant] + change
        if count:
            self._counts[tenant] = count
        else:
            self._counts.pop(tenant, None)

    def clear(self) -> None:
        """Make all numbers 0."""
        self._counts.clear()
        self._total = 0

    def copied(self) -> dict[str, int]:
        """The numbers that are not 0."""
        return dict(self._counts)
