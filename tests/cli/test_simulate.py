from __future__ import annotations

import json

import pytest

from medha_jax.cli import run


def test_a_convoy_prints_a_row_for_every_policy(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--duration", "10", "--long-prompt", "200000", "--output", "4"]
    assert run(["simulate", "convoy", *options]) == 0
    out = capsys.readouterr().out
    assert out.startswith("Simulated convoy")
    assert "fcfs, whole prompts" in out
    for policy in ("fcfs", "srtf", "edf", "lrs", "lars"):
        assert f"│ {policy} " in out
    assert run(["simulate", "convoy", *options, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["simulated"] is True
    assert [row["policy"] for row in said["rows"]][:2] == ["fcfs, whole prompts", "fcfs"]
    assert said["rows"][-1]["short_ttft"][0] < said["rows"][0]["short_ttft"][0]


def test_policies_are_compared_at_every_load(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--duration", "20", "--load", "0.5", "--load", "0.9", "--policy", "srtf", "--policy", "lars"]
    assert run(["simulate", "policies", *options, "--margin", "0.5", "--margin", "1", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["policy"] for row in rows] == ["srtf", "lars 0.5", "lars 1"] * 2
    assert all(row["finished"] == row["requests"] > 0 for row in rows)
    assert run(["simulate", "policies", *options]) == 0
    out = capsys.readouterr().out
    assert out.startswith("Simulated: 5 % long, requests come for 20 s, seed 0")
    assert out.count("srtf") == 2


def test_a_rate_and_an_end_may_be_given(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--rate", "2", "--mix", "0", "--duration", "30", "--no-drain", "--policy", "fcfs", "--json"]
    assert run(["simulate", "policies", *options]) == 0
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert row["requests"] == pytest.approx(60, abs=30)
    assert row["on_time_long"] is None
    assert row["seconds"] < 40


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--mix", "7"], "there is no mix '7'"),
        (["--deployment", "x"], "there is no deployment 'x'"),
        (["--load", "0"], "must be above 0"),
        (["--policy", "best"], "best"),
        (["--margin", "0"], "deadline_margin"),
    ],
)
def test_what_there_is_not_is_refused(capsys: pytest.CaptureFixture[str], options: list[str], message: str) -> None:
    assert run(["simulate", "policies", "--duration", "5", *options]) == 2
    assert message in capsys.readouterr().err
