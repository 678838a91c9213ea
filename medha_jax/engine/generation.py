"""The engine's record of a request, which turns results into events."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from medha_jax.engine.events import (
    Completed,
    Completion,
    Course,
    EngineEvent,
    FirstToken,
    GenerationRequest,
    NewTokens,
    PhaseTimings,
    Prefilled,
    TokenLogprobs,
)
from medha_jax.plan import Chunk, TokenResult
from medha_jax.scheduler.request import RequestState
from medha_jax.token_ids import GrowingIds


class Output(Protocol):
    """Collects a request's tokens; `RequestOutput` turns them into text."""

    @property
    def token_ids(self) -> Sequence[int]:
        """Every token so far."""

    @property
    def finished(self) -> bool:
        """Whether the generation is over."""

    def push(self, token_id: int, logprobs: TokenLogprobs | None = None) -> NewTokens | None:
        """Take the next token; returns what to report, if anything."""

    def completion(self, course: Course) -> Completion:
        """The finished generation."""


OutputFactory = Callable[[GenerationRequest, int], Output]
"""Makes the output of a request, from the request and its limit of output tokens."""


@dataclass(slots=True)
class Generation:
    """A request, its output and its times in seconds. Owned by the engine.

    `output` is None until the prompt is complete. `held` are the prompt tokens so far if the scheduler gets none before
    all are there; otherwise None. `reported` prompt tokens were reported as computed.
    """

    request: GenerationRequest
    arrival: float
    output: Output | None = None
    held: GrowingIds | None = None
    first_chunk: float = math.nan
    first_token: float = math.nan
    cached: int = 0
    reported: int = 0

    def computed(self, state: RequestState, chunk: Chunk, result: TokenResult, now: float) -> Iterator[EngineEvent]:
        """Events of a chunk that has left the pipeline; the last is `Completed` if the generation is over."""
        prompt = len(state.request.prompt)
        if chunk.start < prompt:
            done = min(chunk.end, prompt)
            if done > self.reported:  # a preempted prompt is computed again, not reported again
                self.reported = done
                yield Prefilled(done, prompt, state.remaining)
        output = self.output
        if not chunk.last or output is None:
            return
        first = None
        if math.isnan(self.first_token):
            self.first_token = now
            first = FirstToken(self.first_chunk - self.arrival, now - self.first_chunk)
        logprobs, asked = None, self.request.sampling.logprobs
        if asked is not None:
            logprobs = TokenLogprobs(result.token, result.logprob, result.top[:asked])
        delta = output.push(result.token, logprobs)
        if delta is not None:
            yield delta if first is None else replace(delta, first=first)
        if output.finished:
            yield Completed(output.completion(self._course(state, len(output.token_ids), now)))

    def _course(self, state: RequestState, tokens: int, now: float) -> Course:
        deadline = self.request.deadline_s
        timings = PhaseTimings(
            queue_s=self.first_chunk - self.arrival,
            prefill_s=self.first_token - self.first_chunk,
            ttft_s=self.first_token - self.arrival,
            decode_s=now - self.first_token,
            e2e_s=now - self.arrival,
            tpot_s=(now - self.first_token) / (tokens - 1) if tokens > 1 else None,
        )
        return Course(
            timings=timings,
            chunks=tuple(state.chunks),
            preemptions=state.preemptions,
            cached_tokens=self.cached,
            deadline_met=self.first_token <= state.due and (deadline is None or now <= deadline),
        )
