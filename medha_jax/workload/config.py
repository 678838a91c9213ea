"""The configuration of a workload, as frozen data with checked fields."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from medha_jax.config import PRIORITIES
from medha_jax.workload.mixes import WorkloadError
from medha_jax.workload.presets import PRESETS

FILES = ("prompts", "mooncake", "azure")
SOURCES = (*PRESETS, "random", *FILES)
PROCESSES = ("poisson", "gamma", "constant", "ramp", "trace")

# More is a typing error, or a run that takes too long to wait for.
MAX_REQUESTS, MAX_SECONDS, MAX_RATE = 1_000_000, 7 * 86_400.0, 100_000.0
MAX_PROMPT, MAX_OUTPUT, MAX_VOCABULARY = 2**24, 2**20, 2**24
MAX_SEED = 2**63 - 1


@dataclass(frozen=True)
class WorkloadConfig:
    """Requests with lengths from a source and times from a process; `build` makes them.

    Args:
        source: a preset (`PRESETS`), "random", or the kind of the file at `path`: "prompts" (JSON lines), "mooncake" (a
            trace in JSON lines), "azure" (a trace in CSV). Samples of a file are taken in order, and again from the
            first if there are too few. Only the process "trace" takes the file's times, and ends with it.
        prompt_range: least and most prompt tokens of "random", uniform between them.
        output_range: the same for its output, and for "prompts" lines that name no output.
        scale: factor of prompt and output tokens; the share of decodes in the work hardly changes. Lengths stay at
            least 1. Prompts of a "prompts" file cannot be scaled.
        output_scale: factor of output tokens, if it differs.
        process: "poisson", "gamma", "constant", "ramp", or "trace" for the times of a trace file.
        rate: requests a second; infinity sends all at once. For a ramp, the rate at its start.
        rate_end: the rate at the end of a ramp. It changes linearly over `duration`, or over the seconds in which
            `num_requests` are expected.
        burstiness: shape of gamma's gaps, whose coefficient of variation is 1/√shape: 1 is Poisson, less is burstier,
            more is more regular. None: that of the preset's trace, else 1.
        speed: factor by which a trace's times pass faster.
        num_requests: where to stop, unless `duration` ends first.
        duration: seconds in which requests are due.
        seed: equal seeds give equal requests, times and content.
        vocabulary: token ids are drawn from 0 up to, not including, this.
        warmup: number of requests to send, and finish, before the start.
        probe_rate: evenly spaced short requests a second, of kind "probe": they show how much others are delayed.
        probe_prompt: their prompt tokens.
        probe_output: their output tokens.
        cancel_rate: share of the requests, without probes, that the client cancels.
        priorities: (class, share of the requests) pairs; all other requests, and probes, have 0.
        long_tokens: prompts of at least this many tokens (times `scale`) are "long", if the source has no kinds.
        context_limit: most prompt and output tokens of one request together.
    """

    source: str = "sharegpt-8k"
    path: str | None = None
    prompt_range: tuple[int, int] = (1024, 1024)
    output_range: tuple[int, int] = (128, 128)
    scale: float = 1.0
    output_scale: float | None = None
    process: str = "poisson"
    rate: float = 1.0
    rate_end: float | None = None
    burstiness: float | None = None
    speed: float = 1.0
    num_requests: int | None = None
    duration: float | None = None
    seed: int = 0
    vocabulary: int = 32_000
    warmup: int = 0
    probe_rate: float = 0.0
    probe_prompt: int = 128
    probe_output: int = 16
    cancel_rate: float = 0.0
    priorities: tuple[tuple[int, float], ...] = ()
    long_tokens: int = 65_536
    context_limit: int | None = None

    def __post_init__(self) -> None:
        self._check_source()
        self._check_process()
        self._check_length()
        within("seed", self.seed, 0, MAX_SEED)
        within("vocabulary", self.vocabulary, 1, MAX_VOCABULARY)
        within("warm-up requests", self.warmup, 0, 1000)
        within("probe rate", self.probe_rate, 0, MAX_RATE)
        within("probe prompt", self.probe_prompt, 1, MAX_PROMPT)
        within("probe output", self.probe_output, 1, MAX_OUTPUT)
        within("cancel rate", self.cancel_rate, 0, 1)
        self._check_priorities()
        within("long tokens", self.long_tokens, 1, MAX_PROMPT)
        if self.context_limit is not None:
            within("context limit", self.context_limit, 2, MAX_PROMPT + MAX_OUTPUT)

    @property
    def steady_rate(self) -> float | None:
        """Requests a second of a process that has one rate; None for a trace or a ramp."""
        return None if self.process in ("trace", "ramp") else self.rate

    def next_seeds(self, count: int) -> list[WorkloadConfig]:
        """This workload with `count` successive seeds, from its own.

        Raises:
            WorkloadError: a seed is too large.
        """
        return [replace(self, seed=self.seed + number) for number in range(count)]

    def _check_priorities(self) -> None:
        classes = [priority for priority, _ in self.priorities]
        if len(set(classes)) < len(classes):
            raise WorkloadError(f"the priorities {', '.join(map(str, classes))} name a class twice")
        for priority, share in self.priorities:
            within("priority", priority, PRIORITIES[0], PRIORITIES[-1])
            within(f"share of priority {priority}", share, 0, 1)
        within("sum of the shares of priorities", round(math.fsum(share for _, share in self.priorities), 9), 0, 1)

    def _check_source(self) -> None:
        if self.source not in SOURCES:
            raise WorkloadError(f"there is no source {self.source!r}; there are {', '.join(SOURCES)}")
        if (self.source in FILES) != (self.path is not None):
            needs = "needs a" if self.path is None else "takes no"
            raise WorkloadError(f"source {self.source!r} {needs} file; {', '.join(FILES)} need one")
        for name, (low, high), most in (
            ("prompt tokens", self.prompt_range, MAX_PROMPT),
            ("output tokens", self.output_range, MAX_OUTPUT),
        ):
            within(f"least {name}", low, 1, most)
            within(f"most {name}", high, low, most)
        for name, scale in (("scale", self.scale), ("output scale", self.output_scale)):
            if scale is not None:
                within(name, scale, 1e-4, 64)
        if self.source == "prompts" and self.scale != 1:
            raise WorkloadError("prompts of a file are sent as they are; scale must be 1 (output scale may be another)")

    def _check_process(self) -> None:
        if self.process not in PROCESSES:
            raise WorkloadError(f"there is no process {self.process!r}; there are {', '.join(PROCESSES)}")
        if self.process == "trace" and self.source not in ("mooncake", "azure"):
            raise WorkloadError(f"source {self.source!r} has no times; process 'trace' takes mooncake and azure files")
        if not (self.rate == math.inf or 1e-6 <= self.rate <= MAX_RATE):
            raise WorkloadError(f"rate is {self.rate}; allowed are 0.000001 to {MAX_RATE:,g} requests/s, and inf")
        if (self.process == "ramp") != (self.rate_end is not None):
            raise WorkloadError("an end rate and the process 'ramp' belong together; give both or neither")
        if self.rate_end is not None:
            within("end rate", self.rate_end, 1e-6, MAX_RATE)
            within("rate of a ramp", self.rate, 1e-6, MAX_RATE)
        if self.burstiness is not None:
            within("burstiness", self.burstiness, 1e-4, 1e6)
            if self.process != "gamma":
                raise WorkloadError(f"burstiness belongs to the process 'gamma', not to {self.process!r}")
        within("speed", self.speed, 1e-3, 1e6)
        if self.speed != 1 and self.process != "trace":
            raise WorkloadError(f"speed belongs to the process 'trace', not to {self.process!r}")

    def _check_length(self) -> None:
        if self.num_requests is not None:
            within("number of requests", self.num_requests, 1, MAX_REQUESTS)
        if self.duration is not None:
            within("duration", self.duration, 1e-3, MAX_SECONDS)
        if self.process == "trace":
            return
        if self.num_requests is None:
            if self.duration is None:
                raise WorkloadError("the workload has no end; give a number of requests, a duration, or both")
            rate = max(self.rate, self.rate_end or 0.0)
            if rate * self.duration > MAX_REQUESTS:
                raise WorkloadError(
                    f"{rate:g} requests/s for {self.duration:g} s; allowed are {MAX_REQUESTS:,} requests"
                )
        if self.probe_rate * (self.duration or 0) > MAX_REQUESTS:
            raise WorkloadError(f"{self.probe_rate:g} probes/s for {self.duration:g} s; allowed are {MAX_REQUESTS:,}")


@dataclass(frozen=True)
class ConvoyConfig:
    """Long prompts, and short requests behind them; `build_convoy` makes them.

    Args:
        longs: number of long prompts, all due at 0.
        long_prompt: tokens of each.
        shorts: number of short requests.
        short_prompt: prompt tokens of each.
        short_prompt_most: if set, prompt tokens are uniform from `short_prompt` to this.
        first: seconds until the first of them is due.
        interval: seconds from one to the next.
        vocabulary: token ids are drawn from 0 up to, not including, this.
    """

    longs: int = 1
    long_prompt: int = 32_768
    long_output: int = 16
    shorts: int = 10
    short_prompt: int = 128
    short_prompt_most: int | None = None
    short_output: int = 16
    first: float = 1.0
    interval: float = 1.0
    seed: int = 0
    vocabulary: int = 32_000

    def __post_init__(self) -> None:
        within("long requests", self.longs, 1, MAX_REQUESTS)
        within("long prompt", self.long_prompt, 1, MAX_PROMPT)
        within("long output", self.long_output, 1, MAX_OUTPUT)
        within("short requests", self.shorts, 0, MAX_REQUESTS)
        within("short prompt", self.short_prompt, 1, MAX_PROMPT)
        if self.short_prompt_most is not None:
            within("longest short prompt", self.short_prompt_most, self.short_prompt, MAX_PROMPT)
        within("short output", self.short_output, 1, MAX_OUTPUT)
        within("first arrival", self.first, 0, MAX_SECONDS)
        within("interval", self.interval, 0, MAX_SECONDS)
        within("seed", self.seed, 0, MAX_SEED)
        within("vocabulary", self.vocabulary, 1, MAX_VOCABULARY)


def within(name: str, value: float, low: float, high: float) -> None:
    """Raise `WorkloadError` for a value outside of [low, high], and for NaN."""
    if not low <= value <= high:
        raise WorkloadError(f"{name} is {value:,}; allowed are {low:,} to {high:,}")
