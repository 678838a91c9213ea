"""What the events of an answer's prompts tell: the news of each choice, and the usage."""

from __future__ import annotations

from typing import Any

from medha_jax.protos import inference_pb2 as pb
from medha_jax.server.http.choices import News
from medha_jax.server.http.completion_request import Asked
from medha_jax.server.http.token_texts import Scored, scored_output, scored_prompt


class AnswerUsage:
    """Counts the tokens of an answer's prompts."""

    def __init__(self) -> None:
        self._begun: dict[int, int] = {}  # tokens of each prompt
        self._cached = self._output = 0

    def accepted(self, prompt: int, event: pb.GenerationAccepted) -> int:
        """Note a prompt's tokens; returns how many prompts are accepted."""
        self._begun[prompt] = event.prompt_tokens
        return len(self._begun)

    def took(self, tokens: int) -> None:
        """Count output tokens."""
        self._output += tokens

    def ended(self, event: pb.GenerationFinished) -> None:
        """Count what of a prompt was cached, in its last event."""
        if event.HasField("total"):
            self._cached += event.total.cached_tokens

    def body(self) -> dict[str, Any]:
        """`usage` in OpenAI's form."""
        prompt = sum(self._begun.values())
        return {
            "prompt_tokens": prompt,
            "completion_tokens": self._output,
            "total_tokens": prompt + self._output,
            "prompt_tokens_details": {"cached_tokens": self._cached},
        }


class Joined:
    """Makes news of events: the tokens of a prompt that have log-probabilities go before those of its outputs."""

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        self._prompts: dict[int, list[Scored]] = {k: [Scored(first, None)] for k, first in enumerate(asked.echoed)}
        self._told = set[int]()  # choices that had their prompt's tokens

    def scored(self, prompt: int, event: pb.PromptLogprobs) -> None:
        """Keep log-probabilities of a part of a prompt."""
        self._prompts[prompt] += scored_prompt(event)

    def news(self, prompt: int, delta: pb.GenerationDelta) -> News:
        """What a delta says."""
        choice, before = self.choice(prompt, delta.index), list[Scored]()
        if choice not in self._told and prompt in self._prompts:
            self._told.add(choice)
            before = self._prompts[prompt]
        scored = [*before, *scored_output(delta.logprobs)] if before or delta.logprobs else []
        return News(delta.text, list(delta.token_ids), scored)

    def choice(self, prompt: int, index: int) -> int:
        """The index of an output among the choices."""
        return prompt * self._asked.n + index
