"""The chunks that rest on simulated devices between slices, and what a runtime asks of slices."""

from __future__ import annotations

from collections.abc import Sequence

from medha_jax.plan import Chunk, Slice, StepPlan

NO_PLAN = StepPlan(())


class SimulationError(RuntimeError):
    """The engine asked for something that no runtime can do."""


class HeldChunks:
    """Owns the chunks of each stage that some layers, but not all stages, have passed; and the layers of the round.

    `slots` are those of these chunks.

    Args:
        stages: pipeline stages.
        lengths: numbers of layers that a slice may have, increasing; the last one is all layers of a stage.
    """

    def __init__(self, stages: int, lengths: Sequence[int]) -> None:
        self._stages, self._lengths = stages, lengths
        self.renew()

    def renew(self) -> None:
        """Start again with nothing held."""
        self._passed = 0
        self._hold((NO_PLAN,) * self._stages)

    def forget(self, slot: int) -> None:
        """Drop what a slot holds, because another request has it now."""
        if slot in self.slots:
            self._hold([StepPlan(tuple(one for one in plan.chunks if one.slot != slot)) for plan in self._held])

    def _hold(self, stages: Sequence[StepPlan]) -> None:
        self._held = tuple(stages)
        self.slots = frozenset(chunk.slot for plan in stages for chunk in plan.chunks)

    def entering(self, work: Slice) -> tuple[Chunk, ...]:
        """The chunks that begin with a slice.

        Raises:
            SimulationError: its layers or chunks do not follow the slice before it.
        """
        if len(work.stages) != self._stages:
            raise SimulationError(f"a slice has plans of {len(work.stages)} stages; there are {self._stages}")
        if not any(plan.chunks for plan in work.stages):
            raise SimulationError("a slice without chunks came")
        if work.past - work.first not in self._lengths or work.past > self._lengths[-1]:
            raise SimulationError(
                f"a slice of layers [{work.first}, {work.past}) came; a stage has {self._lengths[-1]} layers, and "
                f"slices have {', '.join(map(str, self._lengths))}"
            )
        if work.first not in (0, self._passed):
            raise SimulationError(f"a slice begins at layer {work.first}; {self._passed} layers of the round are done")
        for number, plan in enumerate(work.stages):
            _check(plan)
            if number or work.first:
                # a round that begins anew holds nothing of the round that was broken off
                kept = self._held[number].chunks if work.first == self._passed else ()
                for chunk in plan.chunks:
                    if chunk not in kept:
                        raise SimulationError(
                            f"stage {number} does not hold the chunk of slot {chunk.slot} that starts at {chunk.start}"
                        )
        return () if work.first else work.stages[0].chunks

    def dropped(self, work: Slice) -> tuple[Chunk, ...]:
        """The held chunks that a slice has no more.

        Raises:
            SimulationError: it goes on with a later chunk of the same request.
        """
        left = [chunk for plan in work.stages[0 if work.first else 1 :] for chunk in plan.chunks]
        found = tuple(chunk for plan in self._held for chunk in plan.chunks if chunk not in left)
        for gone in found:
            if any(chunk.slot == gone.slot and chunk.start > gone.start for chunk in left):
                raise SimulationError(f"slot {gone.slot} lost its chunk at {gone.start}, but a later one goes on")
        return found

    def advance(self, work: Slice) -> None:
        """Hold the chunks of a slice; after the last layer every stage has handed them on."""
        ended = work.past == self._lengths[-1]
        self._hold((NO_PLAN, *work.stages[:-1]) if ended else work.stages)
        self._passed = 0 if ended else work.past


def _check(plan: StepPlan) -> None:
    """Check what a stage's chunks must be in every slice."""
    slots = [chunk.slot for chunk in plan.chunks]
    places = [chunk.groups[0] if not chunk.shared else None for chunk in plan.chunks]
    if len(set(slots)) < len(slots):
        raise SimulationError(f"a slice has two chunks of one request in a stage: slots {slots}")
    if len(set(places)) < len(places):
        raise SimulationError(f"a stage of a slice has more than one chunk of a group, or shared chunk: slots {slots}")
    for chunk in plan.chunks:
        if chunk.length < 2 or chunk.last:
            raise SimulationError(f"the chunk of slot {chunk.slot} at {chunk.start} is one token, or samples one")
