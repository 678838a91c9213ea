from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medha_jax.scheduler.time_model import (
    LATEST_TICKS,
    LEAST_TICKS,
    FittedTimeModel,
    LinearTimeModel,
    TickWork,
    TimeModelError,
    nonnegative_least_squares,
    robust_fit,
    slice_work,
)

TRUE = LinearTimeModel(fixed=5e-3, tokens=2e-5, attention=3e-10, context=4e-9, rows=5e-6)
KEY = {"model": "small", "mesh": "tp=1,spp=1,kvp=1", "dtype": "float32", "device": "cpu"}


def ticks(rng: np.random.Generator, count: int) -> list[TickWork]:
    """Ticks of decodes, of prompts, and of both."""
    works = []
    for _ in range(count):
        decodes, prompt = int(rng.integers(0, 64)), int(rng.choice([0, 64, 512, 2048]))
        context = int(10 ** rng.uniform(2, 6))
        works.append(
            TickWork(
                tokens=64 + prompt,
                attention=float(prompt * context),
                context=float(decodes * rng.integers(10, 8000) + (context if prompt else 0)),
                rows=decodes + bool(prompt),
            )
        )
    return works


def test_seconds_by_hand() -> None:
    work = TickWork(tokens=1000, attention=1e6, context=1e6, rows=100)
    assert TRUE.seconds(work) == pytest.approx(5e-3 + 2e-2 + 3e-4 + 4e-3 + 5e-4)
    many = TRUE.many(*(np.array([x, 0.0]) for x in (1000, 1e6, 1e6, 100)))
    np.testing.assert_allclose(many, [TRUE.seconds(work), 5e-3])
    assert LinearTimeModel().seconds(work) == 0


@given(st.integers(0, 2**32), st.integers(1, 5))
@settings(max_examples=30)
def test_nonnegative_least_squares_is_optimal(seed: int, features: int) -> None:
    """The conditions of Karush, Kuhn and Tucker: no gradient along what is used, none downhill along what is not."""
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(30, features)), rng.normal(size=30)
    x = nonnegative_least_squares(a, b)
    gradient = a.T @ (a @ x - b)
    assert x.min() >= 0
    np.testing.assert_allclose(gradient[x > 0], 0, atol=1e-8)
    assert (gradient > -1e-8).all()


def test_a_feature_that_is_never_seen_costs_nothing() -> None:
    a = np.array([[1.0, 0.0], [2.0, 0.0]])
    np.testing.assert_allclose(nonnegative_least_squares(a, np.array([2.0, 4.0])), [2, 0])


def test_outliers_do_not_count() -> None:
    rng = np.random.default_rng(0)
    a = rng.uniform(1, 2, size=(300, 2))
    b = a @ [1.0, 3.0] * rng.normal(1, 0.01, 300)
    b[::6] *= 5
    np.testing.assert_allclose(robust_fit(a, b), [1, 3], rtol=0.03)
    assert abs(nonnegative_least_squares(a, b)[1] - 3) > 0.3, "they count in the plain fit"


def test_it_learns_what_ticks_take_and_knows_how_well() -> None:
    rng = np.random.default_rng(1)
    model = FittedTimeModel(KEY)
    assert model.median_error is None
    for number, work in enumerate(ticks(rng, 1000)):
        slow = 20 if number % 15 == 0 else 1  # somebody else used the machine
        model.observe(work, TRUE.seconds(work) * rng.normal(1, 0.03) * slow)
    later = ticks(rng, 200)
    errors = [abs(model.seconds(work) / TRUE.seconds(work) - 1) for work in later]
    assert np.median(errors) < 0.01
    assert max(errors) < 0.1
    # noise of 3 % has a median of 0.67 * 3 %
    assert model.median_error == pytest.approx(0.02, abs=0.01)


