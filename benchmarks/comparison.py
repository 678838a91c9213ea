"""One model: its real runs in a folder, whose pieces calibrate the simulator and are compared with it, in turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from benchmarks.served import PROBES, Served, serve, write_calibration_requests
from benchmarks.speed import Slowness
from medha_jax.config import RuntimeConfig, SchedulerConfig, load_mesh
from medha_jax.results import RequestRecord
from medha_jax.results.metrics import tpot, ttft, waited
from medha_jax.scheduler.time_model import FittedTimeModel, TickWork
from medha_jax.simulate.calibration import Calibration, read_calibration, write_ticks
from medha_jax.simulate.fitting import errors
from medha_jax.simulate.simulation import Outcome, simulate
from medha_jax.workload import WorkloadRequest

CONTEXT, SLOTS, POOL, MESH = 32768, 8, 49152, "cpu-small"
LONGEST = 8192  # tokens of a prompt in the calibration
PERCENTILES = (50, 90)
PIECE_S = 20.0  # the machine gets faster and slower within a minute, so calibration and workload take turns
# Whom a request meets in its tick hangs on milliseconds: the 90th percentile of the very same 90 requests moves by a
# quarter. So a real run is compared with all requests of several simulations, in which each comes a little later.
SIMULATIONS, MOVED_S = 8, 0.1


@dataclass(frozen=True)
class Setting:
    """How a model is loaded: its TPOT target, requests a second of the calibration, and the workloads to compare.

    A workload is a preset's name, the scale of prompts and of outputs, and requests a second.
    """

    tpot_ms: float
    rate: float
    workloads: tuple[tuple[str, str, str, float], ...]


SETTINGS = {
    "tiny": Setting(
        50,
        1.5,
        (
            ("azure-conv-2023", "1/8", "1/8", 5),
            ("sharegpt-8k", "1/16", "1/16", 4.5),
            ("medha-5pct", "1/64", "1/32", 1.2),
        ),
    ),
    "26m": Setting(
        100,
        0.6,
        (
            ("azure-conv-2023", "1/8", "1/8", 1.5),
            ("sharegpt-8k", "1/16", "1/16", 1.2),
            ("medha-5pct", "1/128", "1/32", 0.9),
        ),
    ),
}


@dataclass(frozen=True)
class Calibrated:
    """What the calibration says.

    Args:
        calibration: its ticks and the times fitted to half of them.
        delay: seconds that client, gRPC and network add to a TTFT.
    """

    calibration: Calibration
    delay: float


@dataclass(frozen=True)
class Compared:
    """One workload, real and simulated.

    Args:
        workload: in words.
        calibrated: what was measured between its pieces.
        requests: that were sent.
        busy: share of the time in which ticks ran.
        slowness: mean of the machine's, as a multiple of its best.
        ticks: that were predicted.
        tick_error: median of |predicted - measured| / measured over them.
        seconds: by name of the figure, as in "ttft_p50": real and simulated.
    """

    workload: str
    calibrated: Calibrated
    requests: int
    busy: float
    slowness: float
    ticks: int
    tick_error: float
    seconds: dict[str, tuple[float, float]]


class Machine:
    """Owns a model's runs in a folder.

    Args:
        name: of SETTINGS.
        folder: of its runs.
        seconds: in which requests come, of each workload and as long of its calibration.
    """

    def __init__(self, name: str, folder: Path, seconds: float) -> None:
        self._name, self._folder, self._pieces = name, folder, max(1, round(seconds / PIECE_S))
        self.setting = SETTINGS[name]
        self._scheduler = SchedulerConfig(tpot_target_s=self.setting.tpot_ms / 1000)
        folder.mkdir(parents=True, exist_ok=True)

    def compare(self, preset: str, scale: str, output_scale: str, rate: float) -> Compared:
        """Run a workload, piece by piece, with a piece of the calibration before each, and simulate it."""
        asked = f"--workload={preset}", f"--scale={scale}", f"--output-scale={output_scale}"
        folder = self._folder / preset
        calibrating, compared = self._serve(folder, rate, asked)
        slowness = Slowness(folder / PROBES)
        calibrated = self._calibrate(folder, calibrating, slowness)
        calibration, delay = calibrated.calibration, calibrated.delay
        measured = self._ticks(folder / "compared.json", compared, slowness).ticks
        several = [
            self._simulated(calibration, piece, slowness, MOVED_S, seed)
            for piece in compared
            for seed in range(SIMULATIONS)
        ]
        records = [record for piece in compared for record in piece.records]
        real: dict[str, list[float | None]] = {
            "ttft": [*_ttfts(records)],
            "tpot": [tpot(one) for one in records],
        }
        simulated: dict[str, list[float | None]] = {
            "ttft": [waited(one) + delay for each in several for one in each.records],
            "tpot": [tpot(one) for each in several for one in each.records],
        }
        seconds = {
            f"{name}_p{percent}": (_percentile(real[name], percent), _percentile(simulated[name], percent))
            for name in real
            for percent in PERCENTILES
        }
        return Compared(
            workload=f"{preset}, prompts x {scale}, outputs x {output_scale}, {rate:g} requests/s",
            calibrated=calibrated,
            requests=len(records),
            busy=sum(piece.busy_s for piece in compared) / sum(piece.seconds for piece in compared),
            slowness=float(np.mean([tick.slowness for tick in measured])),
            ticks=len(measured),
            tick_error=errors(calibration.times, measured)[0].median,
            seconds=seconds,
        )

    def _calibrate(self, folder: Path, pieces: Sequence[Served], slowness: Slowness) -> Calibrated:
        calibration = self._ticks(folder / "ticks.json", pieces, slowness)
        waits: list[float] = []
        for piece in pieces:
            simulated = self._simulated(calibration, piece, slowness, 0.0).records
            waits += [real - waited(one) for real, one in zip(_ttfts(piece.records), simulated, strict=True)]
        # less than nothing would be an error of the ticks, not of the network
        return Calibrated(calibration, max(0.0, float(np.median(waits))))

    def _serve(self, folder: Path, rate: float, asked: Sequence[str]) -> tuple[list[Served], list[Served]]:
        """Pieces of the calibration, and those of the workload, of one server that gets them in turn."""
        server = (
            f"--model={self._directory()}",
            f"--mesh={MESH}",
            f"--max-context={CONTEXT}",
            f"--slots={SLOTS}",
            f"--pool-tokens={POOL}",
            f"--tpot-target-ms={self.setting.tpot_ms:g}",
            f"--policy={self._scheduler.policy}",
            "--no-prefix-cache",
        )
        folder.mkdir(parents=True, exist_ok=True)
        loads: dict[str, Sequence[str]] = {}
        for piece in range(self._pieces):
            requests, usual = folder / f"requests-{piece}.jsonl", self.setting.rate
            write_calibration_requests(requests, LONGEST, skip=round(piece * usual * PIECE_S))
            each = f"--duration={PIECE_S:g}", f"--seed={piece}"
            loads[f"calibration-{piece}"] = "--workload=mooncake", f"--file={requests}", f"--rate={usual:g}", *each
            loads[f"compared-{piece}"] = *asked, f"--rate={rate:g}", *each
        served = serve(folder, server, loads)
        names = "calibration", "compared"
        calibrating, compared = ([served[f"{name}-{piece}"] for piece in range(self._pieces)] for name in names)
        return calibrating, compared

    def _directory(self) -> str:
        """Of the model; the larger one gets random weights."""
        if self._name == "tiny":
            return self._name
        directory = self._folder / "model"
        if not directory.exists():
            from benchmarks.model import write_model

            write_model(directory)
        return str(directory)

    def _ticks(self, path: Path, pieces: Sequence[Served], slowness: Slowness) -> Calibration:
        """The ticks of some pieces as a calibration, with the slowness that was measured beside them."""
        ticks = [
            {**tick, "slowness": slowness.at(tick["at"], tick["seconds"])} for piece in pieces for tick in piece.ticks
        ]
        config = RuntimeConfig(mesh=load_mesh(MESH), slots=SLOTS, pool_tokens=POOL)
        write_ticks(path, {"model": self._name}, config, CONTEXT, ticks)
        return read_calibration(path)

    def _simulated(
        self, calibration: Calibration, served: Served, slowness: Slowness, moved_s: float, seed: int = 0
    ) -> Outcome:
        """The requests of a piece on the virtual clock, of a scheduler that has learnt the calibration's ticks.

        Each comes up to `moved_s` seconds later than it was due.
        """
        moved = np.random.default_rng(seed).uniform(0, moved_s, len(served.records)).tolist()
        rows = zip(served.records, moved, strict=True)
        requests = [
            WorkloadRequest(one.index, one.due + later, one.kind, one.prompt_tokens, one.output_tokens)
            for one, later in rows
        ]
        requests.sort(key=lambda one: one.at)
        times = calibration.times
        return simulate(
            replace(calibration.machine(), model=_learnt(calibration)),
            self._scheduler,
            requests,
            slowed=lambda at, seconds, shape: times.slowed(seconds, shape, slowness.at(served.began + at)),
        )


def _learnt(calibration: Calibration) -> FittedTimeModel:
    """What a server's scheduler would have learnt from the ticks."""
    model = FittedTimeModel({})
    for tick in calibration.ticks:
        work = tick.work
        squares, read = (sum(column) for column in zip((0.0, work.context), *work.chunks, strict=True))
        model.observe(TickWork(tick.shape.rows, squares, read, work.rows), tick.seconds)
    return model


def _ttfts(records: Sequence[RequestRecord]) -> list[float]:
    """Seconds to the first token of requests that have all finished."""
    found = [ttft(one) for one in records]
    return [one for one in found if one is not None]


def _percentile(values: Sequence[float | None], percent: int) -> float:
    return float(np.percentile([one for one in values if one is not None], percent))
