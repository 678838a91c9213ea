"""Plans and results as protobuf messages, and the limit of their size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np

from medha_jax.config import RuntimeConfig
from medha_jax.plan import (
    MAX_ALLOWED,
    MAX_BIASED,
    MAX_LOGPROBS,
    MAX_STOP_STRING_LENGTH,
    MAX_STOP_STRINGS,
    Admission,
    Chunk,
    PageCopy,
    SamplingParams,
    Slice,
    StepPlan,
    TokenResult,
    mask_words,
)
from medha_jax.protos import plans_pb2 as pb
from medha_jax.runtime.state import kept_end_tokens
from medha_jax.token_ids import IdArray, array_of, counted

LARGEST = 2**63 - 1
VARINT = 5  # bytes of a non-negative 32-bit number, at most
COPIES = 1024  # most copies of pages in a message


def encode_sampling(sampling: SamplingParams) -> pb.Sampling:
    """A request's settings as a message. Numbers beyond 64 bits mean "all" and are clipped."""
    message = pb.Sampling()
    for field in fields(SamplingParams):
        value = getattr(sampling, field.name)
        if field.name == "logit_bias":
            message.logit_bias.update(value)
        elif isinstance(value, tuple):
            getattr(message, field.name).extend(value)
        elif value is not None:
            setattr(message, field.name, min(value, LARGEST))
    return message


def decode_sampling(message: pb.Sampling) -> SamplingParams:
    """The settings in a message. Raises InvalidRequestError for a value out of range."""
    values: dict[str, Any] = {}
    for field in fields(SamplingParams):
        value, described = getattr(message, field.name), message.DESCRIPTOR.fields_by_name[field.name]
        if field.name == "logit_bias":
            values[field.name] = tuple(sorted(value.items()))
        elif described.is_repeated:
            values[field.name] = tuple(value) or field.default
        elif not described.has_presence or message.HasField(field.name):
            values[field.name] = value
    return SamplingParams(**values)


def encode_admission(admission: Admission) -> pb.Admit:
    """An admission as a message. It carries token counts only, so the vocabulary bounds its size."""
    generated, count = counted(admission.generated)
    return pb.Admit(
        slot=admission.slot,
        sampling=encode_sampling(admission.sampling),
        prompt_tokens=admission.prompt,
        end_tokens=kept_end_tokens(admission.end_tokens),
        prompted=counted(admission.prompted)[0].tolist(),
        generated=generated.tolist(),
        generated_count=count.tolist(),
    )


def decode_admission(message: pb.Admit) -> Admission:
    """The admission in a message. Tokens are in increasing order, because only their counts matter."""
    generated = np.repeat(array_of(message.generated), array_of(message.generated_count))
    return Admission(
        message.slot,
        decode_sampling(message.sampling),
        message.prompt_tokens,
        tuple(message.end_tokens),
        IdArray(array_of(message.prompted)),
        IdArray(generated),
    )


def encode_plan(plan: StepPlan) -> pb.Tick:
    """A plan as a message."""
    return pb.Tick(chunks=[_encode_chunk(chunk) for chunk in plan.chunks])


def _encode_chunk(chunk: Chunk) -> pb.Chunk:
    return pb.Chunk(
        slot=chunk.slot,
        start=chunk.start,
        length=chunk.length,
        tokens=None if chunk.tokens is None else pb.TokenIds(ids=array_of(chunk.tokens).tolist()),
        last=chunk.last,
        first_page=chunk.first_page,
        pages=chunk.pages,
        groups=chunk.groups,
    )


def decode_plan(message: pb.Tick) -> StepPlan:
    """The plan in a message."""
    return StepPlan(
        tuple(
            Chunk(
                chunk.slot,
                chunk.start,
                chunk.length,
                IdArray(array_of(chunk.tokens.ids)) if chunk.HasField("tokens") else None,
                chunk.last,
                chunk.first_page,
                tuple(chunk.pages),
                tuple(chunk.groups),
            )
            for chunk in message.chunks
        )
    )


def encode_slice(work: Slice, before: tuple[StepPlan, ...]) -> pb.Slice:
    """A slice as a message, without its plans if they are those of the slice `before`."""
    plans = () if work.stages == before else work.stages
    return pb.Slice(stages=map(encode_plan, plans), first=work.first, past=work.past)


