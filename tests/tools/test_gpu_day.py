"""The script for a day with a GPU, end to end with a tiny model on a CPU."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.gpu.device import NO_GPU
from medha_jax.runtime.programs import Programs
from tools import gpu_day
from tools.gpu_loads import spans


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs name their layers, and slices have stated lengths."""
    monkeypatch.setattr(Programs, "unrolled", True)


def test_it_runs_from_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = tmp_path / "before.json"
    before.write_text(json.dumps({"milliseconds": {"tick of a chunk of 32": 1000.0}}))
    assert gpu_day.main(["--small", "--out", str(tmp_path), "--before", str(before)]) == 0
    stated = json.loads((tmp_path / "gpu_day.json").read_text())
    assert [one["name"] for one in stated["checks"]] == [
        "a prompt in slices of 1 against ticks",
        "a prompt in slices of 2 against ticks",
    ]
    assert all(one["passed"] for one in stated["checks"])
    assert list(stated["milliseconds"]) == [
        "tick of 2 decodes at 32",
        "host's part of a tick of 2 decodes",
        "tick of a chunk of 32",
        "chunk of 32 in slices of 1",
        "chunk of 32 in slices of 2",
    ]
    assert all(value > 0 for value in stated["milliseconds"].values())
    assert set(stated["seconds"]) == {"slices", "times"}
    assert "before  1000.000 ms" in capsys.readouterr().out


def test_wrong_slices_are_a_failed_check(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gpu_day, "opened", lambda *_, **__: type("Fake", (), dict(slice_lengths=(1,))))
    monkeypatch.setattr(gpu_day, "final_logits_of", lambda _, __, layers: np.array([1.0, 0.0 if layers else 0.5]))
    report = gpu_day.DayReport(tmp_path / "x.json", {}, {})
    monkeypatch.setattr(gpu_day, "times", lambda _: iter(()))
    gpu_day.run(report, gpu_day.SMALL, None, minutes=1)
    assert [one.passed for one in report.outcomes] == [False]


def test_a_part_that_raises_does_not_end_the_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no memory")

    monkeypatch.setattr(gpu_day, "check_slices", fail)
    monkeypatch.setattr(gpu_day, "times", lambda _: iter([("a tick", 0.001)]))
    report = gpu_day.DayReport(tmp_path / "x.json", {}, {})
    gpu_day.run(report, gpu_day.SMALL, None, minutes=1)
    assert [(one.passed, one.detail) for one in report.outcomes] == [(False, "RuntimeError: no memory")]
    assert [one.milliseconds for one in report.timings] == [1.0]


def test_without_a_gpu_nothing_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_day.main(["--out", str(tmp_path / "none")]) == NO_GPU
    assert "nothing was checked" in capsys.readouterr().err and not (tmp_path / "none").exists()


@pytest.mark.parametrize("text", [None, "{", "[]", '{"milliseconds": 3}', '{"milliseconds": {"a": "b"}}'])
def test_a_bad_earlier_run_is_one_line(tmp_path: Path, text: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "before.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(SystemExit) as ended:
        gpu_day.main(["--small", "--before", str(file)])
    assert ended.value.code == 2 and "has no times of an earlier run" in capsys.readouterr().err


def test_what_is_left_of_a_stage_runs_in_the_longest_slices() -> None:
    assert spans(8, 2, (1, 2, 8)) == [(0, 2), (2, 4), (4, 6), (6, 8)]
    assert spans(7, 2, (1, 2, 7)) == [(0, 2), (2, 4), (4, 6), (6, 7)]
    assert spans(32, 8, (1, 2, 8, 32))[-1] == (24, 32)