def test_a_long_time_of_decodes_does_not_make_it_forget_prompts() -> None:
    rng = np.random.default_rng(2)
    model = FittedTimeModel(KEY)
    for work in ticks(rng, 400):
        model.observe(work, TRUE.seconds(work))
    for _ in range(5000):
        work = TickWork(64, 0.0, float(rng.integers(1000, 90_000)), 30)
        model.observe(work, TRUE.seconds(work))
    prompt = TickWork(64 + 2048, 2048 * 5e5, 5e5, 1)
    assert model.seconds(prompt) == pytest.approx(TRUE.seconds(prompt), rel=0.02)


def test_it_follows_a_machine_that_becomes_slower() -> None:
    rng = np.random.default_rng(3)
    model = FittedTimeModel(KEY)
    for work in ticks(rng, 500):
        model.observe(work, TRUE.seconds(work))
    for work in ticks(rng, 3000):
        model.observe(work, 2 * TRUE.seconds(work))
    work = TickWork(576, 512 * 1e5, 1e5, 1)
    assert model.seconds(work) == pytest.approx(2 * TRUE.seconds(work), rel=0.05)


@pytest.mark.parametrize("speed", [0.6, 1.7])
def test_it_notices_at_once_that_everything_takes_longer_or_shorter(speed: float) -> None:
    """The latest ticks are few and far from the others, so they hardly count in the fit."""
    rng = np.random.default_rng(5)
    model = FittedTimeModel(KEY)
    for work in ticks(rng, 1024):
        model.observe(work, TRUE.seconds(work) * rng.normal(1, 0.03))
    for work in ticks(rng, LATEST_TICKS):
        model.observe(work, TRUE.seconds(work) * rng.normal(1, 0.03) * speed)
    later = ticks(rng, 200)
    ratios = [model.seconds(work) / TRUE.seconds(work) for work in later]
    np.testing.assert_allclose(ratios, speed, rtol=0.1)
    many = [np.array([getattr(work, name) for work in later]) for name in ("tokens", "attention", "context", "rows")]
    np.testing.assert_allclose(model.many(*many), [model.seconds(work) for work in later])


def test_times_that_are_none_are_ignored() -> None:
    model = FittedTimeModel(KEY, TRUE)
    for seconds in (0.0, -1.0, float("nan"), float("inf")):
        model.observe(TickWork(1), seconds)
    assert (model.ticks, model.coefficients) == (0, TRUE)


def test_saved_and_loaded(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    model = FittedTimeModel(KEY)
    for work in ticks(rng, 300):
        model.observe(work, TRUE.seconds(work) * rng.normal(1, 0.02))
    path = tmp_path / "times.json"
    model.save(path)
    again = FittedTimeModel.load(path, KEY)
    assert (again.coefficients, again.ticks) == (model.coefficients, 300)
    for work in ticks(rng, 84):  # up to the next fit, which needs the old measurements too
        model.observe(work, TRUE.seconds(work))
        again.observe(work, TRUE.seconds(work))
    assert again.coefficients == model.coefficients
    with pytest.raises(TimeModelError, match="was measured for .*float32.*, not for .*bfloat16"):
        FittedTimeModel.load(path, {**KEY, "dtype": "bfloat16"})


def test_saving_breaks_no_file_that_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "times.json"
    FittedTimeModel(KEY).save(path)

    def full(self: Path, text: str, encoding: str) -> int:
        self.touch()
        raise OSError("no space left")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="no space"):
        FittedTimeModel(KEY).save(path)
    monkeypatch.undo()
    assert FittedTimeModel.load(path, KEY).ticks == 0


