"""The length of a prompt's next chunk in a tick, and whether the prompt does better in slices."""

from __future__ import annotations

from collections.abc import Sequence

from medha_jax.config import SchedulerConfig
from medha_jax.scheduler.planned import OpenPlan
from medha_jax.scheduler.request import RequestState
from medha_jax.scheduler.slice_lane import SliceLane
from medha_jax.scheduler.tick_budget import TickBudget
from medha_jax.scheduler.tick_targets import SMALLEST, TickTarget
from medha_jax.specs.tick_shapes import TickShapes

AS_EFFICIENT = 1.05  # a chunk in a tick is as efficient as in slices if a token takes at most this many times as long


class PromptChunks:
    """Chooses lengths of prompt chunks by predicted time. `lane` runs the slices."""

    def __init__(self, config: SchedulerConfig, shapes: TickShapes, lane: SliceLane) -> None:
        self._config, self._shapes, self._lane = config, shapes, lane

    def use(self, shapes: TickShapes) -> None:
        """Choose among the shapes of another grid from now on."""
        self._shapes = shapes

    def length(self, plan: OpenPlan, state: RequestState, start: int, owners: Sequence[int], target: TickTarget) -> int:
        """Tokens of a prompt's next chunk in this tick, from position `start`; 0 if none fits or slices are better.

        Only the first prompt chunk of a plan may exceed the target. `owners` hold the request up to `start`.
        """
        if not self.may_run(plan, state, start, owners):
            return 0
        if plan.prompts:
            target = target.strict
        if state.request.chunks is None:
            return self.ordinary_length(plan.budget, state, start, owners, target)
        stated = state.request.chunks[min(state.prompt_chunks, len(state.request.chunks) - 1)]
        most = min(state.to_feed - start, self._shapes.left_on_group(start))
        length = min(stated, most, self._shapes.buckets(start).prefill[-1])
        return plan.budget.stated(owners, start, length, target)

    def smallest_length(self, plan: OpenPlan, state: RequestState) -> int:
        """Tokens of the smallest chunk of an admitted prompt, the first of a plan, however long the tick becomes."""
        if self._lane.holds(state) or not self.may_run(plan, state, state.scheduled, state.owners):
            return 0
        start = state.scheduled
        most = min(state.to_feed - start, self._shapes.left_on_group(start))
        if state.request.chunks is None:
            return plan.budget.largest(state.owners, start, most, SMALLEST.strict if plan.prompts else SMALLEST)
        return self.length(plan, state, start, state.owners, SMALLEST)

    def better_sliced(
        self, budget: TickBudget, state: RequestState, start: int, owners: Sequence[int], target: TickTarget
    ) -> bool:
        """Whether a prompt at position `start` does better in slices than with a chunk in a tick of this budget."""
        return self.sliceable(state, start) > 1 and not self.ordinary_length(budget, state, start, owners, target)

    def ordinary_length(
        self, budget: TickBudget, state: RequestState, start: int, owners: Sequence[int], target: TickTarget
    ) -> int:
        """Tokens of a prompt's chunk in a tick; 0 if none fits, or if the prompt does better in slices.

        A chunk that ends the prompt within the target is best in a tick. Another one must run beside decodes, be
        about as efficient as a chunk of slices, and make no tick longer than a slice.
        """
        rest = state.to_feed - start
        most = min(rest, self._shapes.left_on_group(start))
        length = budget.largest(owners, start, most, target)
        sliceable = self.sliceable(state, start)
        if length == rest or sliceable < 2:
            return length
        if length and self._lane.busy and state.remaining <= self._lane.busy_s and not self._lane.holds(state):
            return length  # in the lane it would wait longer for the chunks that are there than it takes itself
        if target.patience > 1:
            return 0  # without decodes, a tick has nothing to share with the chunk
        length = budget.largest(owners, start, most, target.within(self._config.slice_s).strict)
        if not length:
            return 0
        efficient, cost = self._lane.length(start, sliceable)
        if budget.added(owners, start, length) > AS_EFFICIENT * cost * length or (not cost and length < efficient):
            return 0
        return length

    def sliceable(self, state: RequestState, start: int) -> int:
        """Tokens from `start` that a prompt may run as one chunk in slices: its last one goes through a tick."""
        if state.request.chunks is not None or (state.request.counts_tokens and self.joins_a_group(start)):
            return 0
        if not self._shapes.buckets(start).slices:
            return 0
        return min(state.to_feed - start - state.complete, self._shapes.left_on_group(start))

    def may_run(self, plan: OpenPlan, state: RequestState, start: int, owners: Sequence[int]) -> bool:
        """Whether a prompt may have a chunk from position `start` in this tick, if it fits."""
        if state.request.counts_tokens and state.in_flight and self.joins_a_group(start):
            return False  # a joining group can only be told the counts of tokens that have left the pipeline
        return not (state.long and plan.budget.crowded(owners))

    def joins_a_group(self, start: int) -> bool:
        """Whether a chunk from `start` is the first that lies on a second group."""
        return start == self._shapes.per_group
