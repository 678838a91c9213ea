from __future__ import annotations

import math
from typing import Any

import pytest

from medha_jax.workload import ConvoyConfig, WorkloadConfig, WorkloadError, describe

TEN: dict[str, Any] = {"num_requests": 10}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"source": "sharegpt"}, "no source 'sharegpt'; there are sharegpt-8k, medha-0pct"),
        ({"source": "azure"}, "source 'azure' needs a file"),
        ({"source": "random", "path": "x"}, "source 'random' takes no file"),
        ({"source": "prompts", "path": "x", "scale": 0.5}, "sent as they are; scale must be 1"),
        ({"process": "uniform"}, "no process 'uniform'; there are poisson, gamma, constant, ramp, trace"),
        ({"process": "trace"}, "'sharegpt-8k' has no times; process 'trace' takes mooncake and azure files"),
        ({"process": "ramp"}, "an end rate and the process 'ramp' belong together"),
        ({"rate_end": 2.0}, "an end rate and the process 'ramp' belong together"),
        ({"process": "ramp", "rate": math.inf, "rate_end": 2.0}, "rate of a ramp is inf"),
        ({"rate": 0.0}, "rate is 0.0; allowed are 0.000001 to 100,000 requests/s, and inf"),
        ({"rate": math.nan}, "rate is nan"),
        ({"rate": -1.0}, "rate is -1.0"),
        ({"burstiness": 2.0}, "burstiness belongs to the process 'gamma', not to 'poisson'"),
        ({"process": "gamma", "burstiness": 0.0}, "burstiness is 0.0; allowed are 0.0001 to 1,000,000"),
        ({"speed": 2.0}, "speed belongs to the process 'trace'"),
        ({"num_requests": None}, "the workload has no end; give a number of requests, a duration, or both"),
        ({"num_requests": 0}, "number of requests is 0; allowed are 1 to 1,000,000"),
        ({"duration": math.inf}, "duration is inf; allowed are 0.001 to 604,800"),
        ({"num_requests": None, "rate": 100.0, "duration": 1e5}, "allowed are 1,000,000 requests"),
        ({"probe_rate": 1000.0, "duration": 1e5, "rate": 0.1}, "1000 probes/s for 100000 s"),
        ({"scale": 0.0}, "scale is 0.0; allowed are 0.0001 to 64"),
        ({"output_scale": math.nan}, "output scale is nan"),
        ({"prompt_range": (20, 10)}, "most prompt tokens is 10; allowed are 20 to 16,777,216"),
        ({"output_range": (0, 10)}, "least output tokens is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"vocabulary": 0}, "vocabulary is 0"),
        ({"warmup": 1001}, "warm-up requests is 1,001; allowed are 0 to 1,000"),
        ({"cancel_rate": 1.1}, "cancel rate is 1.1; allowed are 0 to 1"),
        ({"priorities": ((3, 0.5),)}, "priority is 3; allowed are -2 to 2"),
        ({"priorities": ((1, 1.5),)}, "share of priority 1 is 1.5; allowed are 0 to 1"),
        ({"priorities": ((1, math.nan),)}, "share of priority 1 is nan; allowed are 0 to 1"),
        ({"priorities": ((1, 0.5), (2, 0.6))}, "sum of the shares of priorities is 1.1; allowed are 0 to 1"),
        ({"priorities": ((1, 0.5), (1, 0.1))}, "the priorities 1, 1 name a class twice"),
        ({"probe_prompt": 0}, "probe prompt is 0"),
        ({"long_tokens": 0}, "long tokens is 0"),
        ({"context_limit": 1}, "context limit is 1"),
    ],
)
def test_bad_settings_are_refused_in_one_line_that_says_what_is_allowed(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(WorkloadError) as caught:
        WorkloadConfig(**(TEN | settings))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_convoy_is_bounded_too() -> None:
    with pytest.raises(WorkloadError, match="long prompt is 0; allowed are 1 to"):
        ConvoyConfig(long_prompt=0)
    with pytest.raises(WorkloadError, match="interval is -1"):
        ConvoyConfig(interval=-1)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (
            WorkloadConfig("medha-5pct", scale=1 / 32, rate=2.0, num_requests=1200, seed=3),
            "medha-5pct x 1/32, poisson at 2 requests/s, 1,200 requests, seed 3",
        ),
        (
            WorkloadConfig("random", prompt_range=(10, 1000), process="gamma", burstiness=0.5, output_scale=2, **TEN),
            "random 10-1,000 + 128 tokens (output x 2), gamma at 1 requests/s with burstiness 0.5, 10 requests, seed 0",
        ),
        (
            WorkloadConfig("azure", "traces/code.csv", process="trace", speed=4, duration=60, probe_rate=1),
            "azure file code.csv, the trace's times, 4 times as fast, 60 s, 1 probes/s of 128 tokens, seed 0",
        ),
        (
            WorkloadConfig(process="ramp", rate=1, rate_end=8, duration=60, cancel_rate=0.1),
            "sharegpt-8k, ramp from 1 to 8 requests/s, 60 s, 10 % cancelled, seed 0",
        ),
        (WorkloadConfig(rate=math.inf, **TEN), "sharegpt-8k, all at once, 10 requests, seed 0"),
        (ConvoyConfig(), "one prompt of 32,768 tokens and 10 of 128 tokens, one every 1 s, seed 0"),
    ],
)
def test_a_workload_is_described_in_a_line(config: WorkloadConfig | ConvoyConfig, words: str) -> None:
    assert describe(config) == words


def test_only_a_process_of_one_rate_has_a_rate() -> None:
    assert WorkloadConfig(rate=3.0, num_requests=1).steady_rate == 3
    assert WorkloadConfig(process="ramp", rate=3.0, rate_end=9.0, num_requests=1).steady_rate is None
    assert WorkloadConfig(source="azure", path="x", process="trace").steady_rate is None
