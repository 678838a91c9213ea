"""Calibration: a machine's times, read from a file of measured ticks and slices.

`medha-jax simulate measure` writes the file (JSON); `simulate traffic --calibration` reads it:

    {"format": "medha-jax ticks 1",
     "model": "tiny", "device": "AMD EPYC, 2 cores", "dtype": "float32", "jax": "0.10.2",
     "context": 8192, "slots": 8, "pool_tokens": 16384, "mesh": {settings of a layout},
     "ticks": [{"shape": [8, 64, 0, 0], "seconds": 0.0123, "host_s": 0.0004,
                "stages": [[[start, length, groups], ...], ...]}, ...]}

- `shape`: padded rows: own decodes, own prompt tokens, shared decodes, shared prompt tokens.
- `seconds`: from dispatch to results (`TickReport.ended - started`).
- `host_s` (optional): from the end of the previous tick to this dispatch, if the engine did not wait for a request.
- `stages`: the chunks of each pipeline stage: first position, tokens, and the request's groups in order of allocation.
  A chunk of one token is a decode row.
- `slowness` (optional, default 1): how slow the machine was at that time, by a probe; 1 is its best.
- `layers` (slices only): first layer of each stage that ran, and the one after the last. The same chunks come once in
  every slice of a round.

The first tick of a shape is left out. Even ticks are fitted (`medha_jax.simulate.fitting`); odd ticks give the errors.
So are slices, apart from ticks. Simulated slices have numbers of layers that were measured. A machine with fewer than
64 measured slices is simulated without slices.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from medha_jax.config import ConfigError, MeshConfig, RuntimeConfig, mesh_from
from medha_jax.simulate.deployments import Deployment
from medha_jax.simulate.fitting import Errors, errors, fit, fit_slices
from medha_jax.simulate.hardware import SpecError
from medha_jax.simulate.measured import MeasuredSlice, MeasuredTick, MeasuredTimes
from medha_jax.simulate.times import GroupWork
from medha_jax.specs.buckets import NO_ROWS, Bucket, Segment, padded_segment
from medha_jax.specs.sizes import tokens_per_group

FORMAT = "medha-jax ticks 1"
LEAST_TICKS = 32
MOST_TICKS = 1_000_000


@dataclass(frozen=True)
class Calibration:
    """A measured machine: `times` are fitted to the even ticks of its file.

    Args:
        about: model, device, dtype and jax, as the file states them.
        config: mesh, slots and pool; no model to load.
        context: most tokens of one request.
        errors: of the odd ticks and slices; the first entry covers all ticks, the others one regime each.
        slices: measured ones; none if they are too few to fit.
    """

    about: Mapping[str, str]
    config: RuntimeConfig
    context: int
    ticks: tuple[MeasuredTick, ...]
    times: MeasuredTimes
    errors: tuple[Errors, ...]
    slices: tuple[MeasuredSlice, ...]

    def machine(self) -> Deployment:
        """The machine as a deployment to simulate."""
        about = ", ".join(f"{name} {value}" for name, value in self.about.items())
        found = Deployment("measured", f"measured: {about}", self.times, self.config, self.context, self.times)
        if not self.slices:
            return found.chunks_only
        lengths = {one.past - one.first for one in self.slices} | {max(one.past for one in self.slices)}
        return replace(found, slice_lengths=tuple(sorted(lengths)))


def read_calibration(path: Path) -> Calibration:
    """Read measured ticks and fit times to them.

    Raises:
        SpecError: the file cannot be read, has another format, or has too few ticks.
    """
    try:
        stated = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SpecError(f"cannot read calibration {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # also a number of thousands of digits
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
        ticks = tuple(_tick(one, mesh, context) for one in stated["ticks"] if "layers" not in one)
        slices = tuple(_slice(one, mesh, context) for one in stated["ticks"] if "layers" in one)
        about = {name: str(stated[name]) for name in ("model", "device", "dtype", "jax") if name in stated}
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        if isinstance(error, SpecError | ConfigError):
            raise
        raise SpecError(f"{path}: {error!r}") from None
    used, held = ticks[::2], ticks[1::2]
    if len(used) < LEAST_TICKS:
        raise SpecError(f"{path} has {len(ticks)} ticks; at least {2 * LEAST_TICKS} are needed")
    times = fit(used, mesh)
    if len(slices) < 2 * LEAST_TICKS:
        slices = ()
    else:
        times = replace(times, slices=fit_slices(slices[::2]))
    found = errors(times, held, slices[1::2])
    return Calibration(about, config, context, ticks, times, found, slices)


def write_ticks(
    path: Path,
    about: Mapping[str, str],
    config: RuntimeConfig,
    context: int,
    ticks: Sequence[Any],
) -> None:
    """Write measured ticks and slices in the form that `read_calibration` reads; the module describes their fields."""
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


def _tick(stated: Mapping[str, Any], mesh: MeshConfig, context: int) -> MeasuredTick:
    """One tick of the file, with the work of its busiest group."""
    decode, prefill, *of_all = map(int, stated["shape"])
    common = padded_segment(mesh.shared_buckets or mesh.buckets, *of_all) if of_all else NO_ROWS
    bucket = Bucket(padded_segment(mesh.buckets, decode, prefill), common)
    host = stated.get("host_s")
    slowness = float(stated.get("slowness", 1))
    if not 0 < slowness < math.inf:
        raise SpecError(f"a tick has slowness {slowness}; it must be above 0")
    host_s = None if host is None else max(0.0, float(host))
    return MeasuredTick(bucket, _busiest(stated, mesh, context), _seconds(stated), host_s, slowness)


def _slice(stated: Mapping[str, Any], mesh: MeshConfig, context: int) -> MeasuredSlice:
    """One slice of the file, with the work of its busiest group."""
    first, past = map(int, stated["layers"])
    if not 0 <= first < past:
        raise SpecError(f"a slice has layers [{first}, {past})")
    _, own, _, shared = map(int, stated["shape"])
    shape = Bucket(*(Segment(0, rows, 1) if rows else NO_ROWS for rows in (own, shared)))
    return MeasuredSlice(shape, first, past, _busiest(stated, mesh, context), _seconds(stated))


def _seconds(stated: Mapping[str, Any]) -> float:
    seconds = float(stated["seconds"])
    if not 0 < seconds < math.inf:
        raise SpecError(f"a tick took {stated['seconds']} seconds; they must be above 0")
    return seconds


def _busiest(stated: Mapping[str, Any], mesh: MeshConfig, context: int) -> GroupWork:
    """The work of the busiest group of any stage."""
    per_group = tokens_per_group(mesh, context)
    works: list[GroupWork] = []
    for stage in stated["stages"]:
        shared = GroupWork()
        own: dict[int, GroupWork] = {}
        for start, length, groups in stage:
            work = shared if len(groups) > 1 else own.setdefault(int(groups[0]), GroupWork())
            work.add(int(start), int(length), per_group)
        works += [shared + work for work in own.values()] or [shared]
    return max(works, key=lambda work: (sum(squares for squares, _ in work.chunks), work.context), default=GroupWork())
