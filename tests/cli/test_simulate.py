from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from medha_jax.cli import run
from medha_jax.results import Repeat, RequestRecord, Run, write_run


def test_a_convoy_prints_a_row_for_every_policy(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--duration", "10", "--long-prompt", "200000", "--output", "4"]
    assert run(["simulate", "convoy", *options]) == 0
    out = capsys.readouterr().out
    assert out.startswith("Simulated convoy")
    assert "fcfs, whole prompts" in out
    for policy in ("fcfs", "srtf", "edf", "lrs", "lars", "red"):
        assert f"│ {policy} " in out
    assert run(["simulate", "convoy", *options, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["simulated"] is True
    assert [row["policy"] for row in said["rows"]][:2] == ["fcfs, whole prompts", "fcfs"]
    assert said["rows"][-1]["short_ttft"][0] < said["rows"][0]["short_ttft"][0]
    assert all(row["long_alone"] <= row["long_finished"] for row in said["rows"])


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


def test_without_a_command_there_is_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["simulate"]) == 0
    assert "convoy" in capsys.readouterr().out


def test_traffic_on_a_modelled_machine(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--model", "llama3-8b", "--mesh", "dgx-h100-8", "--rate", "2", "--duration", "10"]
    assert run(["simulate", "traffic", *options]) == 0
    out = capsys.readouterr().out
    assert out.startswith("Simulated: ")
    assert "llama3-8b on 8 x h100" in out
    assert run(["simulate", "traffic", *options, "--workload", "0", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["simulated"] is True
    assert all(record["status"] == "ok" for record in said["records"])


def test_the_requests_of_a_real_run_are_simulated_beside_it(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    outputs = ((1.5, 1), (2.0, 9))
    sent = [
        RequestRecord(1, "short", 300, 10, 1.0, 1.0, outputs, 2.0, "ok", deadline_s=0.5),
        RequestRecord(0, "long", 90_000, 10, 0.25, 0.25, outputs, 2.0, "ok", deadline_s=9.0, tpot_slo_s=0.05),
    ]
    write_run(tmp_path / "real", Run("real", (Repeat(tuple(sent)),), {}, {}))
    options = ["--model", "llama3-8b", "--mesh", "dgx-h100-8", "--as-in", str(tmp_path / "real")]
    assert run(["simulate", "traffic", *options]) == 0
    out = capsys.readouterr().out
    assert out.startswith("Simulated: 2 requests in ")
    (heads,) = (line for line in out.splitlines() if "real" in line and "simulated" in line and "kind" not in line)
    assert heads.index("real") < heads.index("simulated")
    assert run(["simulate", "traffic", *options, "--json"]) == 0
    records = json.loads(capsys.readouterr().out)["records"]
    wanted = [("long", 90_000, 10, 0.25), ("short", 300, 10, 1.0)]
    assert [(one["kind"], one["prompt_tokens"], one["output_tokens"], one["due"]) for one in records] == wanted
    assert run(["simulate", "traffic", "--as-in", str(tmp_path / "nothing")]) == 2
    assert "nothing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([], "has no requests"),
        ([("text", 0, 10)], "request 0 has 0 prompt tokens"),
    ],
)
def test_runs_that_the_machine_cannot_serve_are_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, records: list[tuple[str, int, int]], message: str
) -> None:
    sent = [
        RequestRecord(i, kind, prompt, output, 1, 1, (), 2, "failed")
        for i, (kind, prompt, output) in enumerate(records)
    ]
    write_run(tmp_path, Run("real", (Repeat(tuple(sent)),), {}, {}))
    assert run(["simulate", "traffic", "--context", "128K", "--as-in", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert message in said and "Traceback" not in said


@pytest.mark.parametrize("command", [["traffic", "--workload", "0"], ["policies", "--mix", "0", "--policy", "red"]])
def test_tables_name_the_deadlines_that_were_kept(capsys: pytest.CaptureFixture[str], command: list[str]) -> None:
    asked = ["--duration", "5", "--rate", "1", "--ttft-multiple", "3", "--ttft-floor-s", "0.25"]
    assert run(["simulate", *command, *asked]) == 0
    assert "max(3 x alone, 0.25 s)" in " ".join(capsys.readouterr().out.split())


def test_every_setting_of_the_scheduler_can_be_simulated(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--duration", "5", "--rate", "1", "--mix", "0", "--policy", "red", "--json"]
    assert run(["simulate", "policies", *options, "--idle-tick-s", "0.05", "--ttft-multiple", "3"]) == 0
    capsys.readouterr()
    assert run(["simulate", "policies", *options, "--rho-max", "1"]) == 2
    assert "rho_max" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["", "nowhere/ticks.json"])
def test_a_file_that_cannot_be_written_is_told_before_anything_is_measured(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str
) -> None:
    assert run(["simulate", "measure", "--out", str(tmp_path / name), "--model", "/no/model"]) == 2
    assert "--out" in capsys.readouterr().err


def test_ticks_are_measured_and_calibrate_a_simulation(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, model: Path, medha: Any
) -> None:
    """A small model on this machine, for some seconds; how good the times are is not for a test to say."""
    path = tmp_path / "ticks.json"
    done = medha("simulate", "measure", "--out", path, "--model", model, "--max-context", 256, "--seconds", 3)
    assert done.returncode == 0, done.stderr
    assert "wrote" in done.stderr
    options = ["--calibration", str(path), "--workload", "0", "--scale", "0.02", "--rate", "2", "--duration", "5"]
    assert run(["simulate", "traffic", *options]) == 0
    out = capsys.readouterr().out
    assert "measured: model random" in out
    assert "|predicted - measured| / measured" in out
    assert run(["simulate", "traffic", "--calibration", str(tmp_path / "none.json")]) == 2
    assert "cannot read calibration" in capsys.readouterr().err
