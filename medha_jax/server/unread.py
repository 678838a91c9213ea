"""How much memory an event holds until its client has read it."""

from __future__ import annotations

import sys

from medha_jax.engine import Completed, Failed, NewTokens, Prefilled, PromptScored, Queued

# bytes of Python's objects, as tracemalloc counts them; tests/server/test_streams.py compares
EVENT_BYTES = 150  # without tokens and text
TOKEN_BYTES = 36
ENTRY_BYTES = 150  # log-probability of a token
SCORES_BYTES = 900  # of a part of a prompt, without its numbers
TOP_BYTES = 120  # one of the likeliest tokens beside it

Kept = Queued | Prefilled | PromptScored | NewTokens | Completed | Failed


def event_bytes(event: Kept) -> int:
    """Bytes that a waiting event holds, about."""
    match event:
        case NewTokens(token_ids=ids, text=text, logprobs=entries):
            size = EVENT_BYTES + TOKEN_BYTES * len(ids) + sys.getsizeof(text)
            if not entries:
                return size
            tops = sum(len(entry.top) for entry in entries)
            return size + ENTRY_BYTES * len(entries) + TOP_BYTES * tops
        case PromptScored(scores=scores):
            arrays = (scores.ids, scores.logprobs, scores.top_ids, scores.top_logprobs)
            return SCORES_BYTES + sum(array.nbytes for array in arrays)
        case Completed(completion=completion):
            return EVENT_BYTES + TOKEN_BYTES * (len(completion.token_ids) + len(completion.chunks))
    return EVENT_BYTES
