from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from medha_jax.cli import run
from medha_jax.cli.plan import token_count
from medha_jax.config import load_mesh
from tests.cli.command import CONFIG


def test_a_cluster_is_planned_and_the_layout_written(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "chosen.yaml"
    assert run(["plan", "--devices", "128", "--context", "10M", "--write", str(path)]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("Estimated: llama3-8b, requests of up to 10,485,760 tokens")
    assert "heads 32 is not divisible by tp=64" in printed.out
    assert "Assumed, not measured: price" in printed.out
    assert "more than the model's own 131,072" in printed.err
    mesh = load_mesh(str(path))
    assert 128 % (mesh.tp * mesh.spp * mesh.kvp) == 0
    assert f"tp={mesh.tp},spp={mesh.spp},kvp={mesh.kvp}" in printed.out


def test_json_has_every_layout_with_its_figures_or_the_reason(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--model", "qwen3-8b", "--hardware", "h200", "--devices", "8", "--context", "256K"]
    assert run(["plan", *options, "--slo-ttft-s", "30", "--slo-tpot-ms", "25", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["estimated"] is True
    assert "price" in said["assumed"]
    assert len(said["layouts"]) + len(said["refused"]) == 35
    assert sum(layout["chosen"] for layout in said["layouts"]) == 1
    front = [layout for layout in said["layouts"] if layout["front"]]
    assert front
    assert all(layout["head_room_bytes"] >= 0 for layout in said["layouts"])
    assert min(layout["ttft_s"] for layout in front) == min(layout["ttft_s"] for layout in said["layouts"])
    assert all(reason["reason"] for reason in said["refused"])


@pytest.mark.parametrize(
    ("choose", "figure"), [("ttft", "ttft_s"), ("tpot", "tpot_s"), ("cost", "usd_per_million_tokens")]
)
def test_the_chosen_layout_is_best_in_what_was_asked(
    capsys: pytest.CaptureFixture[str], choose: str, figure: str
) -> None:
    assert run(["plan", "--devices", "8", "--context", "64K", "--choose", choose, "--json"]) == 0
    layouts = json.loads(capsys.readouterr().out)["layouts"]
    (chosen,) = (layout for layout in layouts if layout["chosen"])
    assert chosen[figure] == min(layout[figure] for layout in layouts)


def test_the_chosen_layout_keeps_the_targets_if_any_does(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--model", "llama3-70b", "--devices", "64", "--context", "2M", "--choose", "ttft", "--json"]
    for target, kept in ((30, True), (1, False)):
        assert run(["plan", *options, "--slo-tpot-ms", str(target)]) == 0
        printed = capsys.readouterr()
        layouts = json.loads(printed.out)["layouts"]
        (chosen,) = (layout for layout in layouts if layout["chosen"])
        keeping = [layout["ttft_s"] for layout in layouts if layout["tpot_s"] <= target / 1000]
        assert bool(keeping) == kept
        assert chosen["ttft_s"] == min(keeping or [layout["ttft_s"] for layout in layouts])
        assert ("no layout keeps the targets" in printed.err) != kept


def test_a_model_of_ones_own_from_its_config(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(CONFIG))
    options = ["--model", str(path), "--hardware", "cpu", "--dtype", "float32", "--context", "200", "--devices", "2"]
    assert run(["plan", *options]) == 0
    assert "tp=2,spp=1,kvp=1" in capsys.readouterr().out


def test_what_fits_nowhere_says_why_and_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", "--model", "llama3-405b", "--devices", "4", "--context", "1M"]) == 1
    out = capsys.readouterr().out
    assert "do not fit" in out
    assert "GiB" in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "gpt"], "cannot read model 'gpt'"),
        (["--hardware", "tpu"], "there is no hardware 'tpu'"),
        (["--context", "ten"], "'ten' is no number of tokens"),
        (["--context", "0"], "'0' is no number of tokens"),
        (["--context", "2048M"], "up to 1024M"),
        (["--devices", "0"], "--devices"),
        (["--workload", "7"], "there is no mix '7'"),
        (["--slo-tpot-ms", "0"], "--slo-tpot-ms"),
        (["--plot", "plan.txt"], "allowed are .svg, .png, .pdf"),
        (["--hardware", "cpu", "--dtype", "float16"], "float16"),
    ],
)
def test_bad_input_gets_one_line(capsys: pytest.CaptureFixture[str], options: list[str], message: str) -> None:
    assert run(["plan", *options]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_counts_of_tokens_may_have_units() -> None:
    assert [token_count(text) for text in ("131072", "128k", "10M", " 1 ".strip())] == [131072, 131072, 10 * 2**20, 1]


def test_a_plot_is_drawn_where_matplotlib_is(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "plan.svg"
    drawn = run(["plan", "--devices", "8", "--context", "64K", "--plot", str(path)])
    if "matplotlib" in sys.modules:
        assert drawn == 0
        assert path.read_text(encoding="utf-8").lstrip().startswith("<?xml")
    else:
        assert drawn == 2
        assert "pip install 'medha-jax[plot]'" in capsys.readouterr().err
