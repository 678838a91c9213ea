"""How long ticks and slices may take: the TPOT targets of the decodes, and the time that ticks have saved."""

from __future__ import annotations

import math
from collections import deque
from typing import NamedTuple

from medha_jax.config import SchedulerConfig

IDLE_PATIENCE = 2.0
MISSED_SHARE = 3.0  # times the seconds of its decodes that a tick may take if they alone miss their target
CHARGE = 1.02  # times its seconds that a slice takes off the saved time, so that means stay below the TPOT target


class TickTarget(NamedTuple):
    """How long a tick may take.

    Args:
        seconds: what the tick aims at.
        at_most: seconds allowed with the smallest chunk of its first prompt; at least `seconds`.
        patience: factor on the time allowed with a longer chunk of its first prompt that is `worthwhile`. The time is
            `seconds`, or that of the smallest chunk if it is longer.
    """

    seconds: float
    at_most: float
    patience: float = 1.0

    @property
    def strict(self) -> TickTarget:
        """The target after the first prompt of a tick."""
        return TickTarget(self.seconds, self.seconds)

    def within(self, seconds: float) -> TickTarget:
        """The same, but at most `seconds` long."""
        return TickTarget(min(self.seconds, seconds), self.at_most, self.patience)

    def share(self, slack: float, most: float) -> TickTarget:
        """The target of a long prompt with relative slack: `seconds * (1 - min(max(slack, 0), most))`.

        In Medha's Algorithm 2 short prompts yield as well, which contradicts the paper's own example.
        """
        return TickTarget(self.seconds * (1 - min(max(slack, 0.0), most)), self.at_most)


NONE = TickTarget(-1.0, -1.0)  # nothing fits
SMALLEST = TickTarget(0.0, math.inf)  # the smallest chunk or slice, however long it takes


