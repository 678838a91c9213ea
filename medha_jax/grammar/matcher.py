"""A compiled grammar, and where an output stands in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from medha_jax.grammar.spec import GrammarError

if TYPE_CHECKING:
    from llguidance import LLMatcher


@dataclass(frozen=True, eq=False)
class Grammar:
    """A grammar that was compiled for a model with `vocab` ids. Immutable; requests may share it.

    `start` stands at its beginning and is only copied. `reason_of` says why a matcher is in error.
    """

    vocab: int
    start: LLMatcher
    reason_of: Callable[[LLMatcher], str]

    def matcher(self) -> Matcher:
        """A matcher for one output, in some microseconds."""
        return Matcher(self)


class Matcher:
    """Where one output stands in its grammar. Mutable; belongs to that output, in the engine's thread."""

    def __init__(self, grammar: Grammar) -> None:
        self._grammar, self._inner = grammar, grammar.start.deep_copy()

    @property
    def ended(self) -> bool:
        """Whether the text is complete and nothing can follow it."""
        return bool(self._inner.is_stopped()) and not self._inner.is_error()

    def accept(self, token: int) -> None:
        """Take the token that was sampled.

        Raises:
            GrammarError: the grammar does not allow it here, or a limit is reached.
        """
        if not self._inner.consume_token(token):
            self._fail()

    def fill(self, mask: np.ndarray) -> None:
        """Write the allowed tokens into `mask`, as `plan.mask_words` says.

        Raises:
            GrammarError: no token can follow, or a limit is reached.
        """
        assert mask.dtype == np.uint32 and mask.flags.c_contiguous
        self._inner.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
        if self._inner.is_error():
            self._fail()

    def _fail(self) -> None:
        raise GrammarError(f"the structured output cannot go on: {self._grammar.reason_of(self._inner)}")
