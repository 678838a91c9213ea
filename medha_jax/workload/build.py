"""From a configuration to its requests: due times, lengths and contents."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from medha_jax.workload.arrivals import due_times
from medha_jax.workload.config import FILES, MAX_REQUESTS, ConvoyConfig, WorkloadConfig
from medha_jax.workload.mixes import Mix, WorkloadError
from medha_jax.workload.presets import PRESETS, load_preset
from medha_jax.workload.request_files import BLOCK_TOKENS, Sample, in_time, read
from medha_jax.workload.requests import PROBES, REQUESTS, WARMUPS, Workload, WorkloadRequest

# Streams of random numbers under one seed, apart from those of content: asking for one thing changes no other.
_TIMES, _LENGTHS, _WARMUP_LENGTHS, _CANCELS, _OUTPUTS, _PRIORITIES = range(16, 22)
WARMUP_PROMPT, WARMUP_OUTPUT = 2048, 64  # most tokens of a warm-up request
WARMUP_TEXT = 128  # prompt tokens of a warm-up request that replaces a text of unknown length

CountTokens = Callable[[str], int]
Source = list[Sample] | Mix | None  # source of lengths; None draws them uniformly


def build(config: WorkloadConfig, count_tokens: CountTokens | None = None) -> Workload:
    """Make the requests of a configuration.

    Args:
        count_tokens: counts the tokens of a text; without it, texts have no known length.

    Raises:
        WorkloadError: the file is malformed, a request does not fit, or there are none or too many.
    """
    source = _source(config, count_tokens)
    if config.process == "trace":
        times = _trace_times(config, source)
    else:
        times = due_times(config, _burstiness(config, source), _rng(config, _TIMES))
    requests = _ranked(config, _cancelled(config, _drawn(config, source, times, _LENGTHS)))
    requests += _probes(config, requests[-1].at if config.duration is None else config.duration)
    requests.sort(key=lambda request: request.at)  # stable, so equal times keep their order
    requests = [replace(request, index=index) for index, request in enumerate(requests)]
    if config.context_limit is not None:
        _fitting(requests, config.context_limit)
    return Workload(config, _warmup(config, source), tuple(requests))


def build_offered(config: WorkloadConfig, load: float, work: Callable[[int], float]) -> Workload:
    """Make Poisson requests whose work adds up to a given load.

    Few long requests carry most of the work, so a fixed rate offers quite different work from hour to hour.

    Args:
        config: gives a preset or "random", and a duration; its rate and number of requests are not read.
        load: seconds of work that arrive in a second, to within one request.
        work: seconds of a prompt alone, by its tokens.

    Raises:
        WorkloadError: the load is not above 0, or needs too many requests.
    """
    seconds = config.duration
    if not load > 0 or seconds is None or config.source in FILES:
        raise WorkloadError(f"a load of {load} for {seconds} s of {config.source!r}; load and duration must be above 0")
    source, count, left, taken = _source(config, None), 256, load * seconds, 0
    while True:
        # a longer draw begins with the same requests
        drawn = _ranked(config, _drawn(config, source, np.zeros(count), _LENGTHS))
        for request in drawn[taken:]:
            alone = work(request.length)
            if left < alone / 2:
                # given their count, the arrivals of a Poisson process are uniform
                times = np.sort(_rng(config, _TIMES).random(taken)) * seconds
                rows = zip(drawn, times.tolist(), strict=False)
                return Workload(config, (), tuple(replace(request, at=at) for request, at in rows))
            left, taken = left - alone, taken + 1
        if count >= MAX_REQUESTS:
            raise WorkloadError(f"a load of {load} takes more than {MAX_REQUESTS:,} requests; allowed are that many")
        count *= 2


def build_convoy(config: ConvoyConfig) -> Workload:
    """Requests of kind "long" at 0 and short ones behind them, in order of their due times."""
    # the first long prompt and the short ones have the same content beside any number of long ones
    contents = 0, *range(config.shorts + 1, config.shorts + config.longs)
    long = [
        WorkloadRequest(number, 0.0, "long", config.long_prompt, config.long_output, (REQUESTS, content))
        for number, content in enumerate(contents)
    ]
    rng = np.random.default_rng(config.seed)
    prompts = rng.integers(config.short_prompt, (config.short_prompt_most or config.short_prompt) + 1, config.shorts)
    short = [
        WorkloadRequest(
            index=config.longs + number - 1,
            at=config.first + (number - 1) * config.interval,
            kind="short",
            prompt_tokens=prompt,
            output_tokens=config.short_output,
            content=(REQUESTS, number),
        )
        for number, prompt in enumerate(prompts.tolist(), 1)
    ]
    return Workload(config, (), (*long, *short))


def _rng(config: WorkloadConfig, stream: int) -> np.random.Generator:
    return np.random.default_rng([config.seed, stream])


def _source(config: WorkloadConfig, count_tokens: CountTokens | None) -> Source:
    """The source of lengths: samples of the file, with texts counted, or a preset's mix."""
    if config.source not in FILES:
        return load_preset(config.source) if config.source in PRESETS else None
    path = Path(config.path or "")
    samples = read(config.source, path, config.num_requests or MAX_REQUESTS)
    if config.source != "prompts":
        return in_time(path, samples) if config.process == "trace" else samples
    for number, sample in enumerate(samples):
        if sample.ids is not None and max(sample.ids) >= config.vocabulary:
            raise WorkloadError(f"{path}: token id {max(sample.ids)} is not in the vocabulary of {config.vocabulary:,}")
        if sample.text is not None and count_tokens is not None:
            samples[number] = replace(sample, prompt_tokens=count_tokens(sample.text))
    return samples