class TickTargets:
    """Owns the TPOT targets of the decodes in flight, and the time that earlier ticks have saved.

    A token passes every stage, one tick each, and all stages wait for the slowest plan. So a tick aims at the tightest
    TPOT target of the decodes in any stage, divided by the stages. A prompt whose last chunk is in flight counts as a
    decode, because its next token shares ticks with the new plan.

    Slices take the time that ticks have saved since the newest answer began, up to `slice_s` each. Every answer keeps
    its mean time per token. If no layer of the held chunk is that short, one layer runs as soon as its time is saved.
    If no chunk fits beside the decodes, the smallest one runs when its time is saved, by all ticks together: ticks in
    which prompts end are no reason to wait. The saved time is at most that of `ageing_ticks` ticks. Between two ticks
    with decodes there are at most `ageing_ticks` slices, and one while a prompt's last chunk is in the pipeline.

    If the decodes alone take as long as the target or longer, no plan keeps it. Then a tick with prompts may take
    MISSED_SHARE times as long as its decodes, for throughput: the sooner all streams decode, the fewer ticks there are.
    A long prompt has a slice after every tick, as long as the decodes, up to `slice_s`.

    Without decodes no request waits for a token. A slice aims at `slice_s`, and a tick at `idle_tick_s`. If a smaller
    chunk would hardly shorten a tick, it may take IDLE_PATIENCE times its limit, or times the smallest chunk's time if
    that is longer. Without chunk preemption there is no limit, and chunks are as large as possible.
    """

    def __init__(self, config: SchedulerConfig, stages: int) -> None:
        self._idle, self._slice, self._most_saved = config.idle_tick_s, config.slice_s, config.ageing_ticks
        self._unlimited = not config.chunk_preemption
        self._stages = stages
        self.clear()

    def clear(self) -> None:
        """Start again with an empty pipeline."""
        self._promised: deque[float] = deque(maxlen=self._stages)  # of the latest ticks
        self._left = math.inf
        self._saved = 0.0
        self._missed = 0.0  # seconds of the latest decodes if they alone miss their target
        self._saved_since = 0.0  # the newest answer began
        self._ended: deque[bool] = deque([False] * self._stages, self._stages)  # prompts in the latest ticks
        self._spare = math.inf  # seconds that the decodes of `ageing_ticks` ticks like the latest leave
        self._in_a_row = 0  # slices since the latest tick

    def target(self, tpot: float, seconds: float) -> TickTarget:
        """The target of a tick whose decodes take `seconds` alone and have `tpot` as their tightest TPOT target.

        `tpot` is in seconds, and infinite without decodes.
        """
        if self._unlimited:
            return TickTarget(math.inf, math.inf)
        promised = self._tightest(tpot)
        if promised == math.inf:
            return TickTarget(self._idle, math.inf, IDLE_PATIENCE)
        if seconds >= promised:
            return TickTarget(MISSED_SHARE * seconds, math.inf)
        return TickTarget(promised, promised + self._saved)

    @property
    def longest_layer(self) -> float:
        """The most seconds that one layer of a chunk in slices may take: a layer is due every `ageing_ticks` plans.

        That is what the decodes of so many ticks leave; without decodes there is no limit.
        """
        return math.inf if self._promised_next == math.inf else self._spare

    @property
    def next(self) -> TickTarget:
        """The target of the next tick, as far as it is known before its decodes are."""
        if self._unlimited:
            return TickTarget(math.inf, math.inf)
        promised = self._promised_next
        if promised == math.inf:
            return TickTarget(self._idle, math.inf, IDLE_PATIENCE)
        if self._missed:
            return TickTarget(MISSED_SHARE * self._missed, math.inf)
        return TickTarget(promised, promised + self._saved)

    def of_slice(self, owed: bool) -> TickTarget:
        """The target of a slice that runs before the next tick; `at_most` is for its smallest number of layers.

        `owed`: the prompt has waited so long that one of those may take any time.
        """
        if self._unlimited:
            return TickTarget(math.inf, math.inf)
        promised = self._promised_next
        if promised == math.inf:
            return TickTarget(self._slice, math.inf)
        ends = any(list(self._ended)[1:])  # whether the next ticks bring a prompt's first token
        if self._in_a_row >= (1 if ends else self._most_saved):
            return NONE
        after_missed = 0.0 if self._in_a_row else self._missed  # seconds of the tick before, if it missed its target
        free = owed or after_missed > 0 or self._saved >= self._most_saved * promised
        seconds = min(max(self._saved_since, after_missed), self._slice)
        return TickTarget(seconds, math.inf if free else self._saved_since)

    def planned(
        self, tpot: float, ending: float, seconds: float, *, decodes: float = 0.0, left: float = math.inf
    ) -> None:
        """Note a tick.

        Args:
            tpot: as for `target`.
            ending: the tightest TPOT target of the prompts that end in the tick.
            seconds: predicted for the tick.
            decodes: predicted for its decodes alone.
            left: the tightest TPOT target of the decodes that found no row.
        """
        promised = self._tightest(tpot)
        most = self._most_saved * promised if promised < math.inf else 0.0
        self._saved = min(max(self._saved + promised - seconds, 0.0), most)
        self._saved_since = min(max(self._saved_since + promised - seconds, 0.0), most)
        self._ended.append(ending < math.inf)
        if self._ended[0]:  # the first token of an answer leaves the last stage
            self._saved_since = 0.0
        self._missed = decodes if decodes >= promised else 0.0
        self._spare = self._most_saved * max(promised - decodes, 0.0)
        self._in_a_row = 0
        self._promised.append(min(tpot, ending))
        self._left = left

    def sliced(self, seconds: float) -> None:
        """Note a slice."""
        self._saved = max(self._saved - CHARGE * seconds, 0.0)
        self._saved_since = max(self._saved_since - CHARGE * seconds, 0.0)
        self._in_a_row += 1

    def _tightest(self, tpot: float) -> float:
        """Seconds of a tick that keep every TPOT target; infinite without decodes."""
        others = list(self._promised)[1 - self._stages :] if self._stages > 1 else []
        return min([tpot, *others]) / self._stages

    @property
    def _promised_next(self) -> float:
        """The same for the next tick. Tokens that entered the pipeline `stages` ticks ago can be fed in it."""
        return min([self._left, *self._promised], default=math.inf) / self._stages
