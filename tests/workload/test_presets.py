"""What is drawn against the published traces' quantiles, in tokens (reference: the traces named in quantiles.yaml)."""

from __future__ import annotations

import numpy as np
import pytest

from medha_jax.workload import PRESETS, WorkloadConfig, build, load_preset

DRAWS = 20_000
SHAREGPT = {"prompt": {10: 73, 50: 1713, 90: 5680, 99: 7434}, "output": {10: 86, 50: 415, 90: 837, 99: 997}}
PUBLISHED = {
    "sharegpt-8k": SHAREGPT,
    "medha-0pct": SHAREGPT,
    "azure-code-2023": {
        "prompt": {10: 147, 50: 1469, 90: 5188, 99: 7436},
        "output": {10: 7, 50: 13, 90: 55, 99: 251},
    },
    "azure-conv-2023": {
        "prompt": {10: 207, 50: 1020, 90: 2734, 99: 4142},
        "output": {10: 54, 50: 129, 90: 424, 99: 601},
    },
    "mooncake-conv": {
        "prompt": {10: 964, 50: 6909, 90: 27_367, 99: 85_400},
        "output": {10: 24, 50: 350, 90: 597, 99: 1119},
    },
}
# of the long prompts of the traces with 1 % and 5 % of them
LONG = {
    "medha-1pct": {10: 160_976, 50: 367_211, 90: 811_265, 99: 940_799},
    "medha-5pct": {10: 161_871, 50: 400_446, 90: 839_720, 99: 955_280},
}


def drawn(name: str, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Prompts, outputs and whether each is long."""
    requests = build(WorkloadConfig(name, num_requests=DRAWS, seed=seed)).requests
    columns = zip(*((r.prompt_tokens, r.output_tokens, r.kind == "long") for r in requests), strict=True)
    prompt, output, long = (np.array(column) for column in columns)
    return prompt, output, long


@pytest.mark.parametrize("name", PUBLISHED)
def test_lengths_have_the_published_quantiles(name: str) -> None:
    prompt, output, _ = drawn(name)
    for lengths, expected in ((prompt, PUBLISHED[name]["prompt"]), (output, PUBLISHED[name]["output"])):
        for percent, tokens in expected.items():
            assert np.percentile(lengths, percent) == pytest.approx(tokens, rel=0.05), (name, percent)


@pytest.mark.parametrize(("name", "share"), [("medha-1pct", 0.00995), ("medha-5pct", 0.04878)])
def test_mixes_have_their_share_of_long_prompts_and_the_short_ones_quantiles(name: str, share: float) -> None:
    prompt, output, long = drawn(name)
    assert long.mean() == pytest.approx(share, rel=0.15)
    for lengths, expected in ((prompt[~long], SHAREGPT["prompt"]), (output[~long], SHAREGPT["output"])):
        for percent, tokens in expected.items():
            assert np.percentile(lengths, percent) == pytest.approx(tokens, rel=0.05), (name, percent)


@pytest.mark.parametrize("name", LONG)
def test_long_prompts_have_the_published_quantiles(name: str) -> None:
    long = load_preset(name).long
    assert long is not None
    lengths = np.rint(long.prompt.at(np.random.default_rng(0).random(DRAWS)))
    for percent, tokens in LONG[name].items():
        assert np.percentile(lengths, percent) == pytest.approx(tokens, rel=0.05), percent


def test_prompt_and_output_are_drawn_apart() -> None:
    prompt, output, _ = drawn("azure-conv-2023")
    assert abs(np.corrcoef(prompt, output)[0, 1]) < 0.03


@pytest.mark.parametrize("name", PRESETS)
def test_a_scale_divides_every_length_of_the_same_requests(name: str) -> None:
    def lengths(**settings: float) -> np.ndarray:
        requests = build(WorkloadConfig(name, num_requests=500, **settings)).requests
        return np.array([(request.prompt_tokens, request.output_tokens) for request in requests])

    whole, scaled, prompts = lengths(), lengths(scale=1 / 32), lengths(scale=1 / 32, output_scale=1)
    assert np.abs(scaled - np.maximum(1, whole / 32)).max() <= 0.52  # the whole ones were rounded as well
    assert (prompts == np.column_stack([scaled[:, 0], whole[:, 1]])).all()


def test_presets_know_how_bursty_their_traces_are() -> None:
    known = {name: load_preset(name).gaps_cv for name in PRESETS}
    assert known == {
        "sharegpt-8k": None,
        "medha-0pct": None,
        "medha-1pct": None,
        "medha-5pct": None,
        "azure-code-2023": 13.15,
        "azure-conv-2023": 1.09,
        "mooncake-conv": 3.03,
    }
    requests = build(WorkloadConfig("mooncake-conv", process="gamma", rate=5, num_requests=DRAWS)).requests
    gaps = np.diff([request.at for request in requests])
    assert gaps.std() / gaps.mean() == pytest.approx(3.03, rel=0.1)
