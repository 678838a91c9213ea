"""A server's answers as frozen data. Times are in seconds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from medha_jax.protos import inference_pb2 as pb

_REASONS: dict[int, Literal["stop", "length"]] = {pb.FINISH_REASON_STOP: "stop", pb.FINISH_REASON_LENGTH: "length"}


@dataclass(frozen=True)
class Accepted:
    """The request is queued behind `position` others. `predicted_ttft_s` is None if unknown.

    `seed` is stated or drawn: the same request with it has the same output. None from a server that does not tell.
    """

    request_id: str
    position: int
    predicted_ttft_s: float | None
    seed: int | None = None


@dataclass(frozen=True)
class PromptProgress:
    """How far the prompt is computed. `predicted_left_s` is of the rest by itself; None if unknown."""

    done_tokens: int
    prompt_tokens: int
    predicted_left_s: float | None


@dataclass(frozen=True)
class TokenLogprob:
    """Natural-log probability of a token; `top` holds (id, logprob) of the likeliest tokens, best first."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class PromptLogprobs:
    """Of up to 1024 tokens of the prompt that follow each other; the first of `tokens` is at position `start`.

    The first token of a prompt has no log-probability, so the first event begins at position 1.
    """

    start: int
    tokens: tuple[TokenLogprob, ...]


@dataclass(frozen=True)
class Delta:
    """New tokens of output `index`, and the text they complete, which may be empty.

    Without tokens it is a piece of the prompt, with `echo`.
    """

    token_ids: tuple[int, ...]
    text: str
    logprobs: tuple[TokenLogprob, ...] = ()
    index: int = 0


@dataclass(frozen=True)
class Usage:
    """Tokens of an output or of a request. `cached_tokens` of the prompt came from the prefix cache."""

    prompt_tokens: int
    cached_tokens: int
    output_tokens: int


@dataclass(frozen=True)
class Timings:
    """Times measured in the server.

    Args:
        queue_s: arrival to the first chunk.
        prefill_s: first chunk to the first token.
        ttft_s: arrival to the first token.
        decode_s: first to last token.
        e2e_s: arrival to the last token.
        chunk_tokens: sizes of the computed prefill chunks.
        preemptions: how often the request lost its pages.
        deadline_met: whether the first token came in time; None without a deadline.
    """

    queue_s: float
    prefill_s: float
    ttft_s: float
    decode_s: float
    e2e_s: float
    chunk_tokens: tuple[int, ...]
    preemptions: int
    deadline_met: bool | None


@dataclass(frozen=True)
class Finished:
    """The last event of output `index`. `matched` is the stop text or token id; None if the reason is "length".

    `total` comes with the last event of a request: its prompt once, and the tokens of all outputs. None before, and
    from a server that does not tell.
    """

    reason: Literal["stop", "length"]
    matched: str | int | None
    usage: Usage
    timings: Timings
    index: int = 0
    total: Usage | None = None


Event = Accepted | PromptProgress | PromptLogprobs | Delta | Finished


@dataclass(frozen=True)
class ModelInfo:
    """A server's model and its limits.

    Args:
        name: of the model.
        vocab: token ids are below it.
        context_tokens: most tokens of prompt and output together.
        max_output_tokens: most output tokens of a request.
        eos_token_ids: tokens that end a generation.
        max_message_bytes: largest message that the server takes; longer prompts go in parts.
        version: of the server.
    """

    name: str
    vocab: int
    context_tokens: int
    max_output_tokens: int
    eos_token_ids: tuple[int, ...]
    max_message_bytes: int
    version: str


@dataclass(frozen=True)
class PagePool:
    """KV pages of one group."""

    total_pages: int
    free_pages: int


@dataclass(frozen=True)
class LoadInfo:
    """Load of a server.

    Args:
        running: requests that hold pages.
        waiting: requests that do not hold pages yet.
        waiting_tokens: prompt tokens of the waiting requests.
        slots: most outputs that run at once; a request has `n` of them.
        pools: one for each KV group.
        accepting: False while the server starts or drains, and after its device failed.
        used_slots: outputs of the running requests that have a slot.
    """

    running: int
    waiting: int
    waiting_tokens: int
    slots: int
    pools: tuple[PagePool, ...]
    accepting: bool
    used_slots: int = 0


def event_from(message: pb.GenerateEvent) -> Event:
    """Convert a message.

    Raises:
        ValueError: this client does not know the kind of event.
    """
    match message.WhichOneof("event"):
        case "delta":
            delta = message.delta
            logprobs = tuple(_logprob(entry) for entry in delta.logprobs)
            return Delta(tuple(delta.token_ids), delta.text, logprobs, delta.index)
        case "accepted":
            accepted = message.accepted
            ttft = accepted.predicted_ttft_ms / 1000 if accepted.HasField("predicted_ttft_ms") else None
            seed = accepted.seed if accepted.HasField("seed") else None
            return Accepted(accepted.request_id, accepted.position, ttft, seed)
        case "progress":
            progress = message.progress
            left = progress.predicted_left_ms / 1000 if progress.HasField("predicted_left_ms") else None
            return PromptProgress(progress.done_tokens, progress.prompt_tokens, left)
        case "prompt_logprobs":
            return _prompt_logprobs(message.prompt_logprobs)
        case "finished":
            return _finished(message.finished)
    raise ValueError("the server sent an event that this client does not know; a newer client may")


def model_from(message: pb.ModelInfo) -> ModelInfo:
    """Convert a message."""
    return ModelInfo(
        message.name,
        message.vocab,
        message.context_tokens,
        message.max_output_tokens,
        tuple(message.eos_token_ids),
        message.max_message_bytes,
        message.version,
    )


def load_from(message: pb.LoadInfo) -> LoadInfo:
    """Convert a message."""
    pools = tuple(PagePool(pool.total_pages, pool.free_pages) for pool in message.pools)
    return LoadInfo(
        message.running,
        message.waiting,
        message.waiting_tokens,
        message.slots,
        pools,
        message.accepting,
        message.used_slots,
    )


def _finished(message: pb.GenerationFinished) -> Finished:
    kind = message.WhichOneof("matched")
    timings = message.timings
    return Finished(
        reason=_REASONS[message.reason],
        matched=None if kind is None else getattr(message, kind),
        usage=_usage(message.usage),
        timings=Timings(
            queue_s=timings.queue_ms / 1000,
            prefill_s=timings.prefill_ms / 1000,
            ttft_s=timings.ttft_ms / 1000,
            decode_s=timings.decode_ms / 1000,
            e2e_s=timings.e2e_ms / 1000,
            chunk_tokens=tuple(timings.chunk_tokens),
            preemptions=timings.preemptions,
            deadline_met=timings.deadline_met if timings.HasField("deadline_met") else None,
        ),
        index=message.index,
        total=_usage(message.total) if message.HasField("total") else None,
    )


def _prompt_logprobs(message: pb.PromptLogprobs) -> PromptLogprobs:
    pairs, most = list(zip(message.top_token_ids, message.top_logprobs, strict=True)), message.top
    entries = (
        TokenLogprob(token, logprob, tuple(pairs[at * most : (at + 1) * most]))
        for at, (token, logprob) in enumerate(zip(message.token_ids, message.logprobs, strict=True))
    )
    return PromptLogprobs(message.start, tuple(entries))


def _usage(message: pb.TokenUsage) -> Usage:
    return Usage(message.prompt_tokens, message.cached_tokens, message.output_tokens)


def _logprob(entry: pb.TokenLogprob) -> TokenLogprob:
    return TokenLogprob(entry.token_id, entry.logprob, tuple((top.token_id, top.logprob) for top in entry.top))