def _burstiness(config: WorkloadConfig, source: Source) -> float:
    """The stated shape, else that of the preset's trace, else Poisson's."""
    if config.burstiness is not None:
        return config.burstiness
    cv = source.gaps_cv if isinstance(source, Mix) else None
    return 1.0 if cv is None else cv**-2


def _trace_times(config: WorkloadConfig, source: Source) -> np.ndarray:
    """Times of a trace at the configured speed, up to the duration."""
    if not isinstance(source, list):
        raise WorkloadError(f"source {config.source!r} has no times")
    times = np.array([sample.at for sample in source], np.float64) / config.speed
    return times[times < (math.inf if config.duration is None else config.duration)]


def _drawn(config: WorkloadConfig, source: Source, times: np.ndarray, lengths: int) -> list[WorkloadRequest]:
    """Requests of the source at given times; drawn lengths come from a stream of their own."""
    if isinstance(source, list):
        return [_sampled(config, source[i % len(source)], i, at) for i, at in enumerate(times.tolist())]
    uniform = _rng(config, lengths).random((len(times), 3))
    if source is None:
        (low, high), (least, most) = config.prompt_range, config.output_range
        # floor(u (n + 1)) is uniform over 0 to n
        prompt = low + np.floor(uniform[:, 1] * (high - low + 1))
        output = least + np.floor(uniform[:, 2] * (most - least + 1))
        long = prompt >= config.long_tokens
    else:
        prompt, output, long = source.at(uniform)
    prompts, outputs = _scaled(prompt, config.scale), _scaled(output, _output_scale(config))
    rows = zip(times.tolist(), np.where(long, "long", "short").tolist(), prompts, outputs, strict=True)
    return [WorkloadRequest(i, *row, (REQUESTS, i)) for i, row in enumerate(rows)]


