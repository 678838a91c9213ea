"""Output of a generation: its text, a JSON object, a summary line."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medha_jax.client import AnswerOutput, TokenLogprob
    from medha_jax.engine import Completion, TokenLogprobs
    from medha_jax.plan import PromptScores


# fields of a generation, in the order of the JSON object
REPORTED = "token_ids text finish_reason matched prompt_tokens logprobs ttft_s tpot_s chunks".split()


def completion_json(
    completion: Completion | AnswerOutput,
    seed: int | None,
    index: int | None = None,
    prompt: Sequence[Mapping[str, Any]] | None = None,
) -> str:
    """One line of JSON with the `seed`: times in seconds; null for logprobs that were not requested and for -inf.

    With the `index`, if it is one of several outputs. `prompt` has the log-probabilities of the prompt's tokens, if
    they were asked for, from the second one on; the first one has none.
    """
    stated = {name: getattr(completion, name) for name in REPORTED} | {"seed": seed}
    stated["logprobs"] = [_logprobs(entry) for entry in completion.logprobs] or None
    if prompt is not None:
        stated["prompt_logprobs"] = [None, *prompt]
    return json.dumps(stated | ({} if index is None else {"index": index}), allow_nan=False)


def summary(completion: Completion | AnswerOutput) -> str:
    """One line: `1,024 prompt tokens, TTFT 0.53 s (1,932 tokens/s); 64 tokens, 15.6 tokens/s; length`."""
    count = len(completion.token_ids)
    prefill = f"{completion.prompt_tokens:,} prompt token{'s' * (completion.prompt_tokens != 1)}"
    if completion.ttft_s > 0:
        rate = completion.prompt_tokens / completion.ttft_s
        prefill += f", TTFT {completion.ttft_s:.3g} s ({rate:,.0f} tokens/s)"
    decode = f"{count:,} token{'s' * (count != 1)}"
    if completion.tpot_s:
        decode += f", {1 / completion.tpot_s:,.1f} tokens/s"
    return f"{prefill}; {decode}; {completion.finish_reason}"


def print_summary(completion: Completion | AnswerOutput, text_shown: bool, index: int | None = None) -> None:
    """Print the summary to stderr, on a new line if the text ended on the same terminal.

    With the `index`, if it is one of several outputs.
    """
    shared = text_shown and sys.stdout.isatty() and sys.stderr.isatty()
    if shared and completion.text and not completion.text.endswith("\n"):
        print(file=sys.stderr)
    which = "" if index is None else f"{index}: "
    print(which + summary(completion), file=sys.stderr, flush=True)


def scores_json(scores: PromptScores) -> list[dict[str, Any]]:
    """Log-probabilities of a part of a prompt that was computed here."""
    columns = zip(scores.ids, scores.logprobs, scores.top_ids, scores.top_logprobs, strict=True)
    return [
        _entry(int(token), float(logprob), zip(ids.tolist(), logprobs.tolist(), strict=True))
        for token, logprob, ids, logprobs in columns
    ]


def prompt_json(tokens: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
    """Log-probabilities of a prompt, from a server."""
    return [_logprobs(entry) for entry in tokens]


def _logprobs(entry: TokenLogprobs | TokenLogprob) -> dict[str, Any]:
    return _entry(entry.token_id, entry.logprob, entry.top)


def _entry(token_id: int, logprob: float, top: Iterable[tuple[int, float]]) -> dict[str, Any]:
    likeliest = [[token, _finite(value)] for token, value in top]
    return {"token_id": token_id, "logprob": _finite(logprob), "top": likeliest}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
