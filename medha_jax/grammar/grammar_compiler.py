"""Compiles the grammars of requests, within a time, and keeps the latest ones."""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING

from medha_jax.grammar.matcher import Grammar
from medha_jax.grammar.spec import CostlyGrammarError, GrammarError, GrammarSpec
from medha_jax.grammar.trial_process import COMPILE_SECONDS, TrialProcess

if TYPE_CHECKING:
    from llguidance import LLTokenizer

KEPT = 128  # grammars, and those that were refused
RETRY_SECONDS = 60.0  # after which one that took too much time or memory is tried again


class GrammarCompiler:
    """Compiles grammars for one model. Any thread may use it. Owns a process for it, from the first grammar on.

    Args:
        tokenizer: makes the text of `tokenizer.json`, once.
        vocab: ids of the model's logits.
        eos_ids: tokens that end a text; the tokenizer has all of them.
        seconds: that one grammar may take.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        tokenizer: Callable[[], str],
        vocab: int,
        eos_ids: tuple[int, ...],
        seconds: float = COMPILE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._text, self._vocab, self._eos_ids, self._seconds = tokenizer, vocab, eos_ids, seconds
        self._clock = clock
        self._opening, self._lock = threading.Lock(), threading.Lock()
        self._opened: tuple[LLTokenizer, TrialProcess] | None = None
        self._kept: OrderedDict[GrammarSpec, tuple[Grammar | str, float]] = OrderedDict()  # or why not; until when

    def compile(self, spec: GrammarSpec) -> Grammar:
        """The compiled grammar. A known one comes at once; the first one of all waits for the tokenizer.

        Raises:
            GrammarError: it cannot be compiled, or not in time.
        """
        known = self.known(spec)
        if known is not None:
            return known
        until = math.inf
        found: Grammar | str
        try:
            found = self._compiled(spec)
        except GrammarError as error:
            found = str(error)  # an error that is kept would keep its traceback, and so the request that met it
            if isinstance(error, CostlyGrammarError):
                until = self._clock() + RETRY_SECONDS
        with self._lock:
            self._kept[spec] = found, until
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        if isinstance(found, str):
            raise GrammarError(found)
        return found

    def known(self, spec: GrammarSpec) -> Grammar | None:
        """The grammar if it was compiled lately, at once.

        Raises:
            GrammarError: it was refused lately.
        """
        with self._lock:
            kept, until = self._kept.get(spec, (None, math.inf))
            if self._clock() >= until:
                return None
            if kept is not None:
                self._kept.move_to_end(spec)
        if isinstance(kept, str):
            raise GrammarError(kept)
        return kept

    def close(self) -> None:
        """End the process that compiles."""
        with self._opening:
            if self._opened is not None:
                self._opened[1].close()
                self._opened = None

    def _compiled(self, spec: GrammarSpec) -> Grammar:
        from medha_jax.grammar.guidance import compiled, reason_of  # half of all servers never need it

        tokenizer, trial = self._open()
        trial.check(spec)
        return Grammar(self._vocab, compiled(tokenizer, spec), reason_of)

    def _open(self) -> tuple[LLTokenizer, TrialProcess]:
        from medha_jax.grammar.guidance import TokenFacts

        with self._opening:
            if self._opened is None:
                facts = TokenFacts(self._text(), self._vocab, self._eos_ids)
                self._opened = facts.open(), TrialProcess(facts, self._seconds)
            return self._opened
