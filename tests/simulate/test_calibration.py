from __future__ import annotations

import dataclasses
import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

from medha_jax.config import Buckets, MeshConfig, RuntimeConfig, SchedulerConfig
from medha_jax.plan import Admission, Chunk, SamplingParams, Slice, StepPlan
from medha_jax.results.metrics import e2el, waited
from medha_jax.scheduler.time_model import FEATURES, LinearTimeModel, TickWork, slice_work
from medha_jax.simulate.calibration import FORMAT, read_calibration, write_ticks
from medha_jax.simulate.clock import VirtualClock
from medha_jax.simulate.fitting import errors, fit
from medha_jax.simulate.hardware import SpecError
from medha_jax.simulate.measured import MeasuredTimes
from medha_jax.simulate.simulation import executor_of, simulate
from medha_jax.simulate.times import GroupWork
from medha_jax.specs.buckets import all_buckets
from medha_jax.specs.sizes import UNBOUNDED
from tests.simulate.simulated import request

MESH = MeshConfig(page_size=16, buckets=Buckets(decode=(1, 8), prefill=(16, 64), chunks=2, slices=()))
CONFIG = RuntimeConfig(mesh=MESH, slots=8, pool_tokens=8 * 1024)
TRUE = MeasuredTimes(2e-3, 5e-5, 3e-8, 2e-7, 4e-7, 1e-5, host=3e-4, host_row=2e-5)
SHAPES = list(all_buckets(MESH.buckets, None))
DECODE, PROMPT = SHAPES[0], SHAPES[2]  # one row; one row beside 64 of a prompt


def ticks(
    count: int, noise: float, seed: int = 0, bump: float = 1.0, true: MeasuredTimes = TRUE, slowest: float = 1.0
) -> list[dict[str, Any]]:
    """Ticks of a machine with known times, up to `slowest` times as slow; the largest shape's base is `bump` times."""
    rng = random.Random(seed)
    found = []
    for _ in range(count):
        shape = rng.choice(SHAPES)
        stage = [[rng.randint(1, 900), 1, [0]] for _ in range(rng.randint(0, shape.own.decode))]
        if shape.own.prefill:
            stage.append([rng.randint(0, 900), rng.randint(2, shape.own.prefill), [0]])
        work = GroupWork()
        for start, length, _ in stage:
            work.add(start, length, UNBOUNDED)
        seconds = true.tick_seconds(shape, work) + (bump - 1) * true.base(shape) * (shape == SHAPES[-1])
        slowness = rng.uniform(1.0, slowest)
        seconds += true.longer(shape) * (slowness - 1)
        host = true.host + true.host_row * work.rows + true.host_felt * (slowness - 1)
        off = 1 + rng.uniform(-noise, noise)
        slow = 3 if rng.random() < 0.05 * (noise > 0) else 1  # somebody else had the machine
        tick = {
            "shape": [shape.own.decode, shape.own.prefill, 0, 0],
            "seconds": slow * off * seconds,
            "host_s": off * host,
            "stages": [stage],
        }
        found.append(tick if slowest == 1 else {**tick, "slowness": slowness})
    return found


def written(tmp_path: Path, stated: list[dict[str, Any]]) -> Path:
    path = tmp_path / "ticks.json"
    write_ticks(path, {"model": "tiny", "device": "test"}, CONFIG, 1024, stated)
    return path


def test_the_times_of_a_known_machine_are_found(tmp_path: Path) -> None:
    found = read_calibration(written(tmp_path, ticks(600, 0.0)))
    times = found.times
    for name in ("attention", "context", "decode", "row", "host", "host_row"):
        assert getattr(times, name) == pytest.approx(getattr(TRUE, name), rel=1e-3), name
    for shape in SHAPES:
        assert times.base(shape) == pytest.approx(TRUE.base(shape), rel=1e-3)
    assert all(one.median < 1e-6 for one in found.errors)
    assert {one.regime for one in found.errors} >= {"all", "decodes alone", "prompts beside decodes"}
    assert found.errors[0].ticks == 300
    assert found.about == {"model": "tiny", "device": "test"}


def test_noise_and_outliers_do_not_carry_it_away(tmp_path: Path) -> None:
    found = read_calibration(written(tmp_path, ticks(1200, 0.05)))
    assert found.errors[0].median < 0.04
    for shape in SHAPES:
        assert found.times.base(shape) == pytest.approx(TRUE.base(shape), rel=0.1)


