"""From a Hugging Face directory to the runtime's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medha_jax.checkpoints import (
    CheckpointError,
    ConversionReport,
    convert,
    huggingface,
    load_parameters,
    stored_dtype,
    write_huggingface,
)
from medha_jax.specs.model import UnsupportedModelError
from tests.checkpoints.small_models import (
    CONFIGS,
    DTYPES,
    architecture,
    bits,
    one_device,
    same_bits,
    stored_tensors,
    write_model,
)


@pytest.mark.parametrize("family", CONFIGS)
def test_converting_keeps_every_bit(tmp_path: Path, family: str) -> None:
    dtype = list(DTYPES)[len(family) % 3]
    source = write_model(tmp_path / "source", family, stored_tensors(family, dtype))
    report = convert(source, tmp_path / "model")
    before = load_parameters(source, architecture(family), dtype, one_device())
    assert same_bits(load_parameters(tmp_path / "model", architecture(family), dtype, one_device()), before)
    size = sum(value.nbytes for value in before.values())
    files = (
        *("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
        *("generation_config.json", "chat_template.jinja", "additional_chat_templates/tool_use.jinja"),
    )
    assert report == ConversionReport(tmp_path / "model", len(before), size, dtype, files)
    assert stored_dtype(tmp_path / "model") == dtype
    for name in files:
        assert (tmp_path / "model" / name).read_bytes() == (source / name).read_bytes()


def test_several_files_and_another_dtype(tmp_path: Path) -> None:
    arch = architecture("qwen3")
    source = write_model(tmp_path / "source", "qwen3", stored_tensors("qwen3", "float32"))
    before = load_parameters(source, arch, "bfloat16", one_device())
    wide = load_parameters(source, arch, "float32", one_device())
    write_huggingface(tmp_path / "shards", CONFIGS["qwen3"], wide, max_shard_bytes=10_000)
    assert convert(tmp_path / "shards", tmp_path / "model", dtype="bfloat16").dtype == "bfloat16"
    assert same_bits(load_parameters(tmp_path / "model", arch, "bfloat16", one_device()), before)


def test_mixed_dtypes_are_kept_exactly(tmp_path: Path) -> None:
    tensors = stored_tensors("mistral", "bfloat16")
    tensors["model.norm.weight"] = stored_tensors("mistral", "float16", seed=1)["model.norm.weight"]
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name] = stored_tensors("mistral", "float16", seed=2)[name]
    source = write_model(tmp_path / "source", "mistral", tensors)
    assert convert(source, tmp_path / "model").dtype == "bfloat16"
    exact = load_parameters(tmp_path / "model", architecture("mistral"), "float32", one_device())
    assert same_bits(exact, load_parameters(source, architecture("mistral"), "float32", one_device()))
    assert bits(exact["norm.scale"]) == bits(tensors["model.norm.weight"].astype(np.float32))


def test_parameters_are_read_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next parameter is read only when the one before it is on disk."""
    events: list[tuple[str, str]] = []
    progress: list[tuple[int, int]] = []
    read = huggingface.Reader.read

    def recorded(self: huggingface.Reader, parameter: str, *rest: object) -> np.ndarray:
        events.append(("read", parameter))
        return read(self, parameter, *rest)

    def written(parameter: str, done: int, total: int) -> None:
        events.append(("written", parameter))
        progress.append((done, total))

    monkeypatch.setattr(huggingface.Reader, "read", recorded)
    report = convert(write_model(tmp_path / "source", "llama"), tmp_path / "model", on_progress=written)
    names = [name for event, name in events if event == "read"]
    assert events == [(event, name) for name in names for event in ("read", "written")]
    assert len(names) == len(set(names)) == report.parameters
    assert progress == sorted(progress) and progress[-1] == (report.nbytes, report.nbytes)


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    source = write_model(tmp_path / "source", "mistral")
    (tmp_path / "model").mkdir()
    (tmp_path / "model/notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="model already exists and is not an empty directory.*remove it first"):
        convert(source, tmp_path / "model")
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["notes.txt"]
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CheckpointError, match="file already exists"):
        convert(source, tmp_path / "file")
    (tmp_path / "empty").mkdir()
    convert(source, tmp_path / "empty")
    assert (tmp_path / "empty/medha.json").is_file()


def test_a_failure_leaves_nothing_behind(tmp_path: Path) -> None:
    tensors = stored_tensors("mistral", "float32")
    tensors["model.norm.weight"][7] = 1e30
    source = write_model(tmp_path / "source", "mistral", tensors)
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight holds values that are not finite in float16"):
        convert(source, tmp_path / "deep/model", dtype="float16")
    assert list((tmp_path / "deep").iterdir()) == []


def test_sources_that_cannot_be_converted(tmp_path: Path) -> None:
    source = write_model(tmp_path / "source", "mistral")
    convert(source, tmp_path / "model")
    with pytest.raises(CheckpointError, match="model is already converted"):
        convert(tmp_path / "model", tmp_path / "again")
    with pytest.raises(CheckpointError, match="nowhere is not a directory"):
        convert(tmp_path / "nowhere", tmp_path / "again")
    with pytest.raises(CheckpointError, match="dtype 'int8' is not supported"):
        convert(source, tmp_path / "again", dtype="int8")
    (source / "config.json").unlink()
    with pytest.raises(UnsupportedModelError, match=r"no config\.json"):
        convert(source, tmp_path / "again")
    assert not (tmp_path / "again").exists()
