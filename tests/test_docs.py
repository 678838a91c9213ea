"""What the documentation names is there: linked pages and headings, files in backticks, every part."""

import re
from pathlib import Path

import pytest

from tools.check_build import declared_imports

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "examples").rglob("*.md")])
PAGES = [page for page in PAGES if "node_modules" not in page.parts]
FOLDERS = ("", "medha_jax", "docs")  # where a name in backticks is looked for


def anchors(page):
    """The names that GitHub gives a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def named_files(text):
    """Paths with a folder and an ending, of words in backticks outside of code blocks."""
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    found = re.findall(r"`([\w./-]+/[\w.-]+\.(?:py|yaml|md|proto|bzl|json))`", prose)
    return [name for name in found if not name.startswith("/")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_files_are_there(page):
    text = page.read_text()
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target
    for name in named_files(text):
        assert any((ROOT / folder / name).exists() for folder in FOLDERS) or (page.parent / name).exists(), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_and_imports_are_there(page):
    text = page.read_text()
    for module in re.findall(r"python -m ([\w.]+)", text):
        if module not in ("pip", "pytest") and page.name != "CHANGELOG.md":  # which names what has gone, too
            path = ROOT / module.replace(".", "/")
            assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module
    for program in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        for line in program.splitlines():
            if line.startswith(("import ", "from ")):
                exec(line, {})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_tables_have_a_line_as_wide_as_their_heads(page):
    """Without it, GitHub shows the bars."""
    prose = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for head, line in re.findall(r"^(\|.*)\n(\|(?:\s*:?-+:?\s*\|)+)$", prose, re.MULTILINE):
        assert head.replace("\\|", "").count("|") == line.count("|"), head


def test_the_architecture_names_every_part():
    text = (ROOT / "docs" / "architecture.md").read_text()
    missing = [part for part in declared_imports(ROOT / "imports.bzl") if f"| `{part}" not in text]
    assert not missing


def test_every_promise_names_a_test_that_is_there():
    text = (ROOT / "docs" / "reliability.md").read_text()
    tables = re.findall(r"^\| promise .*\n\|[-|]+\n((?:\|.*\n)+)", text, re.MULTILINE)
    assert len(tables) == text.count("| promise |")
    rows = [row for table in tables for row in table.splitlines()]
    assert len(rows) > 20
    for row in rows:
        (name,) = re.findall(r"`(tests/[\w/]+\.py)::(\w+)` \|$", row)
        assert f"def {name[1]}(" in (ROOT / name[0]).read_text(), name
