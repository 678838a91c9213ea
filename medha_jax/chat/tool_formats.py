"""How models write calls of functions and their reasoning, by what their chat templates say."""

from __future__ import annotations

import json
import secrets
import string
from collections.abc import Container
from dataclasses import dataclass
from typing import Literal

from medha_jax.chat.chat_template import ChatTemplate

_ALPHANUMERIC = string.ascii_letters + string.digits


@dataclass(frozen=True)
class ToolFormat:
    """How a family of models writes a call. The names are those that vLLM and SGLang give their parsers.

    - `hermes` (Qwen2.5, Qwen3): `<tool_call>{"name": ..., "arguments": ...}</tool_call>`, once for each call.
    - `llama3_json` (Llama 3): `{"name": ..., "parameters": ...}` at the beginning of the output, perhaps behind
      `<|python_tag|>`; more calls follow behind semicolons.
    - `mistral`: `[TOOL_CALLS]` and a JSON list of calls, or `[TOOL_CALLS]name[ARGS]{...}` for each call.

    Args:
        before: what stands before a function's name.
        between: what stands between its name and its arguments.
        markers: texts that begin or part calls, and may be special tokens. A request that may be answered by calls
            needs them in its text: `skip_special_tokens` false if any of them is a special token of the tokenizer
            (`needs_special_tokens`). The token that ends the output is no part of the text all the same, unless
            `include_stop` asks for it.
    """

    name: Literal["hermes", "llama3_json", "mistral"]
    before: str
    between: str
    markers: tuple[str, ...]

    @classmethod
    def of(cls, template: ChatTemplate | str | None, family: str | None = None) -> ToolFormat | None:
        """The format that a chat template writes earlier calls in; None if it is unknown or there are no calls.

        Args:
            template: of the model, or its text.
            family: `model_type` of its `config.json`. Templates of Llama are known by their text too, so None is fine.
        """
        source = template.source if isinstance(template, ChatTemplate) else template or ""
        if "[TOOL_CALLS]" in source:
            markers = ("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]")
            if "[ARGS]" in source:
                return cls("mistral", "[TOOL_CALLS]", "[ARGS]", markers)
            gap = " " if "[TOOL_CALLS] [" in source else ""
            return cls("mistral", f'[TOOL_CALLS]{gap}[{{"name": "', '", "arguments": ', markers)
        if "<tool_call>" in source:
            if "<function=" in source or "<arg_key>" in source:  # Qwen3-Coder's and GLM's XML
                return None
            return cls("hermes", '<tool_call>\n{"name": "', '", "arguments": ', ("<tool_call>", "</tool_call>"))
        llama = "<|start_header_id|>" in source if family is None else family == "llama"
        if llama and ("<|python_tag|>" in source or "ipython" in source):
            return cls("llama3_json", '{"name": "', '", "parameters": ', ("<|python_tag|>",))
        return None

    def needs_special_tokens(self, special_tokens: Container[str]) -> bool:
        """Whether a marker is one of the tokenizer's special tokens, of which the texts are given."""
        return any(marker in special_tokens for marker in self.markers)

    def opening(self, function: str | None = None) -> str:
        """What begins a call; put behind a prompt, it makes the model write one.

        A parser is fed this text before the output. With the name of a `function`, only its arguments are to come.
        """
        if function is None:
            return self.before
        named = function if self.before.endswith("]") else json.dumps(function, ensure_ascii=False)[1:-1]
        return self.before + named + self.between

    def new_id(self) -> str:
        """An id for a call: as OpenAI makes them, or nine letters and digits, which Mistral's templates ask for."""
        if self.name == "mistral":
            return "".join(secrets.choice(_ALPHANUMERIC) for _ in range(9))
        return f"call_{secrets.token_hex(12)}"


@dataclass(frozen=True)
class ReasoningFormat:
    """The marks around a model's reasoning, at the beginning of its output."""

    opens: str
    closes: str

    @classmethod
    def of(cls, template: ChatTemplate | str | None) -> ReasoningFormat | None:
        """The marks that a chat template knows: `<think>` (Qwen3, DeepSeek's distillations) or Mistral's `[THINK]`."""
        source = template.source if isinstance(template, ChatTemplate) else template or ""
        marks = (("<think>", "</think>"), ("[THINK]", "[/THINK]"))
        return next((cls(opens, closes) for opens, closes in marks if closes in source), None)

    def begins_within(self, prompt: str) -> bool:
        """Whether a prompt ends with the opening mark, so that the output begins with reasoning."""
        return prompt.rstrip().endswith(self.opens)
