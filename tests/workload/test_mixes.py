from __future__ import annotations

from operator import attrgetter
from pathlib import Path

import numpy as np
import pytest
import yaml

from medha_jax.workload import Quantiles, WorkloadError, load_mix, mix_from, preset_of
from tools.make_quantiles import Trace, main, tables

PERCENTILES = (0.1, 0.5, 0.9, 0.99)
# of the published traces' prompts
SHORT = {0.25: 576, 0.5: 1713, 0.75: 3728, 0.9: 5680, 0.99: 7434, 1.0: 8032}
LONG = {0.0: 100_628, 0.1: 161_871, 0.5: 400_446, 0.75: 628_526, 0.9: 839_720, 1.0: 996_935}


def test_the_tables_are_those_of_the_traces() -> None:
    mix = load_mix("5")
    assert mix.long is not None
    assert load_mix("0").long is None
    for probability, tokens in SHORT.items():
        assert mix.short.prompt.at(probability) == pytest.approx(tokens, rel=0.01)
    for probability, tokens in LONG.items():
        assert mix.long.prompt.at(probability) == pytest.approx(tokens, rel=0.001)
    assert float(mix.short.output.at(0.5)) == 415
    assert [load_mix(name).long_share for name in ("0", "1", "5")] == [0, 0.00995, 0.04878]
    with pytest.raises(WorkloadError, match="no mix '7'; there are 0, 1, 5"):
        load_mix("7")


@pytest.mark.parametrize("name", ["0", "1", "5"])
@pytest.mark.parametrize("kind", ["short.prompt", "short.output", "long.prompt", "long.output"])
def test_what_is_drawn_has_the_tables_quantiles(name: str, kind: str) -> None:
    mix = load_mix(name)
    if kind.startswith("long") and mix.long is None:
        pytest.skip("this mix has no long requests")
    quantiles: Quantiles = attrgetter(kind)(mix)
    drawn = np.rint(quantiles.at(np.random.default_rng(0).random(40_000)))
    for probability in PERCENTILES:
        low, high = quantiles.at(probability - 0.01), quantiles.at(min(1.0, probability + 0.01))
        assert low <= np.quantile(drawn, probability) <= high
    assert drawn.min() >= min(quantiles.values)
    assert drawn.max() <= max(quantiles.values)


def test_medhas_mixes_go_by_their_percentage_too() -> None:
    assert [preset_of(mix) for mix in ("0", "1", "5", "mooncake-conv")] == [
        "medha-0pct",
        "medha-1pct",
        "medha-5pct",
        "mooncake-conv",
    ]
    with pytest.raises(WorkloadError, match="no mix '7'; there are 0, 1, 5, sharegpt-8k"):
        preset_of("7")


def test_tables_are_made_from_traces() -> None:
    short = np.array([[10, 1], [20, 2], [30, 3]])
    trace = np.concatenate([short, [[100_000, 9]]])
    made = tables({"none": Trace(short), "some": Trace(trace, np.array([0.0, 1, 3, 4]))})
    assert len(made["probabilities"]) >= 101
    assert list(made["mixes"]["none"]) == ["long_share", "short"]
    assert made["mixes"]["some"]["gaps_cv"] == 0.35  # gaps of 1, 2 and 1 s: √(2/9) / (4/3)
    mix = mix_from(made, "some")
    assert mix.long_share == 0.25
    assert [float(mix.short.prompt.at(p)) for p in (0, 0.5, 1)] == [10, 20, 30]
    assert mix.long is not None
    assert set(mix.long.output.values) == {9.0}


def test_the_tool_reads_csv_files(tmp_path: Path) -> None:
    trace, out = tmp_path / "trace.csv", tmp_path / "out.yaml"
    trace.write_text("num_prefill_tokens,num_decode_tokens,more\n10,1,x\n20,2,y\n")
    assert main([str(out), f"5={trace}"]) == 0
    mix = mix_from(yaml.safe_load(out.read_text()), "5")
    assert (mix.long, mix.short.prompt.values[0], mix.short.prompt.values[-1]) == (None, 10, 20)
    assert main([str(out)]) == 2


def test_the_tool_reads_traces_with_times(tmp_path: Path) -> None:
    azure, mooncake, out = tmp_path / "azure.csv", tmp_path / "mooncake.jsonl", tmp_path / "out.yaml"
    azure.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:17:04.0000000,20,2\n2023-11-16 18:17:03.0000000,10,1\n2023-11-16 18:17:06.0000000,30,3\n"
    )
    mooncake.write_text("".join(f'{{"timestamp": {t}, "input_length": 7, "output_length": 5}}\n' for t in (0, 1, 2)))
    assert main([str(out), f"a={azure}", f"m={mooncake}"]) == 0
    made = yaml.safe_load(out.read_text())
    a, m = mix_from(made, "a"), mix_from(made, "m")
    assert (a.gaps_cv, m.gaps_cv) == (0.33, 0.0)
    assert [a.short.prompt.values[0], a.short.output.values[-1], m.short.prompt.values[50]] == [10, 3, 7]
