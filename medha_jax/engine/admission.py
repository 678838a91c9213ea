"""What a request must be to run at all, checked before anything is loaded or taken for it."""

from __future__ import annotations

from medha_jax.engine.events import GenerationRequest
from medha_jax.plan import InvalidRequestError
from medha_jax.scheduler.chunking import chunk_lengths


def check_request(request: GenerationRequest, vocab: int, context: int) -> None:
    """Check a request against a model.

    Args:
        request: what was asked for.
        vocab: entries of the vocabulary.
        context: tokens that prompt and output may have together.

    Raises:
        InvalidRequestError: the prompt is empty or too long, a token id is outside the vocabulary, or the chunk
            sizes make no progress; the message says what is allowed.
    """
    prompt = request.prompt_ids
    if not len(prompt):
        raise InvalidRequestError("the prompt is empty; at least one token is needed")
    for name, ids in (("token id", prompt), ("stop token id", request.sampling.stop_token_ids)):
        if len(ids) and not (min(ids) >= 0 and max(ids) < vocab):
            bad = next(token for token in ids if not 0 <= token < vocab)
            raise InvalidRequestError(f"{name} {bad} is outside the vocabulary; allowed are 0 to {vocab - 1}")
    if len(prompt) >= context:
        raise InvalidRequestError(
            f"the prompt has {len(prompt)} tokens; allowed are {context - 1}, one less than the context"
        )
    if request.chunks is not None:
        chunk_lengths(1, request.chunks)
