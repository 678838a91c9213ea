from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medha_jax.workload import (
    PRESETS,
    ConvoyConfig,
    Workload,
    WorkloadConfig,
    WorkloadError,
    build,
    build_convoy,
    build_offered,
    describe,
    load_preset,
)

PROCESSES = st.sampled_from(["poisson", "gamma", "constant", "ramp"])


@st.composite
def configs(draw: st.DrawFn) -> WorkloadConfig:
    process = draw(PROCESSES)
    low, more = draw(st.integers(1, 5000)), draw(st.integers(0, 5000))
    return WorkloadConfig(
        source=draw(st.sampled_from([*PRESETS, "random"])),
        prompt_range=(low, low + more),
        scale=draw(st.sampled_from([1.0, 1 / 32, 2.0])),
        process=process,
        rate=draw(st.floats(5, 100)),
        rate_end=draw(st.floats(5, 100)) if process == "ramp" else None,
        burstiness=draw(st.sampled_from([None, 0.3, 5.0])) if process == "gamma" else None,
        num_requests=draw(st.none() | st.integers(1, 60)),
        duration=10.0,
        seed=draw(st.integers(0, 2**63 - 1)),
        vocabulary=draw(st.integers(1, 200_000)),
        warmup=draw(st.integers(0, 3)),
        probe_rate=draw(st.sampled_from([0.0, 1.0])),
        cancel_rate=draw(st.sampled_from([0.0, 0.5])),
    )


@settings(max_examples=40)
@given(configs())
def test_a_configuration_and_its_seed_fix_every_request(config: WorkloadConfig) -> None:
    try:
        one = build(config)
    except WorkloadError:  # bursty arrivals may all miss the ten seconds
        with pytest.raises(WorkloadError, match="no request is due within 10 s"):
            build(config)
        return
    two = build(replace(config))
    assert one == two
    assert [request.index for request in one.requests] == list(range(len(one.requests)))
    times = [request.at for request in one.requests]
    assert times == sorted(times)
    assert times[0] >= 0
    assert times[-1] < 10
    assert len(one.warmup) == config.warmup
    for request in (*one.warmup, *one.requests[:5]):
        ids = one.token_ids(request)
        assert ids.dtype == np.int32
        assert len(ids) == request.prompt_tokens
        assert request.output_tokens >= 1
        assert 0 <= ids.min() <= ids.max() < config.vocabulary
        assert (ids == two.token_ids(request)).all()
        assert request.cancel_after is None or 0 <= request.cancel_after < request.output_tokens


def test_another_seed_gives_other_requests_at_other_times() -> None:
    config = WorkloadConfig("random", prompt_range=(1, 10_000), num_requests=50)
    one, two = build(config), build(replace(config, seed=1))
    assert sum(a.prompt_tokens == b.prompt_tokens for a, b in zip(one.requests, two.requests, strict=True)) < 5
    assert all(a.at != b.at for a, b in zip(one.requests, two.requests, strict=True))
    assert one.token_ids(one.requests[0])[:20].tolist() != two.token_ids(two.requests[0])[:20].tolist()


def test_rates_and_probes_do_not_change_what_the_requests_are() -> None:
    """So that loads can be compared: the same requests come, only closer together."""
    config = WorkloadConfig("medha-5pct", num_requests=200, rate=1.0)

    def content(workload: Workload) -> list[tuple[object, ...]]:
        main = [request for request in workload.requests if request.kind != "probe"]
        first = workload.token_ids(main[0])[:10].tolist()
        return [(r.prompt_tokens, r.output_tokens, r.kind, r.content, *first) for r in main]

    plain = content(build(config))
    assert content(build(replace(config, rate=50.0, process="gamma", burstiness=0.2))) == plain
    assert content(build(replace(config, probe_rate=3.0, warmup=4, cancel_rate=0.3))) == plain
    assert content(build(replace(config, num_requests=40))) == plain[:40]


def test_uniform_lengths_reach_both_ends_evenly() -> None:
    config = WorkloadConfig("random", prompt_range=(3, 6), output_range=(7, 7), num_requests=4000)
    counts = Counter(request.prompt_tokens for request in build(config).requests)
    assert set(counts) == {3, 4, 5, 6}
    assert all(count == pytest.approx(1000, abs=5 * 1000**0.5) for count in counts.values())
    assert {request.output_tokens for request in build(config).requests} == {7}


