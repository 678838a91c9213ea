from __future__ import annotations

import json
from pathlib import Path

import pytest

from research.reproduce import __main__ as command


def run(monkeypatch: pytest.MonkeyPatch, *options: str) -> None:
    monkeypatch.setattr("sys.argv", ["reproduce", *options])
    command.main()


def test_a_preset_prints_published_and_simulated_figures(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, "kvp")
    out = capsys.readouterr().out
    assert out.startswith("Simulated: A token of output at 10M tokens")
    assert "predicted" in out
    run(monkeypatch, "kvp", "--json")
    said = json.loads(capsys.readouterr().out)
    assert said["simulated"] is True
    assert {"what", "published", "simulated", "ratio", "kind"} <= set(said["rows"][0])


def test_a_preset_with_lines_is_drawn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run(monkeypatch, "pareto", "--plot", str(tmp_path / "lines.svg"))
    assert "<svg" in (tmp_path / "lines.svg").read_text()


@pytest.mark.parametrize("options", [("none",), ("kvp", "--duration", "0"), ("kvp", "--seed", "-1")])
def test_what_there_is_not_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], options: tuple[str, ...]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, *options)
    assert ended.value.code == 2
    assert "error: " in capsys.readouterr().err
