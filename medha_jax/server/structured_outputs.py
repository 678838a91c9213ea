"""Structured output: compiles the grammars that requests state, beside the event loop."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

from medha_jax.grammar.grammar_compiler import GrammarCompiler
from medha_jax.grammar.matcher import Grammar
from medha_jax.grammar.spec import GrammarError, GrammarSpec
from medha_jax.protos import inference_pb2 as pb
from medha_jax.server.refusal import invalid, too_busy
from medha_jax.server.request_parser import ServedModel

MOST_WAITING = 32  # grammars that wait to be compiled


class StructuredOutputs:
    """Compiles grammars one after the other. Belongs to the event loop; owns the compiler and its thread."""

    def __init__(self, model: ServedModel) -> None:
        tokenizer = model.tokenizer
        ends = tuple(token for token in model.eos_ids if tokenizer.has_text(token, skip_special=False))
        self._compiler = GrammarCompiler(tokenizer.to_json, model.vocab, ends)
        self._thread = ThreadPoolExecutor(1, "grammars")
        self._waiting = 0

    async def grammar(self, stated: pb.StructuredOutput) -> Grammar:
        """The grammar of a request; a known one comes at once.

        Raises:
            Refusal: it cannot be compiled, or too many others wait.
        """
        kind = stated.WhichOneof("kind")
        if kind is None or (kind == "json_object" and not stated.json_object):
            raise invalid("structured states nothing; give json_schema, json_object as true, regex or grammar")
        try:
            spec = GrammarSpec(kind, "" if kind == "json_object" else getattr(stated, kind))
            known = self._compiler.known(spec)
            return known if known is not None else await self._compiled(spec)
        except GrammarError as error:
            raise invalid(f"structured: {error}") from None

    async def _compiled(self, spec: GrammarSpec) -> Grammar:
        if self._waiting >= MOST_WAITING:
            raise too_busy(f"{self._waiting} grammars wait to be compiled; allowed are {MOST_WAITING}")
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._compiler.compile, spec)
        finally:
            self._waiting -= 1

    def close(self) -> None:
        """Compile nothing more; what waits is refused."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._compiler.close()