LEARNED = {"coefficients": {}, "measured": [], "ticks": 0}


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[]", '{"key": {}, "coefficients": {"fixed": -1}, "measured": [], "ticks": 0}',
     '{"key": {}, "coefficients": {"fixd": 1}, "measured": [], "ticks": 0}',
     '{"key": {}, "coefficients": {}, "measured": [[1, 2]], "ticks": 0}',
     json.dumps({"key": {}, "coefficients": {"fixed": 10**400}, "measured": [], "ticks": 0}),
     json.dumps({"key": {}, "coefficients": {}, "measured": [6 * [10**400]], "ticks": 0}),
     json.dumps({"key": {}, "coefficients": {}, "measured": [[1, 2, -9, 4, 5, 6]], "ticks": 0, "slices": {}}),
     json.dumps({"key": {}, "coefficients": {}, "measured": [], "ticks": "many", "slices": {}}),
     '{"key": {}, "ticks": ' + 5000 * "9" + "}", "[" * 100_000]
    + [json.dumps({"key": {}, "slices": LEARNED, **LEARNED, "coefficients": {"fixed": fixed}})
       for fixed in ("a tick", None, math.nan, math.inf)],
)  # fmt: skip
def test_files_that_hold_no_model_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "times.json"
    path.write_text(text)
    with pytest.raises(TimeModelError):
        FittedTimeModel.load(path, {})
    with pytest.raises(TimeModelError, match="cannot read"):
        FittedTimeModel.load(tmp_path / "nothing.json", {})


def test_a_slice_takes_its_share_of_a_tick() -> None:
    slices = TRUE.per_layer(16, overhead=2e-4).slices
    whole = TickWork(tokens=2048, attention=2048e5, context=1e5, rows=0)
    assert slices.seconds(slice_work(16, 2048, 2048e5, 1e5)) == pytest.approx(TRUE.seconds(whole) + 2e-4)
    quarter = slices.seconds(slice_work(4, 2048, 2048e5, 1e5))
    assert quarter - 2e-4 == pytest.approx(TRUE.seconds(whole) / 4)
    assert LinearTimeModel(tokens=1.0).slices.seconds(slice_work(3, 5, 0, 0)) == 15, "a stage counts as one layer"


def test_slices_that_were_not_measured_take_their_share_of_a_tick_until_they_are(tmp_path: Path) -> None:
    rng, model = np.random.default_rng(0), FittedTimeModel(KEY)
    model.settle(16)
    slice_of_three = slice_work(3, 512, 5e5, 5000)
    assert model.slices.seconds(slice_of_three) == 0, "without any tick, nothing is known"
    for work in ticks(rng, 40):
        model.observe(work, TRUE.seconds(work))
    model.settle(16)
    share = TRUE.seconds(TickWork(512, 5e5, 5000)) * 3 / 16
    assert model.slices.seconds(slice_of_three) == pytest.approx(share, rel=0.1)
    model.save(tmp_path / "times.json")
    again = FittedTimeModel.load(tmp_path / "times.json", KEY)
    assert again.slices.seconds(slice_of_three) == pytest.approx(share, rel=0.1)
    for _ in range(LEAST_TICKS):
        again.slices.observe(slice_of_three, 5 * share)
    again.settle(16)
    assert again.slices.seconds(slice_of_three) == pytest.approx(5 * share, rel=0.1)


def test_slices_are_learned_apart_and_saved_beside_the_ticks(tmp_path: Path) -> None:
    rng, model = np.random.default_rng(0), FittedTimeModel(KEY)
    true = TRUE.per_layer(8, overhead=1e-3).slices
    for _ in range(200):
        work = slice_work(int(rng.integers(1, 9)), int(rng.choice([256, 1024])), float(rng.integers(10**6)), 5000)
        model.slices.observe(work, true.seconds(work))
    assert model.ticks == 0 and model.seconds(TickWork(100)) == 0
    work = slice_work(3, 1024, 5e5, 5000)
    assert model.slices.seconds(work) == pytest.approx(true.seconds(work), rel=0.05)
    assert model.slices.median_error is not None and model.median_error is None
    model.save(tmp_path / "times.json")
    again = FittedTimeModel.load(tmp_path / "times.json", KEY)
    assert again.ticks == 0 and again.slices.ticks == 200
    assert again.slices.seconds(work) == pytest.approx(model.slices.coefficients.seconds(work))
