from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.served import Served, serve, write_calibration_requests

SERVER = ("--model=tiny", "--mesh=cpu-small", "--max-context=2048", "--slots=8", "--no-prefix-cache")
PROMPT = 40
ASKED = ("--workload=random", f"--prompt-tokens={PROMPT}", "--output-tokens=6", "--rate=4", "--duration=1.5")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("served")


@pytest.fixture(scope="module")
def served(folder: Path) -> dict[str, Served]:
    return serve(folder, SERVER, {"one": (*ASKED, "--seed=1"), "two": (*ASKED, "--seed=2")})


def test_each_load_has_its_own_requests_and_ticks(served: dict[str, Served]) -> None:
    assert list(served) == ["one", "two"]
    for load in served.values():
        wanted = sum(record.output_tokens for record in load.records)
        assert wanted > 0
        # a prompt's last token is a chunk of its own after slices
        decodes = sum(start >= PROMPT for tick in load.ticks for stage in tick["stages"] for start, _, _ in stage)
        assert decodes == wanted - len(load.records)  # the first token of each comes with its prompt
        assert 0 < load.busy_s <= load.seconds + load.ticks[-1]["seconds"]
    assert served["one"].ticks[-1]["at"] < served["two"].ticks[0]["at"]


def test_what_was_measured_is_not_measured_again(folder: Path, served: dict[str, Served]) -> None:
    assert serve(folder, ("--model=nothing",), {}) == served


def test_calibration_requests_go_on_where_others_ended(tmp_path: Path) -> None:
    whole, rest = tmp_path / "whole.jsonl", tmp_path / "rest.jsonl"
    write_calibration_requests(whole, longest=8192)
    write_calibration_requests(rest, longest=8192, skip=30)
    lines = whole.read_text().splitlines()
    assert rest.read_text().splitlines() == lines[30:]
    lengths = [json.loads(line)["input_length"] for line in lines]
    assert max(lengths[:10]) <= 8192 / 4
    assert lengths[10] == lengths[35] == 8192
