"""Times of a machine from its own ticks: what is measured replaces what is assumed, and says how far it is off.

The file (JSON) that `medha-jax simulate measure` writes, and `simulate traffic --calibration` reads:

    {"format": "medha-jax ticks 1",
     "model": "tiny", "device": "AMD EPYC, 2 cores", "dtype": "float32", "jax": "0.10.2",
     "context": 8192, "slots": 8, "pool_tokens": 16384, "mesh": {settings of a layout},
     "ticks": [{"shape": [8, 64, 0, 0], "seconds": 0.0123, "host_s": 0.0004,
                "stages": [[[start, length, groups], ...], ...]}, ...]}

`shape` has the padded rows: own decodes, own prompt tokens, shared decodes, shared prompt tokens. `seconds` is from the
dispatch to the results (`TickReport.ended - started`), `host_s`, which may be left out, from the end of the tick before
to the dispatch, where the engine did not wait for a request. `stages` has, for each pipeline stage, the chunks that it
computed: position of the first token, tokens, and the groups that hold the request, in order. A chunk of one token
is a decode row. The first tick of a shape is left out.

The model of a tick, whose numbers are all fitted:

    seconds = base[shape] + squares x attention + read x context + decoded x decode + rows x row
    host_s  = host + rows x host_row

with squares, read and decoded of the slowest stage and group as in `GroupWork`. A robust fit with a base that is
linear in rows comes first; then each shape that has ticks enough gets a base of its own, the median of what is left.
Even ticks of the file are fitted, odd ones give the errors.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from medha_jax.config import ConfigError, MeshConfig, RuntimeConfig, mesh_from
from medha_jax.scheduler.time_model import robust_fit
from medha_jax.scheduler.work import TickWork
from medha_jax.simulate.deployments import Deployment
from medha_jax.simulate.hardware import SpecError
from medha_jax.simulate.sizes import shapes_of
from medha_jax.simulate.times import GroupWork, Shape, chunk_work

FORMAT = "medha-jax ticks 1"
LEAST_TICKS, OWN_BASE_TICKS = 32, 5
MOST_TICKS = 1_000_000
SHORT_CONTEXT = 1024


@dataclass(frozen=True)
class Tick:
    """A measured tick: the shape that it ran in, its slowest group's work, its seconds, and the host's before it."""

    shape: Shape
    work: GroupWork
    seconds: float
    host_s: float | None = None

    @property
    def regime(self) -> str:
        """What kind of tick it is, for reporting errors."""
        if not self.work.chunks:
            return "decodes alone"
        if self.work.rows > len(self.work.chunks):
            return "prompts beside decodes"
        longest = max(read for _, read in self.work.chunks)
        return f"prompts, up to {SHORT_CONTEXT:,} tokens" if longest <= SHORT_CONTEXT else "prompts, longer"


@dataclass(frozen=True)
class MeasuredTimes:
    """Times of a tick by measured coefficients; a time model for the scheduler and for the devices.

    Args:
        fixed, tokens: base of a shape without one of its own: seconds, and seconds a row of the shape.
        attention: seconds a prompt row and token of its context.
        context: seconds a token of KV that prompt chunks read.
        decode: seconds a token of KV that decodes read.
        row: seconds a real row.
        bases: seconds of shapes that were measured often enough.
        host, host_row: of the host between ticks: seconds, and seconds a real row. The scheduler does not predict them.
    """

    fixed: float
    tokens: float
    attention: float
    context: float
    decode: float
    row: float
    bases: Mapping[Shape, float] = field(default_factory=dict)
    host: float = 0.0
    host_row: float = 0.0

    def base(self, shape: Shape) -> float:
        """Seconds of a shape without anything in it."""
        known = self.bases.get(shape)
        return self.fixed + self.tokens * shape.rows if known is None else known

    def group_seconds(self, shape: Shape, work: GroupWork) -> float:
        """Seconds of a group's part of a tick, and of the host before it."""
        return self.tick_seconds(shape, work) + self.host + self.host_row * work.rows

    def tick_seconds(self, shape: Shape, work: GroupWork) -> float:
        """Seconds of a group's part of a tick."""
        seconds = self.base(shape) + self.decode * work.context + self.row * work.rows
        for squares, read in work.chunks:
            seconds += self.attention * squares + self.context * read
        return seconds

    def seconds(self, work: TickWork) -> float:
        """Seconds of a tick, of sums over its slowest group."""
        reading = self._reading(work.attention, work.rows)
        base = self._by_rows.get(work.tokens, self.fixed + self.tokens * work.tokens)
        return base + self.attention * work.attention + reading * work.context + self.row * work.rows

    def many(self, tokens: np.ndarray, attention: np.ndarray, context: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Seconds of many ticks; float64 arrays of one shape `[ticks]`."""
        every = zip(tokens.flat, attention.flat, context.flat, rows.flat, strict=True)
        seconds = [self.seconds(TickWork(int(t), a, c, int(r))) for t, a, c, r in every]
        return np.array(seconds).reshape(np.shape(tokens))

    def observe(self, work: TickWork, seconds: float) -> None:
        """Fixed: nothing is learnt."""

    def _reading(self, attention: float, rows: int) -> float:
        """Seconds a token of KV: of n rows one is taken for the prompt chunk, if there is any."""
        if not attention or not rows:
            return self.decode
        return (self.context + (rows - 1) * self.decode) / rows

    @cached_property
    def _by_rows(self) -> dict[int, float]:
        found: dict[int, float] = {}
        for shape in self.bases:
            found[shape.rows] = max(self.bases[shape], found.get(shape.rows, 0.0))
        return found


@dataclass(frozen=True)
class Errors:
    """`|predicted - measured| / measured` over ticks of one kind."""

    regime: str
    ticks: int
    median: float
    p90: float


@dataclass(frozen=True)
class Calibration:
    """A machine as it was measured.

    Args:
        about: model, device and the like, as the file states them.
        config: mesh, slots and pool; no model to load.
        context: most tokens of one request.
        ticks: that were measured.
        times: fitted to the even ticks of the file.
        errors: of the odd ticks, which were not used, by regime; the first is of all.
    """

    about: Mapping[str, str]
    config: RuntimeConfig
    context: int
    ticks: tuple[Tick, ...]
    times: MeasuredTimes
    errors: tuple[Errors, ...]

    def machine(self) -> Deployment:
        """The machine for the simulator."""
        about = ", ".join(f"{name} {value}" for name, value in self.about.items())
        return Deployment("measured", f"measured: {about}", self.times, self.config, self.context, self.times)


def read_calibration(path: Path) -> Calibration:
    """Read measured ticks and fit times to them.

    Raises:
        SpecError: the file cannot be read, is of another form, or has too few ticks.
    """
    try:
        stated = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SpecError(f"cannot read calibration {path}: {error.strerror}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SpecError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(stated, Mapping) or stated.get("format") != FORMAT:
        raise SpecError(f"{path} is no calibration; its format must be {FORMAT!r}")
    try:
        mesh = mesh_from(stated["mesh"])
        config = RuntimeConfig(
            mesh=mesh, slots=int(stated["slots"]), pool_tokens=int(stated["pool_tokens"]), compilation_cache=None
        )
        context = int(stated["context"])
        if len(stated["ticks"]) > MOST_TICKS:
            raise SpecError(f"{path} has {len(stated['ticks']):,} ticks; allowed are {MOST_TICKS:,}")
        ticks = tuple(_tick(one, mesh, context) for one in stated["ticks"])
        about = {name: str(stated[name]) for name in ("model", "device", "dtype", "jax") if name in stated}
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, SpecError | ConfigError):
            raise
        raise SpecError(f"{path}: {error!r}") from None
    used, held = ticks[::2], ticks[1::2]
    if len(used) < LEAST_TICKS:
        raise SpecError(f"{path} has {len(ticks)} ticks; at least {2 * LEAST_TICKS} are needed")
    times = fit(used, mesh)
    return Calibration(about, config, context, ticks, times, errors(times, held))


def fit(ticks: Sequence[Tick], mesh: MeshConfig) -> MeasuredTimes:
    """Coefficients that give measured ticks, by relative errors in which outliers do not count."""
    seconds = np.array([tick.seconds for tick in ticks])
    columns = np.array([_features(tick) for tick in ticks])
    relative = columns / seconds[:, None]
    coefficients = robust_fit(relative, np.ones(len(ticks))).tolist()
    plain = MeasuredTimes(*coefficients)
    left: dict[Shape, list[float]] = {}
    for tick in ticks:
        inside = plain.tick_seconds(tick.shape, tick.work) - plain.base(tick.shape)
        left.setdefault(tick.shape, []).append(tick.seconds - inside)
    compiled = set(shapes_of(mesh))
    bases = {
        shape: max(float(np.median(rest)), 0.0)
        for shape, rest in left.items()
        if len(rest) >= OWN_BASE_TICKS and shape in compiled
    }
    gaps = [(tick.work.rows, tick.host_s) for tick in ticks if tick.host_s is not None]
    host, host_row = 0.0, 0.0
    if gaps:
        rows, waits = np.array(gaps, float).T
        host, host_row = robust_fit(np.stack([np.ones_like(rows), rows], axis=1), waits).tolist()
    return dataclasses.replace(plain, bases=bases, host=host, host_row=host_row)


def errors(times: MeasuredTimes, ticks: Sequence[Tick]) -> tuple[Errors, ...]:
    """How far times are off, over all ticks and over each kind."""
    kinds: dict[str, list[float]] = {"all": []}
    for tick in ticks:
        off = abs(times.tick_seconds(tick.shape, tick.work) - tick.seconds) / tick.seconds
        kinds["all"].append(off)
        kinds.setdefault(tick.regime, []).append(off)
    return tuple(
        Errors(kind, len(off), float(np.median(off)), float(np.percentile(off, 90)))
        for kind, off in kinds.items()
        if off
    )


def write_ticks(
    path: Path, about: Mapping[str, str], config: RuntimeConfig, context: int, ticks: Sequence[Any]
) -> None:
    """Write measured ticks in the form that `read_calibration` reads.

    Args:
        path: of the file.
        about: model, device, dtype, jax.
        config: mesh, slots and pool.
        context: most tokens of one request.
        ticks: `{"shape": …, "seconds": …, "stages": …}` each.
    """
    mesh = {field.name: getattr(config.mesh, field.name) for field in fields(config.mesh)}
    for name in ("buckets", "shared_buckets"):
        mesh[name] = asdict(mesh[name]) if mesh[name] is not None else None
    stated = {
        "format": FORMAT,
        **about,
        "context": context,
        "slots": config.slots,
        "pool_tokens": config.pool_tokens or context,
        "mesh": mesh,
        "ticks": list(ticks),
    }
    path.write_text(json.dumps(stated), encoding="utf-8")


def _features(tick: Tick) -> tuple[float, ...]:
    """In the order of the coefficients of `MeasuredTimes`."""
    work = tick.work
    squares, read = (sum(column) for column in zip(*work.chunks, strict=True)) if work.chunks else (0.0, 0.0)
    return 1.0, tick.shape.rows, squares, read, work.context, work.rows


def _tick(stated: Mapping[str, Any], mesh: MeshConfig, context: int) -> Tick:
    """A tick of the file, with the work of the group that has most."""
    seconds = float(stated["seconds"])
    if not 0 < seconds < math.inf:
        raise SpecError(f"a tick took {stated['seconds']} seconds; they must be above 0")
    shape = Shape(*map(int, stated["shape"]))
    per_group = (mesh.tokens_per_group or context) if mesh.kvp > 1 else 2**62
    works: list[GroupWork] = []
    for stage in stated["stages"]:
        shared, own = GroupWork(), dict[int, GroupWork]()
        for start, length, groups in stage:
            work = shared if len(groups) > 1 else own.setdefault(int(groups[0]), GroupWork())
            chunk_work(work, int(start), int(length), per_group)
        works += [shared + work for work in own.values()] or [shared]
    most = max(works, key=lambda work: (sum(squares for squares, _ in work.chunks), work.context), default=GroupWork())
    host = stated.get("host_s")
    return Tick(shape, most, seconds, None if host is None else max(0.0, float(host)))