def test_requests_have_content_of_their_own() -> None:
    workload = build(WorkloadConfig("random", prompt_range=(64, 64), num_requests=20, warmup=5, probe_rate=1.0))
    prompts = {workload.token_ids(r).tobytes() for r in (*workload.warmup, *workload.requests)}
    assert len(prompts) == len(workload.warmup) + len(workload.requests)


def test_token_ids_cover_the_vocabulary_evenly() -> None:
    workload = build(WorkloadConfig("random", prompt_range=(40_000, 40_000), num_requests=1, vocabulary=4))
    assert np.bincount(workload.token_ids(workload.requests[0])).tolist() == pytest.approx([10_000] * 4, abs=500)


def test_kinds_follow_the_prompt() -> None:
    config = WorkloadConfig("random", prompt_range=(1, 1000), num_requests=100, long_tokens=500)
    for scale in (1.0, 2.0):
        requests = build(replace(config, scale=scale)).requests
        assert {r.kind for r in requests} == {"short", "long"}
        assert all((r.kind == "long") == ((r.prompt_tokens or 0) >= 500 * scale) for r in requests)


def test_probes_come_in_even_steps_among_the_others() -> None:
    config = WorkloadConfig("random", num_requests=10, rate=1.0, duration=4.0, probe_rate=2.0, probe_prompt=5)
    workload = build(config)
    probes = [request for request in workload.requests if request.kind == "probe"]
    assert [probe.at for probe in probes] == [0.25 + 0.5 * i for i in range(8)]
    assert {(probe.prompt_tokens, probe.output_tokens) for probe in probes} == {(5, 16)}
    with pytest.raises(WorkloadError, match="1 probes/s within 0 s are 0; allowed are 1 to 1,000,000"):
        build(WorkloadConfig("random", num_requests=10, rate=math.inf, probe_rate=1.0))


def test_a_share_is_cancelled_somewhere_in_its_output() -> None:
    config = WorkloadConfig("random", output_range=(100, 100), num_requests=4000, cancel_rate=0.25)
    after = [r.cancel_after for r in build(config).requests if r.cancel_after is not None]
    assert len(after) == pytest.approx(1000, abs=140)
    assert (min(after), max(after)) == (0, 99)
    assert np.mean(after) == pytest.approx(49.5, abs=4)


def test_requests_beyond_the_context_are_refused_with_a_scale_that_fits() -> None:
    config = WorkloadConfig("random", prompt_range=(900, 900), output_range=(100, 100), num_requests=5)
    assert len(build(replace(config, context_limit=1000)).requests) == 5
    with pytest.raises(
        WorkloadError, match="5 of 5 requests are longer than the context of 800 tokens.*a scale of 0.8"
    ):
        build(replace(config, context_limit=800))


def test_warm_up_requests_are_short_and_apart() -> None:
    workload = build(WorkloadConfig("medha-5pct", num_requests=10, warmup=200))
    assert max(request.prompt_tokens or 0 for request in workload.warmup) == 2048
    assert max(request.output_tokens for request in workload.warmup) == 64
    assert {request.kind for request in workload.warmup} == {"warmup"}


def test_a_convoy_is_one_long_prompt_and_short_ones_behind_it() -> None:
    workload = build_convoy(ConvoyConfig(shorts=3, first=2.0, interval=0.5))
    assert [(r.at, r.kind, r.prompt_tokens, r.output_tokens) for r in workload.requests] == [
        (0.0, "long", 32_768, 16),
        (2.0, "short", 128, 16),
        (2.5, "short", 128, 16),
        (3.0, "short", 128, 16),
    ]
    assert len({workload.token_ids(request)[:128].tobytes() for request in workload.requests}) == 4


