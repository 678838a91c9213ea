from __future__ import annotations

import math
from dataclasses import replace

import pytest

from medha_jax.results import RequestRecord, summarise
from medha_jax.results.group import LENGTHS, length_class
from tests.results.recorded import recorded

FIRST = recorded()[0]


def test_every_figure_is_the_one_computed_by_hand() -> None:
    flat = summarise(recorded()).flat()
    duration = 5.1 - 0.5  # first sending to last end
    expected = {
        "duration": duration,
        "requests": 6,
        "completed": 3,
        "failed": 1,
        "cancelled": 1,
        "unfinished": 1,
        "total_input_tokens": 5400,
        "total_output_tokens": 7,
        "request_throughput": 3 / duration,
        "input_throughput": 5400 / duration,
        "output_throughput": 7 / duration,
        "total_token_throughput": 5407 / duration,
        "request_goodput": 1 / duration,
        "attainment": 1 / 4,
        # TTFT of 0.2, 0.5 and 4 s: places 1.8, 1.9 and 1.98 of two
        "mean_ttft_ms": 4700 / 3,
        "median_ttft_ms": 500,
        "std_ttft_ms": 1000 * math.sqrt((0.2**2 + 0.5**2 + 4**2) / 3 - (4.7 / 3) ** 2),
        "p90_ttft_ms": 500 + 0.8 * 3500,
        "p95_ttft_ms": 500 + 0.9 * 3500,
        "p99_ttft_ms": 500 + 0.98 * 3500,
        "max_ttft_ms": 4000,
        # TPOT of 0.2 and 0.5 s
        "mean_tpot_ms": 350,
        "median_tpot_ms": 350,
        "std_tpot_ms": 150,
        "p99_tpot_ms": 200 + 0.99 * 300,
        # gaps of 0.2, 0.4 and 0.5 s
        "mean_itl_ms": 1100 / 3,
        "median_itl_ms": 400,
        "p99_itl_ms": 400 + 0.98 * 100,
        # E2EL of 0.2, 1.1 and 4.5 s
        "mean_e2el_ms": 5800 / 3,
        "median_e2el_ms": 1100,
        "p99_e2el_ms": 1100 + 0.98 * 3400,
        "median_normalised_ttft": 2.0,
        "median_queue_ms": 100,
        "longest_wait_s": 4.0,
        "preemptions": 3,
        "cached_tokens": 64,
        # 0.01 s once in six: place 4.95 of five
        "p50_lateness_ms": 0,
        "p99_lateness_ms": 9.5,
        "max_lateness_ms": 10,
        "allowed_lateness_ms": 35,  # 5 % of 3.5 s / 5
        "client_lagged": False,
        "max_concurrent_requests": 3,
    }
    assert {name: flat[name] for name in expected} == {
        name: pytest.approx(value, abs=1e-9) for name, value in expected.items()
    }


def test_vllms_names_are_all_there() -> None:
    flat = summarise(recorded()).flat()
    names = {"request_throughput", "request_goodput", "output_throughput", "total_token_throughput", "duration"}
    names |= {"completed", "failed", "total_input_tokens", "total_output_tokens", "max_concurrent_requests"}
    parts, times = ("mean", "median", "std", "p99"), ("ttft", "tpot", "itl", "e2el")
    names |= {f"{part}_{time}_ms" for part in parts for time in times}
    assert names <= set(flat)


def test_groups_are_by_kind_and_by_length() -> None:
    summary = summarise(recorded())
    assert {kind: (group.requests, group.completed) for kind, group in summary.kinds.items()} == {
        "short": (5, 2),
        "long": (1, 1),
    }
    assert list(summary.lengths) == ["< 256", "256 - 1K", "4K - 16K"]
    assert summary.kinds["long"].attainment == 0.0
    assert summary.kinds["short"].attainment == pytest.approx(1 / 3)
    assert summary.errors == {"boom <b>": 1}


@pytest.mark.parametrize(
    ("tokens", "name"),
    [(0, "< 256"), (255, "< 256"), (256, "256 - 1K"), (1023, "256 - 1K"), (1024, "1K - 4K"), (1_048_575, "256K - 1M")],
)
def test_length_classes_begin_with_their_lower_edge(tokens: int, name: str) -> None:
    assert length_class(tokens) == name
    assert length_class(10_000_000) == LENGTHS[-1] == ">= 1M"


def test_an_unfinished_request_misses_a_deadline_that_has_passed() -> None:
    assert summarise(recorded(deadline=1.0)).attainment == pytest.approx(1 / 5)


def test_probes_are_no_part_of_the_totals() -> None:
    probe = replace(FIRST, kind="probe", index=9, sent=1.0, outputs=((1.05, 1),), ended=50.0, deadline_s=0.01)
    plain, probed = summarise(recorded()), summarise([*recorded(), probe])
    assert probed.kinds["probe"].completed == 1
    for name in ("requests", "duration", "request_throughput", "mean_ttft_ms", "attainment", "max_concurrent_requests"):
        assert probed.flat()[name] == plain.flat()[name]
    assert probed.lengths == plain.lengths


def test_a_window_counts_what_ended_and_times_what_was_due_in_it() -> None:
    summary = summarise(recorded(), window=(0.9, 3.05))
    # two requests ended in it, with 400 and 5 tokens; those due in it are the first, the second and the failed one
    assert (summary.finished, summary.input_tokens, summary.output_tokens) == (2, 400, 5)
    assert summary.flat()["request_throughput"] == pytest.approx(2 / 2.15)
    assert (summary.total.requests, summary.total.failed) == (3, 1)
    assert summary.flat()["mean_ttft_ms"] == pytest.approx(350)


def test_a_run_without_objectives_has_no_goodput() -> None:
    flat = summarise([replace(r, deadline_s=None, tpot_slo_s=None) for r in recorded()]).flat()
    assert flat["request_goodput"] is None
    assert flat["attainment"] is None


def test_a_run_in_which_nothing_came_has_figures_nevertheless() -> None:
    failed = [replace(r, status="failed", outputs=(), error=None) for r in recorded()]
    flat = summarise(failed).flat()
    assert (flat["completed"], flat["failed"], flat["request_throughput"], flat["mean_ttft_ms"]) == (0, 6, 0.0, None)
    assert summarise(failed).errors == {"without a message": 6}
    nothing = summarise([]).flat()
    assert (nothing["requests"], nothing["duration"], nothing["client_lagged"]) == (0, 0.0, None)


@pytest.mark.parametrize(
    ("gap", "late", "lagged"),
    # the mean gap of a hundred requests that are due `gap` apart; 5 ms, or 5 % of the gap
    [(0.005, 0.0049, False), (0.005, 0.0051, True), (1.0, 0.049, False), (1.0, 0.051, True), (0.0, 9.0, False)],
)
def test_a_late_client_is_flagged(gap: float, late: float, lagged: bool) -> None:
    records: list[RequestRecord] = [
        replace(FIRST, index=i, due=i * gap, sent=i * gap + late, outputs=(), ended=i * gap + late) for i in range(100)
    ]
    lateness = summarise(records).lateness
    assert lateness is not None
    assert lateness.lagged is lagged
    assert (lateness.p50, lateness.p99) == pytest.approx((late, late))


def test_requests_that_follow_each_other_are_not_at_once() -> None:
    records = [replace(FIRST, sent=float(i), ended=float(i + 1)) for i in range(5)]
    assert summarise(records).concurrent == 1