def test_a_shape_may_take_what_no_line_says(tmp_path: Path) -> None:
    found = read_calibration(written(tmp_path, ticks(600, 0.0, bump=1.5)))
    assert found.times.base(SHAPES[-1]) == pytest.approx(1.5 * TRUE.base(SHAPES[-1]), rel=0.05)
    assert max(one.median for one in found.errors) < 0.05


def test_kv_that_is_read_in_blocks_and_decodes_beside_prompts_are_found(tmp_path: Path) -> None:
    true = dataclasses.replace(TRUE, block=256, decode_block=1024, beside=1e-3, context=4e-6)
    found = read_calibration(written(tmp_path, ticks(600, 0.0, true=true)))
    assert (found.times.block, found.times.decode_block) == (256, 1024)
    assert found.times.beside == pytest.approx(1e-3, rel=1e-2)
    assert found.errors[0].median < 1e-4


def test_what_a_slow_machine_adds_to_a_tick_is_found(tmp_path: Path) -> None:
    true = dataclasses.replace(TRUE, felt=1.5e-3, felt_tokens=2e-5, host_felt=2e-4)
    found = read_calibration(written(tmp_path, ticks(600, 0.0, true=true, slowest=2.0)))
    for name in ("felt", "felt_tokens", "host", "host_felt", "row"):
        assert getattr(found.times, name) == pytest.approx(getattr(true, name), rel=1e-2), name
    for shape in SHAPES:
        assert found.times.base(shape) == pytest.approx(TRUE.base(shape), rel=1e-2)
    assert found.errors[0].median < 1e-4
    tick = max(found.ticks, key=lambda tick: tick.slowness)
    assert found.times.predicted(tick) == pytest.approx(tick.seconds, rel=1e-3)
    usual = found.times.group_seconds(tick.shape, tick.work)
    assert tick.host_s is not None
    assert found.times.slowed(usual, tick.shape, tick.slowness) == pytest.approx(tick.seconds + tick.host_s, rel=1e-3)


def test_ticks_that_take_longer_delay_requests_and_not_predictions(tmp_path: Path) -> None:
    found = read_calibration(written(tmp_path, ticks(1200, 0.02)))
    # one in twenty takes three times as long
    assert found.times.delays == pytest.approx(1.1, abs=0.03)
    shape, work = PROMPT, GroupWork()
    work.add(0, 64, UNBOUNDED)
    alone = found.times.tick_seconds(shape, work)
    assert found.times.seconds(TickWork(65, 64 * 65 / 2, 64, 1)) == pytest.approx(alone)
    host = found.times.host + found.times.host_row
    assert found.times.group_seconds(shape, work) == pytest.approx(found.times.delays * alone + host)


def test_a_calibrated_machine_takes_its_measured_times(tmp_path: Path) -> None:
    machine = read_calibration(written(tmp_path, ticks(600, 0.0))).machine()
    outcome = simulate(machine, SchedulerConfig(), [request(0.0, 100, 3)])
    (served,) = outcome.records
    works = [(PROMPT, 0, 64), (PROMPT, 64, 36), (DECODE, 100, 1), (DECODE, 101, 1)]
    wanted = []
    for shape, start, length in works:
        work = GroupWork()
        work.add(start, length, UNBOUNDED)
        wanted.append(TRUE.group_seconds(shape, work))
    assert waited(served) == pytest.approx(sum(wanted[:2]), rel=1e-3)
    assert e2el(served) == pytest.approx(sum(wanted), rel=1e-3)


def test_the_scheduler_predicts_lone_work_exactly_and_without_the_host() -> None:
    work = GroupWork()
    work.add(50, 30, UNBOUNDED)
    ((squares, read),) = work.chunks
    assert TRUE.seconds(TickWork(65, squares, read, 1)) == pytest.approx(TRUE.tick_seconds(PROMPT, work))
    assert TRUE.seconds(TickWork(1, 0, 80, 1)) == pytest.approx(TRUE.tick_seconds(DECODE, GroupWork([], 80, 1)))