def test_a_convoy_may_have_several_long_prompts() -> None:
    one, three = (build_convoy(ConvoyConfig(shorts=2, long_prompt=500, longs=longs)) for longs in (1, 3))
    assert [(r.index, r.at, r.kind) for r in three.requests] == [
        *((number, 0.0, "long") for number in range(3)),
        (3, 1.0, "short"),
        (4, 2.0, "short"),
    ]
    contents = [three.token_ids(request).tolist() for request in three.requests]
    assert len({tuple(ids[:128]) for ids in contents}) == 5
    assert [one.token_ids(request).tolist() for request in one.requests] == [contents[0], *contents[3:]]
    assert describe(three.config).startswith("3 prompts of 500 tokens")


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    path = tmp_path / "prompts.jsonl"
    lines = [{"prompt": "a b c", "max_tokens": 5}, {"prompt_token_ids": [7, 8], "output_tokens": 6}, {"prompt": "d"}]
    path.write_text("\n".join(json.dumps(line) for line in lines))
    return str(path)


def test_prompts_of_a_file_are_sent_as_they_are_and_again(prompts: str) -> None:
    config = WorkloadConfig("prompts", prompts, output_range=(9, 9), num_requests=5)
    workload = build(config, count_tokens=lambda text: len(text.split()))
    assert [(r.text, r.ids, r.prompt_tokens, r.output_tokens, r.kind) for r in workload.requests] == [
        ("a b c", None, 3, 5, "short"),
        (None, (7, 8), 2, 6, "short"),
        ("d", None, 1, 9, "short"),
        ("a b c", None, 3, 5, "short"),
        (None, (7, 8), 2, 6, "short"),
    ]
    assert workload.token_ids(workload.requests[1]).tolist() == [7, 8]
    with pytest.raises(WorkloadError, match="the prompt is a text"):
        workload.token_ids(workload.requests[0])


def test_texts_without_a_tokenizer_have_no_length(prompts: str) -> None:
    workload = build(WorkloadConfig("prompts", prompts, num_requests=3, warmup=1))
    assert [(r.prompt_tokens, r.kind) for r in workload.requests] == [(None, "text"), (2, "short"), (None, "text")]
    assert len(workload.token_ids(workload.warmup[0])) == 128


def test_ids_beyond_the_vocabulary_are_refused(prompts: str) -> None:
    with pytest.raises(WorkloadError, match="prompts.jsonl: token id 8 is not in the vocabulary of 8"):
        build(WorkloadConfig("prompts", prompts, num_requests=3, vocabulary=8))


@pytest.fixture
def mooncake(tmp_path: Path) -> str:
    path = tmp_path / "trace.jsonl"
    rows = [(6000, 1100, 20, [1, 2, 3]), (5000, 700, 10, [1, 9]), (9000, 512, 4, [1])]
    names = ("timestamp", "input_length", "output_length", "hash_ids")
    path.write_text("".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows))
    return str(path)


def test_a_trace_is_replayed_in_time_and_faster(mooncake: str) -> None:
    config = WorkloadConfig("mooncake", mooncake, process="trace")
    assert [(r.at, r.prompt_tokens, r.output_tokens) for r in build(config).requests] == [
        (0.0, 700, 10),
        (1.0, 1100, 20),
        (4.0, 512, 4),
    ]
    assert [r.at for r in build(replace(config, speed=4.0)).requests] == [0.0, 0.25, 1.0]
    assert len(build(replace(config, duration=3.0)).requests) == 2
    assert len(build(replace(config, num_requests=1)).requests) == 1
    # or its lengths alone, in the order of the file and from the first again
    steady = build(WorkloadConfig("mooncake", mooncake, process="constant", rate=2.0, num_requests=4))
    assert [(r.at, r.prompt_tokens) for r in steady.requests] == [(0, 1100), (0.5, 700), (1.0, 512), (1.5, 1100)]


@pytest.mark.parametrize(("scale", "block"), [(1.0, 512), (1 / 32, 16)])
def test_equal_blocks_of_a_trace_have_equal_tokens(mooncake: str, scale: float, block: int) -> None:
    workload = build(WorkloadConfig("mooncake", mooncake, process="trace", scale=scale))
    ids = [workload.token_ids(request) for request in workload.requests]
    assert [len(part) for part in ids] == [round(scale * tokens) for tokens in (700, 1100, 512)]
    assert (ids[0][:block] == ids[1][:block]).all()
    assert (ids[1][:block] == ids[2]).all()
    assert (ids[0][block:] != ids[1][block : len(ids[0])]).any()


