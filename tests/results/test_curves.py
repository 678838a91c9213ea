from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medha_jax.results import Repeat
from medha_jax.results.curves import (
    POINTS,
    class_names,
    classes,
    cumulative,
    goodput_lines,
    log_ticks,
    medians,
    share_within,
)
from medha_jax.results.metrics import tpot, ttft
from tests.results.recorded import convoy, recorded, run

ONE = run("one", Repeat(tuple(recorded())))


def test_classes_are_kinds_or_if_there_is_one_kind_lengths() -> None:
    assert class_names([ONE]) == ["short", "long"]
    alike = [replace(record, kind="short") for record in recorded()]
    probed = run("x", Repeat((*alike, replace(alike[0], kind="probe"))))
    assert class_names([probed]) == ["< 256", "256 - 1K", "4K - 16K", "probe"]
    assert classes(probed, "256 - 1K", ttft) == pytest.approx([0.2])
    assert classes(probed, "< 256", ttft) == pytest.approx([0.5])  # without the probe
    assert classes(probed, "probe", ttft) == pytest.approx([0.5])


def test_curves_are_of_finished_requests_that_have_the_figure() -> None:
    assert sorted(classes(ONE, "short", ttft)) == pytest.approx([0.2, 0.5])
    assert classes(ONE, "short", tpot) == pytest.approx([0.2])
    assert medians(ONE, ["short", "long", "none"], ttft) == [("short", "350 ms"), ("long", "4.00 s")]


def test_a_curve_rises_to_one_at_each_value() -> None:
    x, y = cumulative(np.array([3.0, 1.0, 2.0, 2.0]))
    assert (x.tolist(), y.tolist()) == ([1, 1, 2, 2, 3], [0, 0.25, 0.5, 0.75, 1.0])


@given(st.integers(1, 5000))
def test_a_long_curve_is_thinned_out_and_stays_true(count: int) -> None:
    values = np.arange(count, dtype=float)
    x, y = cumulative(values)
    assert len(x) <= POINTS + 1
    assert (x[0], x[-1], y[0], y[-1]) == (0, count - 1, 0, 1)
    assert y[1:] == pytest.approx((x[1:] + 1) / count)


@given(st.floats(1e-4, 1e4), st.floats(4.0, 1e6))
def test_logarithmic_axes_have_at_least_three_round_ticks(low: float, factor: float) -> None:
    ticks = log_ticks(low, low * factor)
    assert len(ticks) >= 3
    assert all(low <= tick <= low * factor for tick in ticks)
    assert ticks == sorted(set(ticks))
    mantissas = {round(tick / 10 ** math.floor(math.log10(tick) + 1e-9), 6) for tick in ticks}
    assert mantissas <= {1, 1.5, 2, 3, 5, 7}


def test_goodput_is_drawn_over_rates_by_series() -> None:
    runs = [run(f"{s} {r}", convoy(r / 10), rate=r, series=s) for r in (4.0, 1.0) for s in ("a", "b")]
    lines, key = goodput_lines([*runs, run("no rate", convoy(1))])
    assert key == "request_goodput"
    assert {series: [rate for rate, _ in points] for series, points in lines.items()} == {"a": [1, 4], "b": [1, 4]}
    assert lines["a"][1][1] == runs[0].figures["request_goodput"]
    assert goodput_lines(runs[:2])[0] == {}  # one rate is no line
    bare = [replace(r, deadline_s=None, tpot_slo_s=None) for r in convoy(1).records]
    _, key = goodput_lines([*runs, run("bare", Repeat(tuple(bare)), rate=9.0)])
    assert key == "request_throughput"


def test_the_share_on_time_is_said_in_a_sentence() -> None:
    probe = replace(recorded()[0], kind="probe")
    assert share_within([*recorded(), probe]) == "1 of 4 requests were on time."
    assert share_within([replace(record, deadline_s=None, tpot_slo_s=None) for record in recorded()]) == ""