def test_the_slowest_stage_and_group_counts(tmp_path: Path) -> None:
    mesh = dataclasses.replace(MESH, spp=2, kvp=2, tokens_per_group=512, shared_buckets=MESH.buckets)
    config = dataclasses.replace(CONFIG, mesh=mesh)
    stages = [[[0, 10, [0]], [40, 1, [1]]], [[600, 1, [0, 1]], [100, 8, [1]]]]
    path = tmp_path / "two.json"
    one = {"shape": [1, 16, 1, 0], "seconds": 0.01, "stages": stages}
    write_ticks(path, {}, config, 1024, [one] * 100)
    tick = read_calibration(path).ticks[0]
    # the second stage: 8 queries of the second group, and the shared decode, which reads 512 tokens on each
    assert tick.work == GroupWork([(8 * (100 + 108 + 1) / 2, 108)], 512, 2, 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, f"its format must be {FORMAT!r}"),
        ({"ticks": []}, "has 0 ticks; at least 64 are needed"),
        ({"ticks": [{"shape": [1, 0], "seconds": -1, "stages": []}]}, "must be above 0"),
        ({"ticks": [{"shape": [1, 0], "seconds": 1, "slowness": 0, "stages": []}]}, "slowness 0"),
        ({"ticks": [{"shape": [1, 0]}]}, "KeyError"),
        ({"ticks": [{"shape": [0, 8, 0, 0], "layers": [2, 2], "seconds": 1, "stages": []}]}, r"layers \[2, 2\)"),
        ({"mesh": {"tp": 0}}, "tp is 0"),
        ({"slots": "many"}, "ValueError"),
        ({"context": math.inf}, "OverflowError"),
        ({"ticks": [{"shape": [1, 0], "seconds": 1, "stages": [[[0, 1, []]]]}]}, "IndexError"),
        ({"ticks": [{"shape": [1, 0], "seconds": 1, "stages": 5}]}, "TypeError"),
    ],
)
def test_what_is_no_calibration_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = written(tmp_path, ticks(100, 0.0))
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ValueError, match=message):
        read_calibration(path)
    with pytest.raises(SpecError, match="cannot read calibration"):
        read_calibration(tmp_path / "nothing.json")


def test_errors_are_those_of_ticks_that_were_not_fitted(tmp_path: Path) -> None:
    found = read_calibration(written(tmp_path, ticks(200, 0.05)))
    assert found.errors == errors(fit(found.ticks[::2], MESH), found.ticks[1::2])


def slices(count: int) -> list[dict[str, Any]]:
    """Slices of one or two of two layers."""
    rng, found = random.Random(1), []
    for number in range(count):
        rows, first = rng.choice((128, 512)), number % 2
        start, length, past = rng.randint(0, 400), rng.randint(2, rows), 2 if first else rng.randint(1, 2)
        work = GroupWork()
        work.add(start, length, UNBOUNDED)
        seconds = SLICES.seconds(slice_work(past - first, rows, *work.sums))
        stages = [[[start, length, [0]]]]
        found.append({"shape": [0, rows, 0, 0], "layers": [first, past], "seconds": seconds, "stages": stages})
    return found


SLICES = LinearTimeModel(4e-4, 2e-5, 1e-8, 1e-7, 1e-4)
WITH_SLICES = dataclasses.replace(MESH.buckets, slices=(128, 512))
SLICED = dataclasses.replace(CONFIG, mesh=dataclasses.replace(MESH, buckets=WITH_SLICES))


def test_slices_are_fitted_apart_and_simulated(tmp_path: Path) -> None:
    path = tmp_path / "ticks.json"
    write_ticks(path, {}, SLICED, 1024, [*ticks(600, 0.0), *slices(300)])
    found = read_calibration(path)
    assert len(found.ticks) == 600
    for name in FEATURES:
        assert getattr(found.times.slices, name) == pytest.approx(getattr(SLICES, name), rel=1e-3), name
    assert (found.errors[-1].regime, found.errors[-1].ticks) == ("slices", 150)
    assert found.errors[-1].median < 1e-6
    machine = found.machine()
    assert machine.slice_lengths == (1, 2)
    runtime = executor_of(machine, VirtualClock())
    runtime.admit(Admission(0, SamplingParams(), 500))
    runtime.submit_slice(Slice((StepPlan((Chunk(0, 0, 500, (1,) * 500, False),)),), 0, 2))
    wanted = SLICES.seconds(slice_work(2, 512, 500 * 501 / 2, 500)) + found.times.host
    assert runtime.totals.seconds == pytest.approx(wanted, rel=1e-3)


def test_too_few_slices_make_a_machine_without(tmp_path: Path) -> None:
    path = tmp_path / "ticks.json"
    write_ticks(path, {}, SLICED, 1024, [*ticks(600, 0.0), *slices(63)])
    machine = read_calibration(path).machine()
    assert machine.config.mesh.buckets == MESH.buckets


@pytest.mark.parametrize("text", ["[" * 100_000, "9" * 5000, ""])
def test_text_that_is_no_json_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "ticks.json"
    path.write_text(text)
    with pytest.raises(SpecError, match="not valid JSON"):
        read_calibration(path)
