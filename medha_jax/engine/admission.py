"""Checks of a request before it takes anything from the engine."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import replace

from medha_jax.engine.events import GenerationRequest
from medha_jax.engine.executor import Executor
from medha_jax.grammar.matcher import Grammar
from medha_jax.plan import MAX_OUTPUTS, MAX_SEED, InvalidRequestError, SamplingParams, output_seed
from medha_jax.scheduler.request import SchedulerRequest
from medha_jax.token_ids import GrowingIds, first_outside


def check_request(request: GenerationRequest, vocab: int, context: int) -> None:
    """Check a request against a model with `vocab` token ids and room for `context` tokens of prompt and output.

    Raises:
        InvalidRequestError: the prompt is empty or too long, a token id is outside the vocabulary, or the chunk
            sizes make no progress; the message states what is allowed.
    """
    prompt = request.prompt_ids
    if not len(prompt):
        raise InvalidRequestError("the prompt is empty; at least one token is needed")
    check_ids("token id", prompt, vocab)
    sampling = request.sampling
    check_ids("stop token id", sampling.stop_token_ids, vocab)
    check_ids("logit_bias: token id", [token for token, _ in sampling.logit_bias], vocab)
    allowed = sampling.allowed_token_ids or ()
    check_ids("allowed_token_ids: token id", allowed, vocab)
    if allowed and sampling.min_tokens and {*request.eos_ids, *sampling.stop_token_ids}.issuperset(allowed):
        raise InvalidRequestError(
            f"min_tokens is {sampling.min_tokens}, but all of allowed_token_ids end the request; allowed is 0"
        )
    if request.grammar is not None:
        _check_grammar(request.grammar, sampling, vocab)
    if len(prompt) >= context:
        raise InvalidRequestError(
            f"the prompt has {len(prompt)} tokens; allowed are {context - 1}, one less than the context"
        )
    bound = request.prompt_bound
    if bound is not None and not len(prompt) <= bound < context:
        raise InvalidRequestError(
            f"the prompt is stated to have at most {bound} tokens; allowed are {len(prompt)}, which its first part "
            f"has, to {context - 1}, one less than the context"
        )
    if request.chunks is not None:
        chunk_lengths(1, request.chunks)


def _check_grammar(grammar: Grammar, sampling: SamplingParams, vocab: int) -> None:
    """Check that a structured output can end where its grammar does, and that no other rule leaves nothing to sample.

    Raises:
        InvalidRequestError: it cannot.
    """
    if grammar.vocab != vocab:
        raise InvalidRequestError(f"the grammar was compiled for {grammar.vocab} token ids; the model has {vocab}")
    if sampling.ignore_eos:
        raise InvalidRequestError("ignore_eos goes on after the end, and a structured output has one; leave it out")
    if sampling.min_tokens:
        raise InvalidRequestError(
            f"min_tokens is {sampling.min_tokens}; a structured output ends where its grammar does; allowed is 0"
        )
    if sampling.allowed_token_ids is not None:
        raise InvalidRequestError("allowed_token_ids may leave a structured output no token; give one of the two")


def check_ids(what: str, ids: Sequence[int], vocab: int) -> None:
    """Check that all token ids are in the vocabulary.

    Raises:
        InvalidRequestError: one is not; the message calls it `what`.
    """
    bad = first_outside(ids, vocab)
    if bad is not None:
        raise InvalidRequestError(f"{what} {bad} is outside the vocabulary; allowed are 0 to {vocab - 1}")


def drawn_seed() -> int:
    """A seed that nobody can foresee, for a request that states none."""
    return secrets.randbelow(MAX_SEED + 1)


def single_outputs(request: GenerationRequest, seed: int) -> tuple[GenerationRequest, ...]:
    """For each output of a request with this `seed`, stated or drawn, the request that alone has this output."""
    sampling = [replace(request.sampling, seed=output_seed(seed, index)) for index in range(request.n)]
    return tuple(replace(request, n=1, sampling=one) for one in sampling)


def check_outputs(request: GenerationRequest, slots: int) -> None:
    """Check a request's number of outputs; each takes one of `slots`.

    Raises:
        InvalidRequestError: it is not allowed.
    """
    most = min(MAX_OUTPUTS, slots)
    if not 1 <= request.n <= most:
        why = f", because the server has {slots} slots" if most < MAX_OUTPUTS else ""
        raise InvalidRequestError(f"n is {request.n}; allowed are 1 to {most} outputs{why}")
    if request.n > 1 and request.prompt_bound is not None:
        raise InvalidRequestError(f"n is {request.n}; a prompt that comes in parts has 1 output")


def for_scheduler(request: GenerationRequest, executor: Executor, arrival: float) -> SchedulerRequest:
    """A request for the scheduler, checked against an executor. Any thread may call this.

    Raises:
        InvalidRequestError: the request, which came at `arrival` seconds, cannot run.
    """
    context, sampling, bound = executor.sizes.context, request.sampling, request.prompt_bound
    check_request(request, executor.vocab, context)
    check_outputs(request, executor.config.slots)
    if sampling.prompt_logprobs is not None and not executor.config.prompt_logprobs:
        raise InvalidRequestError(
            f"prompt_logprobs is {sampling.prompt_logprobs}; the server was started without --prompt-logprobs"
        )
    most = len(request.prompt_ids) if bound is None else bound
    largest = executor.config.mesh.buckets.prefill[-1]
    if request.chunks is not None and max(chunk_lengths(most, request.chunks)) > largest:
        raise InvalidRequestError(f"chunk sizes are {request.chunks}; allowed are 1 to {largest} tokens")
    wished = sampling.max_tokens or context
    prompt: Sequence[int] = request.prompt_ids
    if bound is not None:
        # if the KV of a prefix depends on the whole prompt, nothing can be computed before the prompt is complete
        prompt = GrowingIds(request.prompt_ids if executor.prefix_cacheable else ())
    return SchedulerRequest(
        prompt=prompt,
        max_tokens=wished if bound is not None else min(wished, context - most),
        arrival_s=arrival,
        slo=request.slo,
        deadline_s=request.deadline_s,
        on_deadline=request.on_deadline,
        tenant=request.tenant,
        cache_salt=request.cache_salt,
        chunks=request.chunks,
        counts_tokens=(sampling.repetition_penalty, sampling.presence_penalty, sampling.frequency_penalty) != (1, 0, 0),
        bound=None if bound is None else min(context, bound + wished),
        prompt_bound=bound or 0,
        scored=sampling.prompt_logprobs,
        reads_tokens=request.grammar is not None,
        priority=request.priority,
    )


def chunk_lengths(prompt: int, sizes: Sequence[int]) -> tuple[int, ...]:
    """Cut `prompt` tokens into chunks of `sizes`, the last size repeated: 10 tokens in (4, 2) are 4, 2, 2, 2.

    Raises:
        InvalidRequestError: there is no size, or one below 1.
    """
    if not sizes or min(sizes) < 1:
        raise InvalidRequestError(f"chunk sizes are {tuple(sizes)}; allowed are whole numbers from 1")
    lengths: list[int] = []
    done = 0
    while done < prompt:
        size = sizes[min(len(lengths), len(sizes) - 1)]
        lengths.append(min(prompt - done, size))
        done += lengths[-1]
    return tuple(lengths)
