"""Programs that write the masks of some slots, compiled at start."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np

from medha_jax.runtime.state import SlotState, write_masks

FEW = 8  # slots of the smaller program


class SlotMasks:
    """Writes masks by one of two programs, for few slots and for all. Immutable.

    Args:
        state: of the slots, with a leading axis of groups.
        shardings: its placement.
    """

    def __init__(self, state: SlotState, shardings: SlotState) -> None:
        _, self._slots, self._words = state.masks.shape
        write = jax.jit(write_masks, donate_argnums=0, out_shardings=shardings)
        sizes = sorted({min(FEW, self._slots), self._slots})
        self._programs = {size: write.lower(state, *self._padded((), None, size)).compile() for size in sizes}

    def write(self, state: SlotState, slots: Sequence[int], masks: np.ndarray) -> SlotState:
        """The state with `masks` uint32 `[slots, words]`; the given state is donated."""
        size = next(size for size in self._programs if size >= len(slots))
        written: SlotState = self._programs[size](state, *self._padded(slots, masks, size))
        return written

    def _padded(self, slots: Sequence[int], masks: np.ndarray | None, size: int) -> tuple[np.ndarray, np.ndarray]:
        numbers, rows = np.full(size, self._slots, np.int32), np.zeros((size, self._words), np.uint32)
        if masks is not None:
            numbers[: len(slots)], rows[: len(slots)] = slots, masks
        return numbers, rows