def decode_slice(message: pb.Slice, before: tuple[StepPlan, ...]) -> Slice:
    """The slice in a message; `before` has the plans of the slice before, which it may not repeat."""
    return Slice(tuple(map(decode_plan, message.stages)) or before, message.first, message.past)


def encode_results(sequence: int, results: Mapping[int, TokenResult]) -> pb.Results:
    """Results of one tick by position in its leaving plan, as a message."""
    message = pb.Results(sequence=sequence)
    logits = []
    for number, result in results.items():
        message.chunk.append(number)
        message.token.append(result.token)
        message.finite.append(result.finite)
        message.logprob.append(result.logprob)
        message.top_token.extend(token for token, _ in result.top)
        message.top_logprob.extend(logprob for _, logprob in result.top)
        logits.append(np.asarray(result.logits, "<f4").tobytes())
    message.logits = b"".join(logits)
    return message


def decode_results(message: pb.Results) -> dict[int, TokenResult]:
    """The results in a message. Raises ValueError if its fields differ in length."""
    count = len(message.chunk)
    if not count:
        return {}
    top_token = np.array(message.top_token, np.int64).reshape(count, -1).tolist()
    top_logprob = np.array(message.top_logprob, np.float64).reshape(count, -1).tolist()
    logits = np.frombuffer(message.logits, "<f4").reshape(count, -1)
    each = zip(
        message.chunk, message.token, message.finite, message.logprob, top_token, top_logprob, logits, strict=True
    )
    return {
        number: TokenResult(token, finite, logprob, tuple(zip(tokens, logprobs, strict=True)), row)
        for number, token, finite, logprob, tokens, logprobs, row in each
    }


def encode_masks(slots: Sequence[int], masks: np.ndarray) -> pb.Masks:
    """Masks of slots as a message."""
    return pb.Masks(slots=slots, words=np.asarray(masks, "<u4").tobytes())


def decode_masks(message: pb.Masks) -> tuple[tuple[int, ...], np.ndarray]:
    """The slots and their masks in a message. Raises ValueError if the masks do not divide by the slots."""
    words = np.frombuffer(message.words, "<u4").astype(np.uint32)
    return tuple(message.slots), words.reshape(len(message.slots), -1)


def encode_copies(copies: Sequence[PageCopy]) -> pb.Copy:
    """Copies of KV pages as a message."""
    groups, pages, places, to_host = zip(*copies, strict=True)
    return pb.Copy(group=groups, page=pages, place=places, to_host=to_host)


def decode_copies(message: pb.Copy) -> tuple[PageCopy, ...]:
    """Copies of KV pages from a message. Raises ValueError if its fields differ in length."""
    rows = zip(message.group, message.page, message.place, message.to_host, strict=True)
    return tuple(PageCopy(*row) for row in rows)


def message_limit(config: RuntimeConfig, vocab: int, width: int) -> int:
    """Most bytes of a message.

    The shapes in `config` bound plans and results, the vocabulary size bounds admissions and masks, and `width` (pages
    of a request on one group) bounds adoptions.
    """
    mesh = config.mesh
    segments = [mesh.buckets] * mesh.kvp + ([mesh.shared_buckets] if mesh.shared_buckets else [])
    chunks = sum(buckets.decode[-1] + buckets.chunks for buckets in segments)
    tokens = sum(buckets.decode[-1] + buckets.prefill[-1] for buckets in segments)
    admission = 3 * VARINT * vocab + MAX_STOP_STRINGS * (4 * MAX_STOP_STRING_LENGTH + 8)
    admission += MAX_BIASED * (VARINT + 16) + MAX_ALLOWED * VARINT
    # a chunk names its groups, and at most one page per token plus one at either end
    plan = chunks * (96 + VARINT * (mesh.kvp + 2)) + 2 * tokens * VARINT
    # a slice has the chunks of all stages, one for each segment
    held = sum(max(buckets.slices, default=0) for buckets in segments)
    stages = mesh.spp * (len(segments) * (96 + VARINT * (mesh.kvp + 2)) + 2 * held * VARINT)
    masks = config.slots * (VARINT + 4 * mask_words(vocab))
    results = chunks * (4 * VARINT + MAX_LOGPROBS * (VARINT + 4) + (4 * vocab if config.keep_logits else 0))
    return max(admission, VARINT * width, plan, stages, results, masks) + 2**16
