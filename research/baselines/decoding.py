"""Requests that decode together on devices that do nothing else; closed form between arrivals and ends."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(slots=True)
class Decoding:
    """A request that has its first token.

    It has `context` tokens before the next one, and `left` output tokens still to come.
    """

    number: int
    context: int
    left: int

    @property
    def held(self) -> int:
        """Tokens of KV that it holds at its end."""
        return self.context + self.left


@dataclass
class DecodePool:
    """Requests that decode together, one token each per round. Owns them and its time.

    Args:
        round_seconds: seconds of a round, from the number of requests and the sum of their contexts.
        tokens: KV that the pool holds; requests that do not fit wait, in order.
        slots: most requests together.
        now: seconds.
    """

    round_seconds: Callable[[int, float], float]
    tokens: int
    slots: int
    now: float = 0.0
    running: list[Decoding] = field(default_factory=list)
    waiting: deque[Decoding] = field(default_factory=deque)
    rounds: int = 0

    @property
    def held(self) -> int:
        """Tokens of KV that running requests need at their ends."""
        return sum(one.held for one in self.running)

    def add(self, request: Decoding) -> None:
        """Queue a request that decodes from now on."""
        self.waiting.append(request)
        self._admit()

    def run(self, until: float) -> list[tuple[int, float]]:
        """Run to the end of the round at `until`; returns the numbers of requests that ended, and when."""
        ended: list[tuple[int, float]] = []
        while self.running and self.now < until:
            count = len(self.running)
            context = float(sum(one.context for one in self.running))
            rounds = min(one.left for one in self.running)
            # each round reads one more token per request; the contexts half way stand for all rounds
            mean = self.round_seconds(count, context + count * (rounds - 1) / 2)
            if self.now + rounds * mean > until:
                rounds = max(1, min(rounds, int((until - self.now) / mean) + 1))
                mean = self.round_seconds(count, context + count * (rounds - 1) / 2)
            self.now += rounds * mean
            self.rounds += rounds
            for one in self.running:
                one.context += rounds
                one.left -= rounds
            ended += [(one.number, self.now) for one in self.running if not one.left]
            self.running = [one for one in self.running if one.left]
            self._admit()
        self.now = max(self.now, until if until != float("inf") else self.now)
        return ended

    def _admit(self) -> None:
        held = self.held
        while self.waiting and len(self.running) < self.slots:
            if held + self.waiting[0].held > self.tokens and self.running:
                return
            held += self.waiting[0].held
            self.running.append(self.waiting.popleft())
