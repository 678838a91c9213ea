from __future__ import annotations

import re
import sys
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from medha_jax.results import Repeat, Run, write_report
from medha_jax.results.report import WITHOUT_PLOTS
from medha_jax.results.report import page as frame
from tests.results.recorded import convoy, recorded, run

VOID = {"meta", "link", "br", "img", "input", "hr"}
HOSTILE = "<script>alert(1)</script>\"'&${title}"


class Page(HTMLParser):
    """The elements of a page; fails where they are not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def page(directory: Path, *runs: Run, title: str = "") -> Page:
    return Page(write_report(directory, runs, title).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Page]:
    pytest.importorskip("matplotlib", reason="plots need matplotlib")
    folder = tmp_path_factory.mktemp("report") / "new"
    runs = [run("fcfs", convoy(60), rate=1.0), run("lars", convoy(0.4), convoy(0.5), rate=2.0)]
    return folder, page(folder, *runs, title="A convoy")


def test_a_report_has_every_plot_with_a_png_beside_it(compared: tuple[Path, Page]) -> None:
    folder, found = compared
    names = ["convoy", "goodput", "cdf_ttft", "cdf_tpot", "timeline_1", "timeline_2"]
    assert found.tags["svg"] == found.tags["figure"] == len(names)
    assert {path.stem for path in folder.glob("*.png")} == set(names)
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in folder.glob("*.png"))
    for words in ("TTFT (log scale)", "requests within that time", "offered, requests/s", "seconds since the start"):
        assert words in found.text


def test_a_report_is_one_file_that_needs_no_network(compared: tuple[Path, Page]) -> None:
    _, found = compared
    assert found.tags["script"] == found.tags["link"] == found.tags["img"] == found.tags["iframe"] == 0
    for tag, name, value in found.attributes:
        if name in ("src", "href", "xlink:href", "srcset", "action", "style"):
            # names of the document itself, data, and colours
            assert value.startswith(("#", "data:image/png;base64,")) or name == "style", (tag, name, value)
            assert "url(" not in value.replace("url(#", ""), (tag, name, value)


def test_every_picture_has_a_name_and_a_description(compared: tuple[Path, Page]) -> None:
    _, found = compared
    ids = [value for _, name, value in found.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    labels = [value for tag, name, value in found.attributes if (tag, name) == ("svg", "aria-labelledby")]
    assert len(labels) == 6
    for label in labels:
        assert set(label.split()) <= set(ids)
    references = [value[1:] for _, name, value in found.attributes if name == "xlink:href" and value.startswith("#")]
    references += [part for _, _, value in found.attributes for part in re.findall(r"url\(#([^)]*)\)", value)]
    assert set(references) <= set(ids)
    assert "Median TTFT of the short requests of each run: fcfs 60.0 s, lars 444 ms." in found.text
    assert ("html", "lang", "en") in found.attributes
    assert found.tags["h1"] == 1


def test_the_configuration_and_the_stamp_are_shown(compared: tuple[Path, Page]) -> None:
    _, found = compared
    for words in ("workload.source", "medha-5pct", "policy", "2026-03-04T05:06:07+00:00", "bench convoy", "cores"):
        assert words in found.text


def test_nothing_that_is_told_becomes_html(tmp_path: Path) -> None:
    records = [replace(record, kind=HOSTILE if record.kind == "short" else record.kind) for record in recorded()]
    records[3] = replace(records[3], error=HOSTILE)
    told = {HOSTILE: HOSTILE}
    hostile = Run(HOSTILE, (Repeat(tuple(records)),), told, {"started": HOSTILE, "cpu": HOSTILE}, 1.0, HOSTILE)
    text = write_report(tmp_path, [hostile, replace(hostile, rate=2.0)], HOSTILE).read_text(encoding="utf-8")
    assert "<script" not in text
    assert Page(text).tags["script"] == 0
    assert HOSTILE in Page(text).text


def test_what_makes_figures_doubtful_is_said() -> None:
    late = tuple(replace(record, sent=record.sent + 0.5, ended=record.ended + 1) for record in recorded())
    other = replace(run("two", convoy(1)), stamp={"cpu": "another", "cores": 64})
    found = Page(frame([run("one", Repeat(late)), other], "", []))
    lagged = "The client lagged: the load was not quite the planned one"
    assert f"{lagged} (P99 of lateness; one: 510 ms, allowed 35.0 ms)." in found.text
    assert "Requests failed; times are those of the others (one: 1 of 6)." in found.text
    assert "Requests were unfinished when the run ended; times are those of the others (one: 1 of 6)." in found.text
    assert "These runs were made on different machines." in found.text
    assert "lagged" not in Page(frame([run("two", convoy(1))], "", [])).text


def test_without_matplotlib_the_tables_come_and_a_line_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    found = page(tmp_path, run("lars", convoy(0.4)))
    assert WITHOUT_PLOTS in found.text
    assert "pip install 'medha-jax[plot]'" in WITHOUT_PLOTS
    assert found.tags["svg"] == 0
    assert "Times by kind" in found.text
    assert list(tmp_path.iterdir()) == [tmp_path / "report.html"]


def test_runs_without_anything_to_draw_have_a_report(tmp_path: Path) -> None:
    assert page(tmp_path, run("x", Repeat(()))).tags["svg"] == 0
    failed = tuple(replace(record, status="failed", outputs=(), error="x") for record in recorded())
    assert "Failures" in page(tmp_path, run("x", Repeat(failed)), run("y", Repeat(failed))).text
    with pytest.raises(ValueError, match="a report of no runs"):
        write_report(tmp_path, [])