def _sampled(config: WorkloadConfig, sample: Sample, number: int, at: float) -> WorkloadRequest:
    output, prompt = sample.output_tokens, sample.prompt_tokens
    if output is None:
        low, high = config.output_range
        output = int(np.random.default_rng([config.seed, _OUTPUTS, number]).integers(low, high + 1))
    if prompt is not None and config.source != "prompts":
        (prompt,) = _scaled(np.array([prompt]), config.scale)
    kind = "text" if prompt is None else "long" if prompt >= config.long_tokens * config.scale else "short"
    (output,) = _scaled(np.array([output]), _output_scale(config))
    block = max(1, round(BLOCK_TOKENS * config.scale))
    content = REQUESTS, number
    return WorkloadRequest(number, at, kind, prompt, output, content, sample.text, sample.ids, sample.blocks, block)


def _output_scale(config: WorkloadConfig) -> float:
    return config.scale if config.output_scale is None else config.output_scale


def _scaled(lengths: np.ndarray, scale: float) -> list[int]:
    whole: list[int] = np.maximum(1, np.rint(lengths * scale)).astype(np.int64).tolist()
    return whole


def _cancelled(config: WorkloadConfig, requests: list[WorkloadRequest]) -> list[WorkloadRequest]:
    """The same requests; the client cancels a share of them after a uniform part of the output."""
    if not config.cancel_rate:
        return requests
    uniform = _rng(config, _CANCELS).random((len(requests), 2))
    return [
        replace(request, cancel_after=int(part * request.output_tokens)) if chance < config.cancel_rate else request
        for request, (chance, part) in zip(requests, uniform.tolist(), strict=True)
    ]


def _ranked(config: WorkloadConfig, requests: list[WorkloadRequest]) -> list[WorkloadRequest]:
    """The same requests with the classes that the configuration gives to shares of them."""
    if not config.priorities:
        return requests
    classes = np.array([*(priority for priority, _ in config.priorities), 0])
    ends = np.cumsum([share for _, share in config.priorities])
    drawn = classes[np.searchsorted(ends, _rng(config, _PRIORITIES).random(len(requests)), side="right")]
    return [replace(request, priority=one) for request, one in zip(requests, drawn.tolist(), strict=True)]


def _probes(config: WorkloadConfig, seconds: float) -> list[WorkloadRequest]:
    """Evenly spaced probes, the first after half a step."""
    if not config.probe_rate:
        return []
    count = max(0, math.ceil(seconds * config.probe_rate - 0.5))
    if not 0 < count <= MAX_REQUESTS:
        raise WorkloadError(
            f"{config.probe_rate:g} probes/s within {seconds:g} s are {count:,}; allowed are 1 to {MAX_REQUESTS:,} "
            "(a duration says how long they go on)"
        )
    tokens = config.probe_prompt, config.probe_output
    return [WorkloadRequest(i, (i + 0.5) / config.probe_rate, "probe", *tokens, (PROBES, i)) for i in range(count)]


def _warmup(config: WorkloadConfig, source: Source) -> tuple[WorkloadRequest, ...]:
    """Requests with the source's lengths, up to a limit; own content keeps the others out of the prefix cache."""
    drawn = _drawn(config, source, np.zeros(config.warmup), _WARMUP_LENGTHS)
    return tuple(
        WorkloadRequest(
            index=i,
            at=0.0,
            kind="warmup",
            prompt_tokens=min(WARMUP_PROMPT, request.prompt_tokens or WARMUP_TEXT),
            output_tokens=min(WARMUP_OUTPUT, request.output_tokens),
            content=(WARMUPS, i),
        )
        for i, request in enumerate(drawn)
    )


def _fitting(requests: Sequence[WorkloadRequest], limit: int) -> None:
    totals = [(request.prompt_tokens or 0) + request.output_tokens for request in requests]
    beyond = sum(total > limit for total in totals)
    if beyond:
        raise WorkloadError(
            f"{beyond:,} of {len(requests):,} requests are longer than the context of {limit:,} tokens, the longest "
            f"has {max(totals):,} of prompt and output; a scale of {limit / max(totals):.3g} or less makes them fit"
        )
