"""Which KV groups take a request: those with the least pending attention work."""

from __future__ import annotations

from collections.abc import Sequence


def attention_seen(part: int, tokens: int, per_group: int) -> int:
    """Attention of the first `tokens` positions to part `part`, in tokens².

    A position p sees `min(max(p + 1 - part M, 0), M)` of the tokens `[part M, (part + 1) M)`, M = `per_group`.
    """
    inside = min(max(tokens - part * per_group, 0), per_group)
    beyond = max(tokens - (part + 1) * per_group, 0)
    return inside * (inside + 1) // 2 + beyond * per_group


class Placement:
    """Counts each group's pending prompt attention and chooses groups by it.

    Counts are whole numbers, so removing a request's work restores the count exactly. A group holds up to `per_group`
    tokens of one request.
    """

    def __init__(self, groups: int, per_group: int) -> None:
        self._pending = [0] * groups
        self._per_group = per_group

    @property
    def pending(self) -> tuple[int, ...]:
        """Pending attention work of the admitted prompts on each group, in tokens²."""
        return tuple(self._pending)

    def choose(
        self,
        parts: Sequence[int],
        free: Sequence[int],
        added: Sequence[int] | None = None,
        held: Sequence[int] | None = None,
    ) -> tuple[int, ...] | None:
        """Groups for the parts of a request, in order; None if its pages are not free.

        Args:
            parts: pages of each part; the first part needs the most.
            free: pages of each group that no request holds.
            added: work that the request's first part brings to each group, if cached prefixes make it differ.
            held: pages of its first part that each group has already, and others hold.
        """
        chosen: list[int] = []
        for pages in parts:
            there = held if held is not None and not chosen else [0] * len(free)
            fitting = [group for group in range(len(free)) if free[group] + there[group] >= pages]
            fitting = [group for group in fitting if group not in chosen]
            if not fitting:
                return None
            extra = added if added is not None and not chosen else [0] * len(free)
            chosen.append(min(fitting, key=lambda group: (self._pending[group] + extra[group], -free[group])))
        return tuple(chosen)

    def next(self, groups: Sequence[int], free: Sequence[int]) -> int:
        """The group for the next part of a request that has `groups`: a free page first, then least work."""
        others = [group for group in range(len(free)) if group not in groups]
        return min(others, key=lambda group: (free[group] < 1, self._pending[group], -free[group]))

    def add(self, groups: Sequence[int], done: int, total: int) -> None:
        """A request on these groups has the prompt positions `[done, total)` to compute."""
        for part, group in enumerate(groups):
            self._pending[group] += self._work(part, done, total)

    def remove(self, groups: Sequence[int], done: int, total: int) -> None:
        """The positions `[done, total)` of a request are computed, or will not be."""
        for part, group in enumerate(groups):
            self._pending[group] -= self._work(part, done, total)

    def _work(self, part: int, done: int, total: int) -> int:
        return attention_seen(part, total, self._per_group) - attention_seen(part, done, self._per_group)
