"""The check of every layout of several GPUs, on virtual CPU devices with a tiny model."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.gpu.device import NO_GPU
from medha_jax.specs.layout import Layout
from tools import gpu_mesh_check
from tools.gpu_mesh_layout import SMALL, judged, run_layout


def test_every_layout_of_as_many_devices_as_there_are() -> None:
    assert gpu_mesh_check.layouts(1) == [Layout()]
    assert gpu_mesh_check.layouts(3) == [Layout(), Layout(1, 1, 2), Layout(1, 2, 1), Layout(2, 1, 1)]
    eight = gpu_mesh_check.layouts(8)
    assert len(eight) == len(set(eight)) == 1 + 3 + 6 + 10
    assert Layout(2, 2, 2) in eight and Layout(8, 1, 1) in eight and Layout(1, 4, 2) in eight


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one")
    found = list[dict[str, object]]()
    run_layout(Layout(), replace(SMALL, timed=None), folder, found.append)
    assert [one["passed"] for one in found] == [True]
    return folder


@pytest.mark.parametrize(
    ("layout", "layers", "own"), [(Layout(2, 2, 2), 4, set()), (Layout(tp=2), 8, {"halves_ms"})], ids=str
)
def test_a_layout_is_compared_with_one_device_and_timed(
    reference: Path, layout: Layout, layers: int, own: set[str]
) -> None:
    found = list[dict[str, object]]()
    run_layout(layout, SMALL, reference, found.append)
    assert "error" not in {name for one in found for name in one}, found
    assert found[0]["passed"] and str(found[0]["detail"]).startswith("4 of 4 requests equal")
    assert ("halves" in str(found[0]["detail"])) == bool(own)
    numbers = {name: value for one in found[1:] for name, value in one.items()}
    assert set(numbers) == {"decode_ms", "host_ms", "prefill_ms", "slices_ms", "layers"} | own
    assert all(isinstance(value, int | float) and value > 0 for value in numbers.values())
    assert numbers["layers"] == layers


def test_wrong_tokens_and_wrong_logits_fail() -> None:
    tokens, logits = np.array([[1, 2], [3, 4]]), np.array([[1.0, 2.0], [0.5, 0.0]])
    assert judged(tokens, logits, tokens, logits + 1e-4)["passed"]
    assert not judged(tokens, logits, tokens, logits + 1e-2)["passed"]
    assert not judged(tokens, logits * np.nan, tokens, logits)["passed"]
    other = judged(tokens + [[0, 0], [0, 1]], logits, tokens, logits)
    assert not other["passed"] and str(other["detail"]).startswith("1 of 2")


def test_the_command_runs_each_layout_in_a_process(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_mesh_check.main(["--small", "--no-speed", "--layouts", "3x1x1", "--out", str(tmp_path)]) == 1
    stated = json.loads((tmp_path / "gpu_mesh_check.json").read_text())
    assert stated["machine"]["devices"] == 8
    one, three = stated["layouts"]
    assert (one["name"], one["passed"], one["errors"]) == ("1x1x1", True, [])
    assert three["passed"] is None and "not divisible by tp=3" in three["errors"][0]
    assert "1 layouts passed, 1 failed" in capsys.readouterr().out


def test_without_a_gpu_nothing_is_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu_mesh_check, "run_one", lambda *_: dict(platform="cpu", devices=1))
    assert gpu_mesh_check.main(["--out", str(tmp_path)]) == NO_GPU
    assert "nothing was checked" in capsys.readouterr().err


def test_a_process_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = subprocess.Popen
    sleeping = [sys.executable, "-c", "import time; time.sleep(60)"]
    monkeypatch.setattr(subprocess, "Popen", lambda command, **more: real(sleeping, **more))
    result = gpu_mesh_check.LayoutResult(Layout(2, 1, 1))
    gpu_mesh_check.run_one(result, tmp_path, 0.2)
    assert result.errors == ["not done in 0 s"] and result.failed and result.seconds < 30


@pytest.mark.parametrize("text", ["2x2", "ax1x1", "0x1x1"])
def test_bad_layouts_are_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        gpu_mesh_check.main(["--layouts", text])
    assert ended.value.code == 2 and "Traceback" not in capsys.readouterr().err
