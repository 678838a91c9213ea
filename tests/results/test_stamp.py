from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
from datetime import timedelta, timezone
from pathlib import Path

import pytest

from medha_jax.results import stamp
from medha_jax.results.stamp import commit, masked
from tests.results.recorded import STARTED


def test_a_stamp_names_versions_machine_and_flags() -> None:
    found = stamp(["bench", "--rate", "2"], STARTED.astimezone(timezone(timedelta(hours=5))), {"server": "x"})
    assert found["started"] == "2026-03-04T05:06:07+00:00"
    assert found["flags"] == ["bench", "--rate", "2"]
    assert found["python"] == platform.python_version()
    assert {"medha-jax", "jax", "numpy"} <= set(found["versions"])
    assert found["cores"] >= 1
    assert found["cpu"]
    assert found["server"] == "x"
    assert platform.node() not in json.dumps(found) or not platform.node()


def test_jax_is_named_and_not_imported() -> None:
    code = (
        "import sys; from datetime import datetime, UTC; from medha_jax.results import stamp;"
        "assert stamp([], datetime.now(UTC))['versions']['jax']; assert not {'jax', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize(
    ("flags", "shown"),
    [
        (["--token", "abc", "--rate", "2"], ["--token", "***", "--rate", "2"]),
        (["--api-key=abc"], ["--api-key=***"]),
        (["--hf-token=", "x"], ["--hf-token=***", "x"]),
        (["--Password", "abc"], ["--Password", "***"]),
        (["--max-tokens", "5", "--token-file", "x"], ["--max-tokens", "5", "--token-file", "x"]),
    ],
)
def test_secrets_are_masked(flags: list[str], shown: list[str]) -> None:
    assert masked(flags) == shown


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_the_commit_is_that_of_a_checkout_that_tracks_the_package(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        settings = ["-c", "user.name=t", "-c", "user.email=t@t", "-c", "commit.gpgsign=false"]
        command = ["git", "-C", str(tmp_path), *settings, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    package = tmp_path / "results"
    package.mkdir()
    (package / "stamp.py").write_text("1\n")
    assert commit(package) is None  # as in a virtual environment inside a checkout
    git("add", ".")
    git("commit", "-qm", "x")
    assert commit(package) == git("rev-parse", "HEAD")
    (package / "stamp.py").write_text("2\n")
    assert commit(package) == git("rev-parse", "HEAD") + "+changes"
