"""The report in a real browser: nothing goes wrong in it, and every plot can be seen."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from medha_jax.results import Repeat, write_report
from tests.results.recorded import convoy, recorded, run

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "headless_shell")
# What a screen of the width shows of every plot, and what went wrong.
SCRIPT = """
<script>
const errors = [];
addEventListener("error", event => errors.push(String(event.message)), true);
addEventListener("securitypolicyviolation", event => errors.push(event.violatedDirective + " " + event.blockedURI));
addEventListener("load", () => {
  const plots = [...document.querySelectorAll("svg")].map(svg => {
    const box = svg.getBoundingClientRect(), view = svg.closest(".scroll").getBoundingClientRect();
    const texts = [...svg.querySelectorAll("text")];
    const drawn = [...svg.querySelectorAll("path, use")].filter(e => e.getBBox().width + e.getBBox().height > 0);
    return {width: box.width, height: box.height, seen: view.width, texts: texts.length, drawn: drawn.length,
      smallest: Math.min(...texts.map(text => text.getBoundingClientRect().height))};
  });
  const wide = document.documentElement.scrollWidth - innerWidth;
  document.body.innerHTML = "<pre id=found>" + JSON.stringify({plots, errors, wide}) + "</pre>";
});
</script>
"""


@pytest.fixture(scope="module")
def browser() -> str:
    pytest.importorskip("matplotlib", reason="plots need matplotlib")
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no Chromium here (looked for {', '.join(NAMES)})")
    return found


def look(browser: str, tmp_path: Path, page: Path, width: int, *flags: str) -> subprocess.CompletedProcess[str]:
    """Open a page, and wait until it is loaded."""
    command = [browser, "--headless", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"]
    command += ["--enable-logging=stderr", f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},1000"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        command.append("--no-sandbox")  # which Chromium cannot have for root
    return subprocess.run(
        [*command, *flags, page.as_uri()], capture_output=True, text=True, encoding="utf-8", timeout=120, check=True
    )


def console(stderr: str) -> list[str]:
    """What the page wrote to the console."""
    return [line for line in stderr.splitlines() if "CONSOLE" in line]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory, browser: str) -> Path:
    many = Repeat(tuple(recorded()) + convoy(3).records)
    runs = [run("fcfs", convoy(60), rate=1.0), run("lars", convoy(0.4), convoy(0.5), rate=2.0), run("mixed", many)]
    return write_report(tmp_path_factory.mktemp("report"), runs, "A convoy")


def test_a_browser_shows_the_report_without_an_error(browser: str, report: Path, tmp_path: Path) -> None:
    picture = tmp_path / "page.png"
    done = look(browser, tmp_path, report, 1280, f"--screenshot={picture}")
    assert console(done.stderr) == []
    assert picture.stat().st_size > 20_000  # an empty page of this size has 5,000 bytes


def test_errors_of_a_page_would_be_seen(browser: str, tmp_path: Path) -> None:
    page = tmp_path / "broken.html"
    page.write_text("<!DOCTYPE html><title>x</title><script>missing()</script>")
    done = look(browser, tmp_path, page, 500, "--dump-dom")
    assert any("missing is not defined" in line for line in console(done.stderr))


@pytest.mark.parametrize("width", [1280, 500])  # a window of Chromium is at least 500 wide
def test_every_plot_is_seen_at_a_readable_size(browser: str, report: Path, tmp_path: Path, width: int) -> None:
    text = report.read_text(encoding="utf-8")
    assert "default-src 'none'" in text
    # the policy stays what it is, but for the script that looks
    page = tmp_path / "looked_at.html"
    text = text.replace("default-src 'none'", "default-src 'none'; script-src 'unsafe-inline'")
    page.write_text(text.replace("</head>", f"{SCRIPT}</head>", 1), encoding="utf-8")
    done = look(browser, tmp_path, page, width, "--dump-dom")
    match = re.search(r'<pre id="found">(.*?)</pre>', done.stdout)
    assert match is not None, done.stdout[-2000:]
    found = json.loads(match.group(1))
    assert found["errors"] == []
    assert console(done.stderr) == []
    assert found["wide"] <= 0  # nothing but the insides of figures and tables scrolls sideways
    assert len(found["plots"]) == 7
    for plot in found["plots"]:
        assert plot["width"] > 350
        assert plot["height"] > 100
        assert plot["seen"] >= min(plot["width"], 300)
        assert plot["texts"] >= 5
        assert plot["drawn"] >= 10
        assert plot["smallest"] >= 8