def test_short_prompts_of_a_convoy_may_differ() -> None:
    config = ConvoyConfig(shorts=50, short_prompt=100, short_prompt_most=2000, seed=2)
    long, *short = build_convoy(config).requests
    assert (long.at, long.length, long.kind) == (0, 32_768, "long")
    assert [one.at for one in short] == list(range(1, 51))
    assert all(100 <= one.length <= 2000 and one.kind == "short" for one in short)
    assert len({one.length for one in short}) > 40
    assert "of 100-2,000 tokens" in describe(config)


def test_offered_work_is_what_was_stated_to_within_one_request() -> None:
    config = WorkloadConfig(source="medha-5pct", duration=1000.0, seed=3)

    def work(prompt: int) -> float:
        return prompt / 10_000

    for load in (0.5, 2.0):
        requests = build_offered(config, load, work).requests
        seconds = [work(one.length) for one in requests]
        assert abs(sum(seconds) - load * 1000) <= max(work(1_000_000) / 2, 0.1)
        times = np.array([one.at for one in requests])
        assert (np.diff(times) >= 0).all() and 0 <= times[0] <= times[-1] < 1000
    assert build_offered(config, 1.0, work) == build_offered(config, 1.0, work)
    assert build_offered(config, 1.0, work).requests != build_offered(replace(config, seed=4), 1.0, work).requests


def test_poisson_requests_are_as_many_and_as_mixed_as_stated() -> None:
    requests = build(WorkloadConfig(source="medha-5pct", rate=2.0, duration=10_000, seed=1)).requests
    assert len(requests) == pytest.approx(20_000, abs=5 * 20_000**0.5)
    gaps = np.diff([one.at for one in requests])
    assert gaps.mean() == pytest.approx(0.5, rel=0.03)
    assert gaps.std() == pytest.approx(0.5, rel=0.03)  # exponential
    long = [one.length for one in requests if one.kind == "long"]
    assert len(long) / len(requests) == pytest.approx(load_preset("medha-5pct").long_share, rel=0.1)
    assert min(long) > 100_000 > max(one.length for one in requests if one.kind == "short")


@pytest.mark.parametrize("load", [0.0, -1.0, math.nan])
def test_a_load_is_above_nothing(load: float) -> None:
    with pytest.raises(WorkloadError, match="must be above 0"):
        build_offered(WorkloadConfig(duration=10.0), load, float)


def test_a_text_without_a_tokenizer_counts_by_its_output_alone(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(json.dumps({"prompt": "a text", "output_tokens": 8}) + "\n", encoding="utf-8")
    config = WorkloadConfig(source="prompts", path=str(path), num_requests=1, context_limit=8)
    (request,) = build(config).requests
    assert (request.kind, request.prompt_tokens) == ("text", None)
    with pytest.raises(WorkloadError, match="its tokens are not known"):
        request.length  # noqa: B018
    with pytest.raises(WorkloadError, match="longer than the context of 7 tokens"):
        build(replace(config, context_limit=7))


def test_shares_of_the_requests_have_a_priority_and_nothing_else_changes() -> None:
    plain = WorkloadConfig("random", num_requests=4000, cancel_rate=0.25, probe_rate=2.0)
    config = replace(plain, priorities=((-2, 0.1), (2, 0.6)))
    requests = build(config).requests
    assert [replace(request, priority=0) for request in requests] == list(build(plain).requests)
    probes = [request for request in requests if request.kind == "probe"]
    assert probes and {request.priority for request in probes} == {0}
    counts = Counter(request.priority for request in requests if request.kind != "probe")
    assert counts.keys() == {-2, 0, 2}
    assert [counts[one] / 4000 for one in (-2, 2)] == pytest.approx([0.1, 0.6], abs=0.03)
    assert "10 % of priority -2, 60 % of priority 2" in describe(config)
    offered = build_offered(replace(config, num_requests=None, duration=100.0, rate=1.0), 0.5, lambda tokens: 0.1)
    assert {request.priority for request in offered.requests} == {-2, 0, 2}
