"""Devices as data: peak rates from data sheets, and the share of them that programs reach."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from medha_jax.config.yaml_file import read_mapping

FOLDER = "hardware"
ASSUMED = "assumed"


class SpecError(ValueError):
    """A hardware or model specification cannot be used; the message says what is allowed."""


@dataclass(frozen=True)
class Link:
    """A link between devices: bytes/s of one device in one direction, and seconds of the smallest collective."""

    bandwidth: float
    latency: float


@dataclass(frozen=True)
class Coefficients:
    """What programs reach on a device. Shares are of peak rates, in (0, 1]; times are in seconds.

    Args:
        matmul: share of the peak in a large matrix product.
        matmul_rows: rows at which a matrix product reaches half of that, because tiles and pipelines are not full.
        attention: share of the peak in the attention of prompt chunks.
        weights: share of the memory's bandwidth when weights and activations are read.
        kv: share of the memory's bandwidth when KV is read.
        link: share of a link's bandwidth.
        launch_s: of the host per layer; devices that are faster wait for it.
        tick_s: of a tick apart from its layers; nothing overlaps it.
        row_s: per real row, which is sampled and delivered.
    """

    matmul: float
    matmul_rows: float
    attention: float
    weights: float
    kv: float
    link: float
    launch_s: float
    tick_s: float
    row_s: float

    def __post_init__(self) -> None:
        for name in SHARES:
            _within(name, getattr(self, name), 0, 1, open_low=True)
        for name in ("matmul_rows", "launch_s", "tick_s", "row_s"):
            _within(name, getattr(self, name), 0, 1e6)


SHARES = ("matmul", "attention", "weights", "kv", "link")
COEFFICIENTS = tuple(field.name for field in fields(Coefficients))


@dataclass(frozen=True)
class Hardware:
    """A device, its node and its network.

    Args:
        name: in `mesh_configs` and on the command line.
        about: a description.
        memory: bytes of one device.
        bandwidth: of its memory, bytes/s.
        peak: FLOP/s of a dense matrix product, by dtype.
        cores: run thread blocks in parallel (streaming multiprocessors).
        node: number of devices that `near` joins.
        near: the link within a node.
        far: the link between nodes.
        price: USD for a device and hour.
        sources: where the price and each coefficient come from; "assumed" if not measured.
    """

    name: str
    about: str
    memory: int
    bandwidth: float
    peak: Mapping[str, float]
    cores: int
    node: int
    near: Link
    far: Link
    price: float
    coefficients: Coefficients
    sources: Mapping[str, str]

    @property
    def assumed(self) -> tuple[str, ...]:
        """Names of the figures that are assumed, not measured."""
        return tuple(name for name, source in self.sources.items() if source == ASSUMED)

    def peak_of(self, dtype: str) -> float:
        """FLOP/s in a dtype.

        Raises:
            SpecError: the rate is not known.
        """
        if dtype not in self.peak:
            raise SpecError(f"{self.name} has no peak rate for {dtype}; there are {', '.join(self.peak)}")
        return self.peak[dtype]


def hardware_names() -> tuple[str, ...]:
    """Names of the devices that come with the package."""
    folder = resources.files("medha_jax.simulate").joinpath(FOLDER)
    return tuple(sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml")))


def load_hardware(name: str) -> Hardware:
    """A device of the package, or one from a YAML file of the same form.

    Raises:
        SpecError: there is no such device, or a figure is missing, unknown or out of range.
    """
    if name in hardware_names():
        place: Path | Traversable = resources.files("medha_jax.simulate").joinpath(FOLDER, f"{name}.yaml")
    elif name.endswith((".yaml", ".yml")):
        place = Path(name)
    else:
        raise SpecError(f"there is no hardware {name!r}; give a YAML file, or one of: {', '.join(hardware_names())}")
    try:
        return hardware_from(read_mapping(place, SpecError, what=f"hardware {name!r}"))
    except OSError as error:
        raise SpecError(f"cannot read hardware {name!r}: {error.strerror}") from None


def hardware_from(stated: Any) -> Hardware:
    """A device from the mapping of a YAML file.

    Raises:
        SpecError: a figure is missing, unknown or out of range.
    """
    if not isinstance(stated, Mapping):
        raise SpecError("hardware must be a mapping")
    known = {"name", "about", "memory", "bandwidth", "peak", "cores", "node", "links", "price", "coefficients"}
    _names("hardware", stated, known)
    _names("links", stated["links"], {"node", "network"})
    _names("coefficients", stated["coefficients"], set(COEFFICIENTS))
    figures = {"price": stated["price"], **stated["coefficients"]}
    for name, figure in figures.items():
        _names(name, figure, {"value", "source"})
    near, far = (_link(kind, stated["links"][kind]) for kind in ("node", "network"))
    if not isinstance(stated["peak"], Mapping) or not stated["peak"]:
        raise SpecError("peak must give FLOP/s by dtype")
    return Hardware(
        name=str(stated["name"]),
        about=str(stated["about"]),
        memory=int(_within("memory", stated["memory"], 1, 1e18)),
        bandwidth=_within("bandwidth", stated["bandwidth"], 1, 1e18),
        peak={str(dtype): _within(f"peak {dtype}", rate, 1, 1e20) for dtype, rate in stated["peak"].items()},
        cores=int(_within("cores", stated["cores"], 1, 1e6)),
        node=int(_within("node", stated["node"], 1, 1e6)),
        near=near,
        far=far,
        price=_within("price", stated["price"]["value"], 0, 1e6),
        coefficients=Coefficients(
            **{name: _within(name, stated["coefficients"][name]["value"], 0, 1e6) for name in COEFFICIENTS}
        ),
        sources={name: str(figure["source"]) for name, figure in figures.items()},
    )


def _link(kind: str, stated: Any) -> Link:
    _names(f"link {kind}", stated, {"bandwidth", "latency"})
    bandwidth = _within(f"{kind} bandwidth", stated["bandwidth"], 1, 1e18)
    return Link(bandwidth, _within(f"{kind} latency", stated["latency"], 0, 10))


def _names(what: str, stated: Any, wanted: set[str]) -> None:
    """Check that a mapping has exactly these names."""
    if not isinstance(stated, Mapping):
        raise SpecError(f"{what} must be a mapping of {', '.join(sorted(wanted))}")
    if missing := sorted(wanted - stated.keys()):
        raise SpecError(f"{what} lacks {', '.join(missing)}")
    if unknown := sorted(map(str, stated.keys() - wanted)):
        raise SpecError(f"{what} has unknown {', '.join(unknown)}; allowed are {', '.join(sorted(wanted))}")


def _within(name: str, value: Any, low: float, high: float, *, open_low: bool = False) -> float:
    """Check that a number is finite and in `[low, high]`, or `(low, high]`."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not (low < value if open_low else low <= value) or value > high:
        left = "(" if open_low else "["
        raise SpecError(f"{name} is {value!r}; allowed is {left}{low:g}, {high:g}]")
    return float(value)
