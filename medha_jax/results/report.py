"""One self-contained page for one or more runs: configuration, tables, plots. It loads nothing from the network."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template

from medha_jax.results.drawing import Plot
from medha_jax.results.page import PAGE
from medha_jax.results.plots import draw
from medha_jax.results.run import JSON, Run, distinct
from medha_jax.results.tables import NOTHING, Table, run_tables
from medha_jax.results.units import milliseconds, number, seconds, share

REPORT = "report.html"
WITHOUT_PLOTS = "There are no plots, because matplotlib is not installed: pip install 'medha-jax[plot]'"


def write_report(directory: Path | str, runs: Sequence[Run], title: str = "") -> Path:
    """Write `report.html`, and a PNG of each plot beside it.

    Args:
        directory: created if missing.
        runs: shown side by side; ratios are to the first.
        title: of the page; "" for the runs' names.

    Returns:
        Path of the page.

    Raises:
        ValueError: there are no runs.
    """
    if not runs:
        raise ValueError("a report of no runs")
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    named = distinct(runs)
    try:
        plots, missing = draw(named), ""
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != "matplotlib":
            raise
        plots, missing = [], WITHOUT_PLOTS
    for plot in plots:
        (folder / f"{plot.name}.png").write_bytes(plot.png)
    path = folder / REPORT
    path.write_text(page(named, title or ", ".join(run.name for run in named), plots, missing), encoding="utf-8")
    return path


def page(runs: Sequence[Run], title: str, plots: Sequence[Plot], missing: str = "") -> str:
    """The page's HTML.

    Args:
        runs: of distinct names.
        title: of the page.
        plots: to show.
        missing: why there are no plots.
    """
    notes = [*_warnings(runs), *([missing] if missing else [])]
    return Template(PAGE).substitute(
        title=escape(title),
        lead=escape(_lead(runs)),
        notes="".join(f'<p class="note" role="note">{escape(note)}</p>' for note in notes),
        cards=_cards(runs[0]) if len(runs) == 1 else "",
        plots="".join(map(_figure, plots)),
        tables="".join(map(_table, run_tables(runs))),
        settings=_table(_settings("Configuration", runs, [run.config for run in runs])),
        stamps=_table(_settings("Made with", runs, [run.stamp for run in runs])),
    )


def _lead(runs: Sequence[Run]) -> str:
    """The machine and the time, of the first run."""
    stamp = runs[0].stamp
    versions = stamp.get("versions")
    version = versions.get("medha-jax") if isinstance(versions, Mapping) else None
    cores = stamp.get("cores")
    parts = [stamp.get("started"), stamp.get("cpu"), f"{cores} cores" if cores else None]
    return " · ".join(str(part) for part in [*parts, f"medha-jax {version}" if version else None] if part)


def _warnings(runs: Sequence[Run]) -> Iterator[str]:
    """Reasons to trust the figures less."""
    late = [(run.name, one) for run in runs for one in (s.lateness for s in run.summaries) if one and one.lagged]
    if late:
        words = (f"{name}: {seconds(one.p99)}, allowed {seconds(one.allowed or 0)}" for name, one in late)
        yield f"The client lagged: the load was not quite the planned one (P99 of lateness; {'; '.join(words)})."
    for status, what in (("failed", "Requests failed"), ("unfinished", "Requests were unfinished when the run ended")):
        counts = [(run, sum(getattr(one.total, status) for one in run.summaries)) for run in runs]
        words = (f"{run.name}: {n:,} of {sum(one.total.requests for one in run.summaries):,}" for run, n in counts if n)
        if any(n for _, n in counts):
            yield f"{what}; times are those of the others ({'; '.join(words)})."
    if len({(run.stamp.get("cpu"), run.stamp.get("cores")) for run in runs}) > 1:
        yield "These runs were made on different machines."


def _cards(run: Run) -> str:
    """The most important figures."""
    wanted = (
        ("TTFT, median", "median_ttft_ms", milliseconds),
        ("TTFT, P99", "p99_ttft_ms", milliseconds),
        ("TPOT, median", "median_tpot_ms", milliseconds),
        ("TPOT, P99", "p99_tpot_ms", milliseconds),
        ("output tokens/s", "output_throughput", number),
        ("attainment", "attainment", share),
    )
    figures = run.figures
    cards = [(label, shown(figures[name])) for label, name, shown in wanted if name in figures]
    return "".join(f"<div><dt>{escape(label)}</dt><dd>{escape(value)}</dd></div>" for label, value in cards)


def _figure(plot: Plot) -> str:
    """A plot with its title, and a description for readers who cannot see it."""
    wide = " wide" if plot.wide else ""
    title, about = escape(plot.title), escape(plot.about)
    return (
        f'<figure class="plot{wide}"><figcaption><strong>{title}</strong></figcaption>'
        f'<div class="scroll" tabindex="0" role="region" aria-label="{title}">{_inline(plot)}</div>'
        f'<p class="about">{about}</p></figure>'
    )


def _inline(plot: Plot) -> str:
    """The picture as an element of the page, with a name for screen readers and unique ids."""
    svg = plot.svg[plot.svg.index("<svg") :]
    svg = re.sub(r'\bid="', f'id="{plot.name}-', svg)
    svg = re.sub(r'(href="|url\()#', rf"\g<1>#{plot.name}-", svg)
    head, body = svg.split(">", 1)
    width = re.search(r'width="([\d.]+)pt"', head)
    head = re.sub(r' (?:width|height)="[\d.]+pt"', "", head)
    # no wider than in print; below half of that, text would be too small to read
    points = float(width.group(1)) if width else 460.0
    style = f"max-width:{1.6 * points:.0f}px;min-width:{min(points, 620) * 0.85:.0f}px"
    described = f'role="img" aria-labelledby="{plot.name}-title {plot.name}-desc" style="{style}"'
    names = f'<title id="{plot.name}-title">{escape(plot.title)}</title>'
    names += f'<desc id="{plot.name}-desc">{escape(plot.about)}</desc>'
    return f"{head} {described}>{names}{body}"


def _table(table: Table) -> str:
    """A table with its title and note."""
    if not table.rows:
        return ""
    note = f'<p class="about">{escape(table.note)}</p>' if table.note else ""
    title = escape(table.title)
    if len(table.columns) == 2:
        pairs = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in table.rows)
        return f'<section><h2>{title}</h2><dl class="pairs">{pairs}</dl>{note}</section>'

    def cell(place: int, text: str) -> str:
        tag = 'th scope="row"' if place == 0 else "td"
        kind = ' class="word"' if place < table.words else ""
        return f"<{tag}{kind}>{escape(text)}</{tag.split()[0]}>"

    heads = "".join(
        f'<th scope="col"{" class=word" if place < table.words else ""}>{escape(head)}</th>'
        for place, head in enumerate(table.columns)
    )
    rows = "".join(f"<tr>{''.join(cell(i, text) for i, text in enumerate(row))}</tr>" for row in table.rows)
    return (
        f'<section><h2>{title}</h2><div class="scroll" tabindex="0" role="region" aria-label="{title}">'
        f"<table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>{note}</section>"
    )


def _settings(title: str, runs: Sequence[Run], settings: Sequence[Mapping[str, JSON]]) -> Table:
    """Settings by name: one column if all runs agree, else one per run."""
    flat = [dict(_flat(of)) for of in settings]
    names = list(dict.fromkeys(name for of in flat for name in of))
    heads: tuple[str, ...] = ("", *(run.name for run in runs))
    if all(of == flat[0] for of in flat):
        flat, heads = flat[:1], ("", "")
    rows = tuple((name, *(of.get(name, NOTHING) for of in flat)) for name in names)
    return Table(title, heads, rows, words=len(heads))


def _flat(settings: Mapping[str, JSON], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Settings that have a value, named with their sections."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, list | tuple):
            yield f"{prefix}{name}", " ".join(map(str, value))
        elif isinstance(value, float):
            yield f"{prefix}{name}", f"{value:.6g}"
        elif value is not None:
            yield f"{prefix}{name}", str(value)
