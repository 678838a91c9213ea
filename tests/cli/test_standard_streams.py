"""A process that was started without standard streams, or with full ones."""

from __future__ import annotations

import subprocess
import sys

import pytest

PLAN = "plan --model tiny --devices 1 --hardware h200"


def shell(redirected: str, command: str = PLAN) -> tuple[int, str, str]:
    """Run a command in a shell; returns its exit code and what it wrote."""
    line = f"{sys.executable} -m medha_jax.cli {command} {redirected}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=120, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("redirected", "message"),
    [(">&-", "error: [Errno 9] Bad file descriptor"), (">/dev/full", "error: [Errno 28] No space left on device")],
)
def test_an_answer_that_cannot_be_written_is_an_error_of_one_line(redirected: str, message: str) -> None:
    code, _, said = shell(redirected)
    assert code == 1
    assert said.splitlines()[-1] == message
    assert "Traceback" not in said and "Exception ignored" not in said


def test_without_standard_error_only_the_answer_is_on_standard_output() -> None:
    code, answer, said = shell("2>&-", "plan --model nowhere --devices 1 --hardware h200")
    assert (code, answer, said) == (2, "", "")
    code, answer, said = shell("2>&- <&-")
    assert code == 0 and not said
    assert answer == shell("")[1]


def test_without_any_stream_a_command_ends_quietly() -> None:
    assert shell(">&- 2>&- <&-") == (1, "", "")
