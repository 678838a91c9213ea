"""The output of a simulated request: tokens without text."""

from __future__ import annotations

from medha_jax.engine import Completion, Course, GenerationRequest, NewTokens, TokenLogprobs


class CountedOutput:
    """Counts tokens up to the request's limit, or the `limit` tokens left in the context. Owns the count.

    It reports the first token only.
    """

    def __init__(self, request: GenerationRequest, limit: int) -> None:
        self._prompt = len(request.prompt_ids)
        self._limit = min(request.sampling.max_tokens or limit, limit)
        self._count = 0
        self.matcher = None

    @property
    def token_ids(self) -> range:
        """One id for each token; the values mean nothing."""
        return range(self._count)

    @property
    def finished(self) -> bool:
        """Whether the limit is reached."""
        return self._count >= self._limit

    def push(self, token_id: int, logprobs: TokenLogprobs | None = None) -> NewTokens | None:
        """Count a token."""
        self._count += 1
        return NewTokens((token_id,), "") if self._count == 1 else None

    def completion(self, course: Course) -> Completion:
        """The finished generation."""
        return Completion(
            token_ids=(),
            text="",
            finish_reason="length",
            matched=None,
            prompt_tokens=self._prompt,
            logprobs=(),
            **vars(course),
        )
