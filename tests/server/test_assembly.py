from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from medha_jax.config import BUNDLED_MODEL, ModelDefaults, RuntimeConfig
from medha_jax.plan import SamplingParams
from medha_jax.server.assembly import assemble


@pytest.mark.parametrize(
    ("defaults", "sampling"),
    [
        (None, SamplingParams(temperature=0.6, top_p=0.9, repetition_penalty=1.15)),
        (ModelDefaults("none"), SamplingParams()),
    ],
)
def test_the_served_model_has_the_defaults_that_were_chosen(
    defaults: ModelDefaults | None, sampling: SamplingParams
) -> None:
    lines: list[str] = []
    model, _ = assemble(RuntimeConfig(max_context=1000), tell=lines.append, defaults=defaults)
    assert (model.sampling, model.eos_ids, model.vocab, model.context) == (sampling, (0,), 2048, 1000)
    assert lines == []


def test_what_has_no_effect_is_told(tmp_path: Path) -> None:
    shutil.copytree(BUNDLED_MODEL, tmp_path, dirs_exist_ok=True)
    (tmp_path / "generation_config.json").write_text('{"num_beams": 4}')
    lines: list[str] = []
    assemble(RuntimeConfig(model=tmp_path), tell=lines.append)
    assert lines == ["warning: generation_config.json: no effect here: num_beams"]
