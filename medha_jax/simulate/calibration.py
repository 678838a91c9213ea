"""Times of a machine from its own ticks: what is measured replaces what is assumed, and says how far it is off.

The file (JSON) that `medha-jax simulate measure` writes, and `simulate traffic --calibration` reads:

    {"format": "medha-jax ticks 1",
     "model": "tiny", "device": "AMD EPYC, 2 cores", "dtype": "float32", "jax": "0.10.2",
     "context": 8192, "slots": 8, "pool_tokens": 16384, "mesh": {settings of a layout},
     "ticks": [{"shape": [8, 64, 0, 0], "seconds": 0.0123, "host_s": 0.0004,
                "stages": [[[start, length, groups], ...], ...]}, ...]}

`shape` has the padded rows: own decodes, own prompt tokens, shared decodes, shared prompt tokens. `seconds` is from the
dispatch to the results (`TickReport.ended - started`), `host_s`, which may be left out, from the end of the tick before
to the dispatch, where the engine did not wait for a request. `slowness`, 1 where it is left out, says how many times as
long as at its best the machine took just then for something else, always the same. `stages` has, for each pipeline stage, the chunks that it
computed: position of the first token, tokens, and the groups that hold the request, in order. A chunk of one token
is a decode row. The first tick of a shape is left out.

The model of a tick, whose numbers are all fitted:

    seconds = slowed x (base[shape] + squares x attention + read x context + decoded x decode + rows x row
                        + beside x mixed)
    host_s  = slowed x (host + rows x host_row)
    slowed  = 1 + sensitivity x (slowness - 1)

with squares, read and decoded of the slowest stage and group as in `GroupWork`; `mixed` is 1 where decodes run beside
prompts, and 0 elsewhere. Programs read KV in blocks: read is rounded up to a multiple of `block` for each chunk, and
decoded to one of `decode_block`; the sizes are those of `BLOCKS` that fit best. A robust fit with a base that is
linear in rows comes first; then each shape that has ticks enough gets a base of its own, the median of what is left.
Even ticks of the file are fitted, odd ones give the errors.

That predicts the median of ticks that do the same. Some take longer, because somebody else had the processor, and
requests wait for these as well: `delays` is the mean of measured over predicted seconds, and simulated ticks take so
many times their median. The host's time is a mean.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from medha_jax.config import ConfigError, MeshConfig, RuntimeConfig, mesh_from
from medha_jax.scheduler.time_model import nonnegative_least_squares, robust_fit
from medha_jax.scheduler.work import TickWork
from medha_jax.simulate.deployments import Deployment
from medha_jax.simulate.hardware import SpecError
from medha_jax.simulate.sizes import shapes_of
from medha_jax.simulate.times import GroupWork, Shape, chunk_work

FORMAT = "medha-jax ticks 1"
LEAST_TICKS, OWN_BASE_TICKS = 32, 5
MOST_TICKS = 1_000_000
SHORT_CONTEXT = 1024
BLOCKS = (1, 64, 256, 1024)  # tokens
SENSITIVITIES = tuple(step / 10 for step in range(16))
MOST_DELAYED = 5.0  # times its predicted seconds; what takes longer than that is none of the machine's own
MOST_HOST_S = 0.05  # likewise, of the host between two ticks


@dataclass(frozen=True)
class Tick:
    """A measured tick: the shape that it ran in, its slowest group's work, its seconds, and the host's before it.

    `slowness` is that of the machine at that time, as measured by something else.
    """

    shape: Shape
    work: GroupWork
    seconds: float
    host_s: float | None = None
    slowness: float = 1.0

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
        beside: seconds of decodes that run beside prompts.
        bases: seconds of shapes that were measured often enough.
        block, decode_block: tokens that are read at once, by prompt chunks and by decodes.
        delays: mean of measured over predicted seconds; the scheduler does not predict it.
        sensitivity: what of the machine's slowness ticks feel.
        host, host_row: of the host between ticks: seconds, and seconds a real row. The scheduler does not predict them.
    """

    fixed: float
    tokens: float
    attention: float
    context: float
    decode: float
    row: float
    beside: float = 0.0
    bases: Mapping[Shape, float] = field(default_factory=dict)
    block: int = 1
    decode_block: int = 1
    delays: float = 1.0
    sensitivity: float = 0.0
    host: float = 0.0
    host_row: float = 0.0

    def base(self, shape: Shape) -> float:
        """Seconds of a shape without anything in it."""
        known = self.bases.get(shape)
        return self.fixed + self.tokens * shape.rows if known is None else known

    def group_seconds(self, shape: Shape, work: GroupWork) -> float:
        """Seconds of a group's part of a tick, and of the host before it."""
        return self.delays * self.tick_seconds(shape, work) + self.host + self.host_row * work.rows

    def tick_seconds(self, shape: Shape, work: GroupWork) -> float:
        """Seconds of a group's part of a tick, the median."""
        decoded = -(-work.context // self.decode_block) * self.decode_block
        seconds = self.base(shape) + self.decode * decoded + self.row * work.rows
        block, chunks = self.block, work.chunks
        for squares, read in chunks:
            seconds += self.attention * squares + self.context * (-(-read // block) * block)
        return seconds + self.beside if 0 < len(chunks) < work.rows else seconds

    def slowed(self, slowness: float) -> float:
        """How many times as long ticks take on a machine that is so slow; 1 where it is at its best."""
        return 1 + self.sensitivity * (slowness - 1)

    def predicted(self, tick: Tick) -> float:
        """Seconds of a measured tick, the median of its like."""
        return self.tick_seconds(tick.shape, tick.work) * self.slowed(tick.slowness)

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
    mean: float


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

    def best(times: Iterable[MeasuredTimes]) -> MeasuredTimes:
        return min(times, key=lambda found: errors(found, ticks)[0].mean)

    blocks = [(block, decode_block) for block in BLOCKS for decode_block in BLOCKS]
    varying = any(tick.slowness != 1 for tick in ticks)
    times = best(_fitted(ticks, mesh, sizes, 1.0 if varying else 0.0) for sizes in blocks)
    if varying:
        sizes = times.block, times.decode_block
        times = best(_fitted(ticks, mesh, sizes, sensitivity) for sensitivity in SENSITIVITIES)
    ratios = [tick.seconds / times.predicted(tick) for tick in ticks]
    delays = float(np.mean([ratio for ratio in ratios if ratio < MOST_DELAYED] or [1.0]))
    gaps = [
        (tick.work.rows, tick.host_s / times.slowed(tick.slowness))
        for tick in ticks
        if tick.host_s is not None and tick.host_s < MOST_HOST_S
    ]
    host, host_row = 0.0, 0.0
    if gaps:
        rows, waits = np.array(gaps, float).T
        host, host_row = nonnegative_least_squares(np.stack([np.ones_like(rows), rows], axis=1), waits).tolist()
    return dataclasses.replace(times, delays=delays, host=host, host_row=host_row)


def _fitted(
    ticks: Sequence[Tick], mesh: MeshConfig, blocks: tuple[int, int], sensitivity: float
) -> MeasuredTimes:
    """Medians of ticks, where KV is read in blocks of so many tokens, by prompt chunks and by decodes."""
    block, decode_block = blocks
    slowed = np.array([1 + sensitivity * (tick.slowness - 1) for tick in ticks])
    seconds = np.array([tick.seconds for tick in ticks]) / slowed
    columns = np.array([_features(tick, block, decode_block) for tick in ticks])
    coefficients = robust_fit(columns / seconds[:, None], np.ones(len(ticks))).tolist()
    plain = MeasuredTimes(*coefficients, block=block, decode_block=decode_block, sensitivity=sensitivity)
    left: dict[Shape, list[tuple[float, float]]] = {}
    for tick, took in zip(ticks, seconds.tolist(), strict=True):
        inside = plain.tick_seconds(tick.shape, tick.work) - plain.base(tick.shape)
        left.setdefault(tick.shape, []).append((took - inside, 1 / took))
    compiled = set(shapes_of(mesh))
    bases = {
        shape: max(_weighted_median(rest), 0.0)
        for shape, rest in left.items()
        if len(rest) >= OWN_BASE_TICKS and shape in compiled
    }
    return dataclasses.replace(plain, bases=bases)


def _weighted_median(weighted: Sequence[tuple[float, float]]) -> float:
    """The value below and above which there is the same weight, of (value, weight)."""
    values, weights = np.array(sorted(weighted)).T
    reached = np.cumsum(weights)
    return float(values[np.searchsorted(reached, reached[-1] / 2)])


def errors(times: MeasuredTimes, ticks: Sequence[Tick]) -> tuple[Errors, ...]:
    """How far times are off, over all ticks and over each kind."""
    kinds: dict[str, list[float]] = {"all": []}
    for tick in ticks:
        off = abs(times.predicted(tick) - tick.seconds) / tick.seconds
        kinds["all"].append(off)
        kinds.setdefault(tick.regime, []).append(off)
    return tuple(
        Errors(kind, len(off), float(np.median(off)), float(np.percentile(off, 90)), float(np.mean(off)))
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


def _features(tick: Tick, block: int, decode_block: int) -> tuple[float, ...]:
    """In the order of the coefficients of `MeasuredTimes`."""
    work = tick.work
    squares = sum(squares for squares, _ in work.chunks)
    read = sum(-(-read // block) * block for _, read in work.chunks)
    decoded = -(-work.context // decode_block) * decode_block
    return 1.0, tick.shape.rows, squares, read, decoded, work.rows, float(0 < len(work.chunks) < work.rows)


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
    slowness = float(stated.get("slowness", 1))
    if not 0 < slowness < math.inf:
        raise SpecError(f"a tick has slowness {slowness}; it must be above 0")
    return Tick(shape, most, seconds, None if host is None else max(0.0, float(host)), slowness)
