"""The engine's record of a request, which turns results into events."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from medha_jax.engine.events import (
    Completed,
    Completion,
    Course,
    EngineEvent,
    FinishReason,
    FirstToken,
    GenerationRequest,
    NewTokens,
    PhaseTimings,
    Prefilled,
    PromptScored,
    RequestTotals,
    TokenLogprobs,
)
from medha_jax.grammar.matcher import Matcher
from medha_jax.plan import Chunk, TokenResult
from medha_jax.scheduler.request import RequestState
from medha_jax.token_ids import GrowingIds

MOST_SCORED = 1024  # prompt tokens in one event


class Output(Protocol):
    """Collects a request's tokens; `RequestOutput` turns them into text."""

    @property
    def token_ids(self) -> Sequence[int]:
        """Every token so far."""

    @property
    def finished(self) -> bool:
        """Whether the generation is over."""

    @property
    def matcher(self) -> Matcher | None:
        """Where it stands in its request's grammar, if there is one."""

    def push(self, token_id: int, logprobs: TokenLogprobs | None = None) -> NewTokens | None:
        """Take the next token; returns what to report, if anything."""

    def completion(self, course: Course) -> Completion:
        """The finished generation."""


OutputFactory = Callable[[GenerationRequest, int], Output]
"""Makes the output of a request, from the request and its limit of output tokens."""


class OpenOutputs:
    """Counts the outputs of one request that go on, and adds up the others. Owned by the request's generations."""

    def __init__(self, outputs: int) -> None:
        self._open = outputs
        self._tokens = self._cached = 0
        self._stopped = self._met = True

    def end(self, index: int, completion: Completion) -> RequestTotals | None:
        """Count a finished output; returns the request's totals if it is the last one."""
        self._open -= 1
        self._tokens += len(completion.token_ids)
        self._cached += completion.cached_tokens if not index else 0
        self._stopped &= completion.finish_reason == "stop"
        self._met &= completion.deadline_met
        if self._open:
            return None
        reason: FinishReason = "stop" if self._stopped else "length"
        return RequestTotals(completion.prompt_tokens, self._cached, self._tokens, reason, self._met)


@dataclass(slots=True)
class Generation:
    """A request with one output, that output and its times in seconds. Owned by the engine.

    It is output `index` of those that `outputs` counts. Only for the first one events tell of prompt and first token.

    `output` is None until the prompt is complete. `held` are the prompt tokens so far if the scheduler gets none before
    all are there; otherwise None. `reported` prompt tokens were reported as computed; those before `scored` have their
    log-probabilities, but for the first one, which has none.
    """

    request: GenerationRequest
    arrival: float
    output: Output | None = None
    held: GrowingIds | None = None
    first_chunk: float = math.nan
    first_token: float = math.nan
    cached: int = 0
    reported: int = 0
    scored: int = 1
    index: int = 0
    outputs: OpenOutputs = field(default_factory=lambda: OpenOutputs(1))

    def computed(self, state: RequestState, chunk: Chunk, result: TokenResult, now: float) -> Iterator[EngineEvent]:
        """Events of a chunk that has left the pipeline; the last is `Completed` if the generation is over."""
        prompt = len(state.request.prompt)
        done = min(chunk.end, prompt)
        if chunk.start < prompt and done > self.reported:  # a preempted prompt is computed again, not reported again
            self.reported = done
            if not self.index:
                yield Prefilled(done, prompt, state.remaining)
        if result.scores is not None:
            new = result.scores.part(self.scored, chunk.end + 1)
            for start in range(new.start, new.start + len(new.ids), MOST_SCORED):
                yield PromptScored(new.part(start, start + MOST_SCORED))
            self.scored = max(self.scored, new.start + len(new.ids))
        output = self.output
        if not chunk.last or output is None:
            return
        first = None
        if math.isnan(self.first_token):
            self.first_token = now
            if not self.index:
                waited, computed = self.first_chunk - self.arrival, now - self.first_chunk
                first = FirstToken(waited, computed, self.request.priority)
        logprobs, asked = None, self.request.sampling.logprobs
        if asked is not None:
            logprobs = TokenLogprobs(result.token, result.logprob, result.top[:asked])
        delta = output.push(result.token, logprobs)
        if delta is not None:
            yield delta if first is None else replace(delta, first=first)
        if output.finished:
            completion = output.completion(self._course(state, len(output.token_ids), now))
            yield Completed(completion, self.outputs.end(self.index, completion))

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
            deadline_met=(self.index > 0 or self.first_token <= state.due) and (deadline is None or now <= deadline),
        )
