import json
import math

import pytest

from medha_jax.cli.generation_report import completion_json, summary
from medha_jax.engine.events import Completion, PhaseTimings, TokenLogprobs

COMPLETION = Completion(
    token_ids=(7, 8),
    text="é\n",
    finish_reason="stop",
    matched="\n\n",
    prompt_tokens=1024,
    logprobs=(),
    timings=PhaseTimings(0.1, 0.4, 0.5, 0.05, 0.55, 0.05),
    chunks=(1000, 24),
)
SINGLE = {"timings": PhaseTimings(0.1, 0.4, 0.5, 0.0, 0.5, None), "chunks": (1,)}


def test_json_holds_everything():
    assert json.loads(completion_json(COMPLETION, 2**63 - 1)) == {
        "token_ids": [7, 8],
        "text": "é\n",
        "finish_reason": "stop",
        "matched": "\n\n",
        "prompt_tokens": 1024,
        "logprobs": None,
        "ttft_s": 0.5,
        "tpot_s": 0.05,
        "chunks": [1000, 24],
        "seed": 2**63 - 1,
    }
    assert "\n" not in completion_json(COMPLETION, None)


def test_json_of_logprobs_has_no_infinities():
    from dataclasses import replace

    completion = replace(COMPLETION, logprobs=(TokenLogprobs(7, -0.5, ((7, -0.5), (9, -math.inf))),))
    assert json.loads(completion_json(completion, 7))["logprobs"] == [
        {"token_id": 7, "logprob": -0.5, "top": [[7, -0.5], [9, None]]}
    ]


@pytest.mark.parametrize(
    "changes, line",
    [
        ({}, "1,024 prompt tokens, TTFT 0.5 s (2,048 tokens/s); 2 tokens, 20.0 tokens/s; stop"),
        (
            dict(token_ids=(7,), **SINGLE, prompt_tokens=1, finish_reason="length"),
            "1 prompt token, TTFT 0.5 s (2 tokens/s); 1 token; length",
        ),
    ],
)
def test_the_summary_is_one_line(changes, line):
    from dataclasses import replace

    assert summary(replace(COMPLETION, **changes)) == line
