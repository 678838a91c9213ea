"""How long a tick may take."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

from medha_jax.config import SchedulerConfig

IDLE_PATIENCE = 2.0


@dataclass(frozen=True)
class TickTarget:
    """How long a tick may take.

    Args:
        seconds: that it aims at.
        at_most: seconds that it may take with the smallest chunk of its first prompt.
        patience: times `seconds`, or what the smallest chunk takes, that it may take with a chunk of its first prompt
            which is worth it.
    """

    seconds: float
    at_most: float
    patience: float = 1.0

    def within(self, seconds: float) -> TickTarget:
        """The same, but no longer than so many seconds."""
        return TickTarget(min(self.seconds, seconds), self.at_most, self.patience)

    def share(self, slack: float, most: float) -> TickTarget:
        """What a long prompt with so much relative slack fills at most: `seconds * (1 - min(max(slack, 0), most))`.

        Medha's Algorithm 2, in which short prompts yield too, against its own example.
        """
        return TickTarget(self.seconds * (1 - min(max(slack, 0.0), most)), self.at_most)


class TickTargets:
    """Owns what was promised to the decodes in flight, and what ticks have saved of it.

    A token takes as many ticks as there are stages, and all stages wait for the slowest plan. So a tick aims at the
    tightest TPOT target of the decodes in any stage, divided by the stages. A prompt whose last chunk is in flight
    counts as a decode: what is planned meanwhile shares ticks with its next token.

    Where no prompt chunk fits beside the decodes, the smallest one is taken all the same as soon as the ticks before
    have saved the time for it, so the time per token keeps its mean. It is taken at once where there are no decodes,
    and where they take too long by themselves. Without decodes nobody waits for a token, so a tick may take up to
    IDLE_PATIENCE times its limit, or what its smallest chunk takes if that is more, where a smaller chunk would hardly
    make it shorter. Where prompts run to their end, nothing is promised to anybody else, and chunks are as large as
    they can be.

    Args:
        config: the limit without decodes, and whether chunks of prompts take turns; ticks save for `ageing_ticks` of
            them at most.
        stages: of the pipeline.
    """

    def __init__(self, config: SchedulerConfig, stages: int) -> None:
        self._idle, self._most_saved = config.idle_tick_s, config.ageing_ticks
        self._unlimited = not config.chunk_preemption
        self._stages = stages
        self._promised: deque[float] = deque(maxlen=stages - 1)
        self._saved = 0.0

    def target(self, tpot: float, seconds: float) -> TickTarget:
        """The target of a tick.

        Args:
            tpot: tightest TPOT target of the decodes of its plan, in seconds; infinite without any.
            seconds: that the decodes take.
        """
        if self._unlimited:
            return TickTarget(math.inf, math.inf)
        promised = self._tightest(tpot)
        if promised == math.inf:
            return TickTarget(self._idle, math.inf, IDLE_PATIENCE)
        return TickTarget(promised, math.inf if seconds > promised else promised + self._saved)

    def planned(self, tpot: float, coming: float, seconds: float) -> None:
        """A tick was planned.

        Args:
            tpot: as for `target`.
            coming: the same, with the prompts that end in this plan.
            seconds: that the tick takes.
        """
        promised = self._tightest(tpot)
        if promised < math.inf:
            self._saved = min(max(self._saved + promised - seconds, 0.0), self._most_saved * promised)
        else:
            self._saved = 0.0
        self._promised.append(coming)

    def _tightest(self, tpot: float) -> float:
        """Seconds of a tick that keep every promise; infinite without any."""
        return min([tpot, *self._promised]) / self._stages
