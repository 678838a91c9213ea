from __future__ import annotations

import pytest

from medha_jax.results import Repeat, ResultsError, Run, interval
from medha_jax.results.run import distinct
from tests.results.recorded import convoy, recorded, run


def test_figures_of_repeats_are_means_with_intervals() -> None:
    one = run("lars", convoy(0.4), convoy(0.5), convoy(0.6))
    medians = [summary.kinds["short"].ttft.median for summary in one.summaries]
    assert medians == pytest.approx([0.399, 0.499, 0.599])
    assert one.of_kind("short")["median_ttft_ms"] == interval([1000 * median for median in medians])
    assert one.figures["completed"].mean == 6
    assert one.figures["completed"].half == 0
    assert (one.kinds(), one.lengths()) == (["short", "long"], ["< 256", "16K - 64K"])
    assert one.of_length("16K - 64K")["median_ttft_ms"].mean == pytest.approx(60_000)


def test_figures_that_only_some_repeats_have_are_means_of_those() -> None:
    nothing = Repeat(tuple(record for record in recorded() if record.status != "ok"))
    both = run("x", Repeat(tuple(recorded())), nothing)
    assert both.figures["median_ttft_ms"] == interval([500.0])
    assert both.figures["completed"].mean == 1.5
    assert "client_lagged" not in both.figures


def test_a_run_needs_a_repeat() -> None:
    with pytest.raises(ResultsError, match="run 'x' has no repeats"):
        Run("x", (), {}, {})


def test_equal_names_are_told_apart_and_stay_one_series() -> None:
    runs = distinct([run("a", convoy(1)), run("a", convoy(2)), run("b", convoy(3)), run("a", convoy(4), series="s")])
    assert [one.name for one in runs] == ["a", "a (2)", "b", "a (3)"]
    assert [one.series for one in runs] == [None, "a", None, "s"]
