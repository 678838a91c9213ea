from __future__ import annotations

import math

import pytest

from research.reproduce.isolated import fitted
from research.reproduce.presets import PRESETS
from research.reproduce.published import KI, TTFT_512, TTFT_2048
from research.reproduce.report import Comparison, PresetRun, Reproduction

QUICK = {name: PRESETS[name](PresetRun()) for name in ("isolated", "spp", "kvp", "chunks", "pareto")}


def row(found: Reproduction, what: str) -> Comparison:
    (one,) = (row for row in found.rows if row.what == what)
    return one


@pytest.mark.parametrize("name", QUICK)
def test_a_preset_compares_figures_with_what_was_published(name: str) -> None:
    found = QUICK[name]
    assert found.name == name
    assert len({one.what for one in found.rows}) == len(found.rows)
    assert all(math.isfinite(one.simulated) for one in found.rows)
    for one in found.rows:
        if one.published:
            assert one.ratio == one.simulated / one.published
        else:
            assert one.ratio is None


def test_only_the_isolated_ttfts_of_chunk_2048_are_fitted() -> None:
    kinds = {one.what for found in QUICK.values() for one in found.rows if one.kind == "fitted"}
    assert kinds
    assert all(what.startswith("TTFT, chunk 2,048") for what in kinds)


def test_the_fit_is_good_and_says_something_about_smaller_chunks() -> None:
    system = fitted()
    used = system.cost.used
    assert 0 < used.attention <= 1
    assert 0 < used.matmul <= 1
    for prompt, seconds in TTFT_2048.items():
        assert system.ttft(prompt, 2048) == pytest.approx(seconds, rel=0.15)
    ratios = [system.ttft(prompt, 512) / seconds for prompt, seconds in TTFT_512.items() if prompt <= 128 * KI]
    assert all(1.0 < ratio < 1.4 for ratio in ratios)
    found = QUICK["isolated"]
    assert row(found, "TTFT, chunk 512, 1M tokens, blocks of 64 queries").ratio == pytest.approx(1.1, abs=0.1)


def test_more_groups_save_time_a_token_at_ten_million() -> None:
    found = QUICK["kvp"]
    assert row(found, "TPOT saved by 2 groups").simulated == pytest.approx(0.47, abs=0.05)
    assert row(found, "TPOT, 4 groups, against the bound of the first version").simulated < 0.03


def test_an_adaptive_chunk_is_never_beaten_by_a_static_one() -> None:
    series = QUICK["pareto"].series
    for longest, ttft in series["static"]:
        assert not any(longest < at and ttft < total * 0.999 for at, total in series["adaptive"])


@pytest.mark.parametrize("name", ["attainment", "systems", "capacity", "ablation", "3d"])
def test_traffic_presets_run_through(name: str) -> None:
    told: list[str] = []
    found = PRESETS[name](
        PresetRun(duration={"3d": 30}.get(name, 8), seed=1, tell=lambda about, *rest: told.append(about))
    )
    assert found.rows
    assert all(math.isfinite(one.simulated) for one in found.rows)
    assert len(set(told)) > 1
