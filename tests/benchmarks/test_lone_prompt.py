"""The engine alone beside a server: what a line says."""

from __future__ import annotations

from benchmarks.lone_prompt import LoneRun, PromptTimes, lines


def test_a_ratio_is_to_the_mean_of_the_engine_before_and_after() -> None:
    before = LoneRun(PromptTimes(5.0, 0.020), PromptTimes(0.1, 0.008))
    after = LoneRun(PromptTimes(7.0, 0.020), PromptTimes(0.1, 0.012))
    server = LoneRun(PromptTimes(6.6, 0.021), PromptTimes(0.2, 0.010))
    prefill, long, short = lines(8192, before, after, server)
    assert prefill.endswith("engine alone 5,000.0 and 7,000.0 ms, served 6,600.0 ms, 1.10 of it")
    assert long.startswith("decode 1 at 8,192") and long.endswith("1.05 of it")
    assert short.startswith("decode 1 at 128") and short.endswith("1.00 of it")
