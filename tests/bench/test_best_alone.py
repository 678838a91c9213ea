from __future__ import annotations

import json
import sys

import pytest

from medha_jax.bench.best_alone import BestAlone, GenerateError, best_alone


def said(token_ids: int, tpot_s: float | None) -> tuple[str, ...]:
    line = json.dumps({"ttft_s": 2.0, "tpot_s": tpot_s, "token_ids": [1] * token_ids})
    return sys.executable, "-c", f"print('a line before'); print('{line}')"


def test_times_are_those_that_generate_reports() -> None:
    told: list[str] = []
    assert best_alone(["--model=x"], [3, 4], 5, told.append, said(5, 0.5)) == BestAlone(2.0, 4.0)
    assert told == ["$ medha-jax generate --model=x --max-tokens=5 --temperature=0 --ignore-eos --json --prompt-ids=-"]
    assert best_alone([], [3], 1, told.append, said(1, None)) == BestAlone(2.0, 2.0)


def test_a_failure_is_an_error() -> None:
    with pytest.raises(GenerateError, match="exit code 3"):
        best_alone([], [1], 1, print, (sys.executable, "-c", "raise SystemExit(3)"))


def test_the_real_command_is_measured() -> None:
    """The bundled model on this machine: 40 tokens, and five more."""
    found = best_alone(["--model=tiny", "--mesh=cpu-small"], range(3, 43), 5, print)
    assert 0 < found.ttft_s < found.whole_s < 60
