"""Lengths of requests, from quantile tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np
import yaml

TABLES = "quantiles.yaml"


class WorkloadError(ValueError):
    """A workload that does not exist, or cannot be made."""


@dataclass(frozen=True)
class Quantiles:
    """A distribution of lengths: `values` (tokens) at the cumulative `probabilities`, both increasing."""

    probabilities: tuple[float, ...]
    values: tuple[float, ...]

    def at(self, probability: np.ndarray | float) -> np.ndarray:
        """Tokens at a cumulative probability, interpolated."""
        return np.asarray(np.interp(probability, self.probabilities, self.values))


@dataclass(frozen=True)
class Lengths:
    """Prompt and output tokens of one kind of request, drawn independently."""

    prompt: Quantiles
    output: Quantiles


@dataclass(frozen=True)
class Mix:
    """Short requests and, unless `long` is None, a share of long ones.

    `gaps_cv` is the coefficient of variation of the gaps between the trace's requests, None for a trace without times.
    """

    short: Lengths
    long: Lengths | None
    long_share: float
    gaps_cv: float | None = None

    def at(self, uniform: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Prompt tokens, output tokens and whether the request is long, from draws `[requests, 3]` in [0, 1).

        One row makes one request, so more draws do not change the first requests.
        """
        long = uniform[:, 0] < self.long_share
        prompt, output = self.short.prompt.at(uniform[:, 1]), self.short.output.at(uniform[:, 2])
        if self.long is not None:
            prompt = np.where(long, self.long.prompt.at(uniform[:, 1]), prompt)
            output = np.where(long, self.long.output.at(uniform[:, 2]), output)
        return prompt, output, long


def load_mix(name: str) -> Mix:
    """A mix of the package: by its percentage of long requests (`0`, `1`, `5`), or by a trace's name.

    Raises:
        WorkloadError: there is no such mix.
    """
    text = resources.files("medha_jax.workload").joinpath(TABLES).read_text(encoding="utf-8")
    # libyaml's loader takes a tenth of the time, but some builds of PyYAML lack it.
    return mix_from(yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader)), name)


def mix_from(tables: Mapping[str, Any], name: str) -> Mix:
    """The named mix from the tables of `tools/make_quantiles.py`.

    Raises:
        WorkloadError: there is no such mix.
    """
    probabilities, mixes = tuple(tables["probabilities"]), tables["mixes"]
    if name not in mixes:
        raise WorkloadError(f"there is no mix {name!r}; there are {', '.join(mixes)}")

    def lengths(kind: str) -> Lengths:
        of = mixes[name][kind]
        return Lengths(*(Quantiles(probabilities, tuple(of[column])) for column in ("prompt", "output")))

    long = lengths("long") if "long" in mixes[name] else None
    return Mix(lengths("short"), long, mixes[name]["long_share"], mixes[name].get("gaps_cv"))
