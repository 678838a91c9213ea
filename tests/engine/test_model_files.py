from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from medha_jax.config import BUNDLED_MODEL, ConfigError, ModelDefaults
from medha_jax.engine import ModelFiles
from medha_jax.plan import InvalidRequestError, SamplingParams

NONE = ModelDefaults("none")


def changed(directory: Path, file: str, **changes: Any) -> Path:
    """The bundled model with changes to one of its files, in a directory that may be a changed one already."""
    if not (directory / "config.json").is_file():
        shutil.copytree(BUNDLED_MODEL, directory, dirs_exist_ok=True)
    path = directory / file
    stated = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(stated | changes))
    return directory


def test_the_bundled_model() -> None:
    files = ModelFiles.read(BUNDLED_MODEL)
    assert (files.eos_ids, files.notes, files.arch.notes) == ((0,), (), ())
    assert files.sampling == SamplingParams(temperature=0.6, top_p=0.9, repetition_penalty=1.15)
    assert ModelFiles.read(BUNDLED_MODEL, NONE).sampling == SamplingParams()


def test_end_tokens_are_those_of_all_files_that_are_in_the_vocabulary(tmp_path: Path) -> None:
    changed(tmp_path, "config.json", eos_token_id=5)
    changed(tmp_path, "generation_config.json", eos_token_id=[6, 99999])
    for defaults in (None, NONE):
        files = ModelFiles.read(tmp_path, defaults)
        assert files.eos_ids == (6, 5, 0)  # 0 by tokenizer_config.json only
        assert files.notes == ("eos_token_id 99999: outside the vocabulary of 2048 tokens, so it ends nothing",)


def test_a_default_out_of_range_names_its_file_and_the_way_out(tmp_path: Path) -> None:
    changed(tmp_path, "generation_config.json", top_p=0.0)
    message = r"generation_config.json: top_p is 0.0; allowed is \(0, 1\]; correct it, or .* --generation-config none"
    with pytest.raises(InvalidRequestError, match=message):
        ModelFiles.read(tmp_path)
    assert ModelFiles.read(tmp_path, NONE).sampling.top_p == 1


def test_an_adapter_beside_the_weights_is_not_dropped_in_silence(tmp_path: Path) -> None:
    changed(tmp_path, "adapter_config.json")
    assert ModelFiles.read(tmp_path).notes == (
        "adapter_config.json: adapters are not applied; merge them into the weights",
    )


def test_the_switch_has_two_positions() -> None:
    with pytest.raises(ConfigError, match="generation_config is 'vllm'; allowed are auto, none"):
        ModelDefaults("vllm")
