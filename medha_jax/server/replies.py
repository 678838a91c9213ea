"""Converts the engine's events into messages."""

from __future__ import annotations

import math
from collections.abc import Sequence

from grpc import StatusCode

from medha_jax.engine import Completed, Failed, NewTokens, Prefilled, PromptScored, Queued, TokenLogprobs
from medha_jax.protos import inference_pb2 as pb
from medha_jax.server.refusal import Refusal

REASONS = {"stop": pb.FINISH_REASON_STOP, "length": pb.FINISH_REASON_LENGTH}
FAILURES = {
    "deadline": StatusCode.DEADLINE_EXCEEDED,
    "stopped": StatusCode.UNAVAILABLE,
    "grammar": StatusCode.INVALID_ARGUMENT,
}  # any other is INTERNAL


def accepted(request_id: str, event: Queued, prompt_tokens: int) -> pb.GenerateEvent:
    """The first event of a stream, for a prompt of which so many tokens have come."""
    message = pb.GenerationAccepted(
        request_id=request_id, position=event.position, seed=event.seed, prompt_tokens=prompt_tokens
    )
    if math.isfinite(event.predicted_ttft_s):
        message.predicted_ttft_ms = 1000 * event.predicted_ttft_s
    return pb.GenerateEvent(accepted=message)


def progress(event: Prefilled) -> pb.GenerateEvent:
    """How far a prompt is computed."""
    message = pb.GenerationProgress(done_tokens=event.done, prompt_tokens=event.total)
    if math.isfinite(event.left_s):
        message.predicted_left_ms = 1000 * event.left_s
    return pb.GenerateEvent(progress=message)


def prompt_logprobs(event: PromptScored) -> pb.GenerateEvent:
    """Log-probabilities of a part of the prompt."""
    scores = event.scores
    return pb.GenerateEvent(
        prompt_logprobs=pb.PromptLogprobs(
            start=scores.start,
            token_ids=scores.ids.tolist(),
            logprobs=scores.logprobs.tolist(),
            top=scores.top_ids.shape[1],
            top_token_ids=scores.top_ids.ravel().tolist(),
            top_logprobs=scores.top_logprobs.ravel().tolist(),
        )
    )


def delta(events: Sequence[NewTokens], index: int = 0) -> pb.GenerateEvent:
    """Consecutive deltas of one output, joined into one."""
    if len(events) == 1 and not events[0].logprobs:
        only = events[0]
        return pb.GenerateEvent(delta=pb.GenerationDelta(token_ids=only.token_ids, text=only.text, index=index))
    return pb.GenerateEvent(
        delta=pb.GenerationDelta(
            token_ids=[token for event in events for token in event.token_ids],
            text="".join(event.text for event in events),
            logprobs=[_logprob(entry) for event in events for entry in event.logprobs],
            index=index,
        )
    )


def finished(event: Completed, index: int = 0) -> pb.GenerateEvent:
    """The last event of an output."""
    completion, total = event.completion, event.request
    timings = completion.timings
    message = pb.GenerationFinished(
        reason=REASONS[completion.finish_reason],
        usage=pb.TokenUsage(
            prompt_tokens=completion.prompt_tokens,
            cached_tokens=completion.cached_tokens,
            output_tokens=len(completion.token_ids),
        ),
        timings=pb.GenerationTimings(
            queue_ms=1000 * timings.queue_s,
            prefill_ms=1000 * timings.prefill_s,
            ttft_ms=1000 * timings.ttft_s,
            decode_ms=1000 * timings.decode_s,
            e2e_ms=1000 * timings.e2e_s,
            chunk_tokens=completion.chunks,
            preemptions=completion.preemptions,
            deadline_met=completion.deadline_met,
        ),
        index=index,
    )
    if total is not None:
        message.total.prompt_tokens, message.total.cached_tokens = total.prompt_tokens, total.cached_tokens
        message.total.output_tokens = total.output_tokens
    if isinstance(completion.matched, str):
        message.stop = completion.matched
    elif completion.matched is not None:
        message.stop_token_id = completion.matched
    return pb.GenerateEvent(finished=message)


def failed(event: Failed) -> Refusal:
    """The status of a stream that ended before its output did."""
    return Refusal(FAILURES.get(event.reason, StatusCode.INTERNAL), event.message)


def _logprob(entry: TokenLogprobs) -> pb.TokenLogprob:
    top = [pb.TopLogprob(token_id=token, logprob=logprob) for token, logprob in entry.top]
    return pb.TokenLogprob(token_id=entry.token_id, logprob=entry.logprob, top=top)
