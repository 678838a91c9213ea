"""Requests: lengths from quantile tables, arrivals of a Poisson process."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np
import yaml

TABLES = "quantiles.yaml"
BLOCK = 256  # requests drawn at once


class WorkloadError(ValueError):
    """A workload that there is not, or of impossible size."""


@dataclass(frozen=True)
class Arrival:
    """One request: `at` seconds after the start, `prompt` and `output` in tokens."""

    at: float
    prompt: int
    output: int
    long: bool = False


@dataclass(frozen=True)
class Quantiles:
    """A distribution of lengths: `values` (tokens) at the cumulative `probabilities`, both increasing."""

    probabilities: tuple[float, ...]
    values: tuple[float, ...]

    def at(self, probability: np.ndarray | float) -> np.ndarray:
        """Tokens at a cumulative probability, interpolated."""
        return np.asarray(np.interp(probability, self.probabilities, self.values))

    def sample(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Draw whole numbers of tokens `[count]` by the inverse of the distribution function."""
        return np.rint(self.at(rng.random(count))).astype(np.int64)


@dataclass(frozen=True)
class Lengths:
    """Prompt and output tokens of one kind of request; they are drawn independently."""

    prompt: Quantiles
    output: Quantiles

    def sample(self, rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Draw the tokens of `count` requests."""
        return self.prompt.sample(rng, count), self.output.sample(rng, count)


@dataclass(frozen=True)
class Mix:
    """Short requests and, unless `long` is None, a share of long ones.

    `gaps_cv` is the coefficient of variation of the seconds between the trace's requests, None where it has no times.
    """

    short: Lengths
    long: Lengths | None
    long_share: float
    gaps_cv: float | None = None

    def at(self, uniform: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Prompt and output tokens, and whether each request is a long one, at draws `[requests, 3]` from [0, 1).

        One row makes one request, so that the first requests are the same however many there are.
        """
        long = uniform[:, 0] < self.long_share
        prompt, output = self.short.prompt.at(uniform[:, 1]), self.short.output.at(uniform[:, 2])
        if self.long is not None:
            prompt = np.where(long, self.long.prompt.at(uniform[:, 1]), prompt)
            output = np.where(long, self.long.output.at(uniform[:, 2]), output)
        return prompt, output, long

    def poisson(self, rate: float, seconds: float, seed: int) -> list[Arrival]:
        """Requests of a Poisson process.

        Args:
            rate: requests a second.
            seconds: in which they arrive.
            seed: the same one gives the same requests.

        Raises:
            WorkloadError: rate or duration is not above zero.
        """
        if not (rate > 0 and seconds > 0):
            raise WorkloadError(f"{rate} requests/s for {seconds} s; both must be above 0")
        rng = np.random.default_rng(seed)
        count = int(rng.poisson(rate * seconds))
        return self._within(rng, seconds, self._requests(rng, count))

    def offered(self, load: float, seconds: float, seed: int, work: Callable[[int], float]) -> list[Arrival]:
        """Requests of a Poisson process, as many as make the offered work a stated one.

        Few long requests carry most of the work, so a process of a stated rate offers quite different work in an hour.

        Args:
            load: seconds of work that arrive in a second, to within one request.
            seconds: in which they arrive.
            seed: the same one gives the same requests.
            work: seconds that a prompt of so many tokens takes alone.

        Raises:
            WorkloadError: load or duration is not above zero.
        """
        if not (load > 0 and seconds > 0):
            raise WorkloadError(f"a load of {load} for {seconds} s; both must be above 0")
        rng = np.random.default_rng(seed)
        requests: list[tuple[int, int, bool]] = []
        left = load * seconds
        while True:
            for request in self._requests(rng, BLOCK):
                seconds_of_it = work(request[0])
                if left < seconds_of_it / 2:
                    return self._within(rng, seconds, requests)
                left -= seconds_of_it
                requests.append(request)

    def _requests(self, rng: np.random.Generator, count: int) -> list[tuple[int, int, bool]]:
        """Prompt and output tokens of requests, and whether each is a long one."""
        long = rng.random(count) < self.long_share
        prompt, output = self.short.sample(rng, count)
        if self.long is not None:
            prompt[long], output[long] = self.long.sample(rng, int(long.sum()))
        return list(zip(prompt.tolist(), output.tolist(), long.tolist(), strict=True))

    @staticmethod
    def _within(rng: np.random.Generator, seconds: float, requests: list[tuple[int, int, bool]]) -> list[Arrival]:
        """A Poisson process of a known count: its arrivals are uniform."""
        times = np.sort(rng.random(len(requests))) * seconds
        return [Arrival(at, *request) for at, request in zip(times.tolist(), requests, strict=True)]


def load_mix(name: str) -> Mix:
    """A mix that comes with the package: by the percentage of its long requests (`0`, `1`, `5`), or a trace's name.

    Raises:
        WorkloadError: there is no such mix.
    """
    text = resources.files("medha_jax.workload").joinpath(TABLES).read_text(encoding="utf-8")
    # libyaml's loader, where PyYAML has it, takes a tenth of the time.
    return mix_from(yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader)), name)


def mix_from(tables: Mapping[str, Any], name: str) -> Mix:
    """The mix of a name from what `tools/make_quantiles.py` wrote.

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


def convoy(
    seconds: float, seed: int, long_prompt: int = 1_000_000, prompts: tuple[int, int] = (100, 2000), output: int = 64
) -> list[Arrival]:
    """One long request at the start, then a short one every second.

    Args:
        seconds: in which short requests arrive.
        seed: of their lengths.
        long_prompt: tokens of the long prompt.
        prompts: least and most tokens of a short prompt, uniform between them.
        output: tokens that each request generates.
    """
    rng = np.random.default_rng(seed)
    lengths = rng.integers(prompts[0], prompts[1] + 1, int(seconds)).tolist()
    short = [Arrival(float(second), prompt, output) for second, prompt in enumerate(lengths, 1)]
    return [Arrival(0.0, long_prompt, output, long=True), *short]


def prompt_tokens(arrivals: Sequence[Arrival]) -> int:
    """Tokens of all prompts."""
    return sum(arrival.prompt for arrival in arrivals)
