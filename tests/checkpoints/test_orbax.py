"""The runtime's own directories: values, slices, and every way in which one can be broken."""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from medha_jax.checkpoints import CheckpointError, load_parameters, orbax, stored_dtype
from medha_jax.models import parameter_specs
from tests.checkpoints.small_models import (
    CONFIGS,
    DTYPES,
    architecture,
    one_device,
    run_on_eight_devices,
    same_bits,
    save_orbax,
    write_model,
)

# When one read fails, Orbax closes its event loop under the reads of the other parameters, which then complain.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture
def settled() -> Iterator[None]:
    """Lets abandoned reads complain inside the test that caused them."""
    yield
    gc.collect()


def parameters(family: str, dtype: str = "bfloat16") -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    specs = parameter_specs(architecture(family), dtype)
    return {name: rng.standard_normal(spec.shape, np.float32).astype(DTYPES[dtype]) for name, spec in specs.items()}


def load(directory: Path, family: str, dtype: str = "bfloat16", **changes: Any) -> dict[str, jax.Array]:
    return load_parameters(directory, architecture(family, **changes), dtype, one_device())


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound directory of the small Llama; tests that damage one copy it."""
    directory = tmp_path_factory.mktemp("saved")
    save_orbax(directory / "model", write_model(directory / "source", "llama"), parameters("llama"))
    return directory / "model"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", CONFIGS)
def test_restoring_keeps_every_bit(tmp_path: Path, family: str, dtype: str) -> None:
    params = parameters(family, dtype)
    save_orbax(tmp_path / "model", write_model(tmp_path / "source", family), params)
    assert same_bits(load(tmp_path / "model", family, dtype), params)
    assert stored_dtype(tmp_path / "model") == dtype


def test_a_directory_is_complete_in_itself(tmp_path: Path, saved: Path) -> None:
    names = {"config.json", "generation_config.json", "medha.json", "parameters", "tokenizer.json"}
    names |= {"tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "additional_chat_templates"}
    assert {path.name for path in saved.iterdir()} == names
    assert json.loads((saved / "config.json").read_text()) == CONFIGS["llama"]
    assert sorted(path.name for path in (saved / "additional_chat_templates").iterdir()) == ["tool_use.jinja"]
    source = write_model(tmp_path / "source", "mistral")
    (source / "generation_config.json").unlink()
    save_orbax(tmp_path / "model", source, parameters("mistral"))
    assert {path.name for path in (tmp_path / "model").iterdir()} == names - {"generation_config.json"}


def test_other_users_of_orbax_can_restore_it(saved: Path) -> None:
    params = parameters("llama")
    targets = {name: jax.ShapeDtypeStruct(value.shape, value.dtype) for name, value in params.items()}
    with ocp.StandardCheckpointer() as reader:
        assert same_bits(reader.restore((saved / "parameters").absolute(), targets), params)


@pytest.mark.parametrize("wanted", DTYPES)
@pytest.mark.parametrize("stored", DTYPES)
def test_values_are_cast_to_the_wanted_dtype(tmp_path: Path, stored: str, wanted: str) -> None:
    params = parameters("mistral", stored)
    save_orbax(tmp_path / "model", write_model(tmp_path / "source", "mistral"), params)
    assert same_bits(load(tmp_path / "model", "mistral", wanted), {n: v.astype(wanted) for n, v in params.items()})


def test_values_beyond_float16_are_refused(tmp_path: Path) -> None:
    params = parameters("mistral", "float32")
    params["layers.mlp.up.kernel"][1, 5, 3] = -1e6
    save_orbax(tmp_path / "model", write_model(tmp_path / "source", "mistral"), params)
    with pytest.raises(CheckpointError, match=r"parameter layers\.mlp\.up\.kernel .* float16.*65504.*bfloat16"):
        load(tmp_path / "model", "mistral", "float16")
    assert load(tmp_path / "model", "mistral")["layers.mlp.up.kernel"][1, 5, 3] == jnp.bfloat16(-1e6)


def test_large_parameters_are_stored_in_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chunk belongs to one layer and one head, so that a device reads little that it does not hold."""
    monkeypatch.setattr(orbax, "CHUNK_BYTES", 1024)
    params = parameters("llama")
    save_orbax(tmp_path / "model", write_model(tmp_path / "source", "llama"), params)
    with ocp.StandardCheckpointer() as reader:
        found = reader.metadata((tmp_path / "model/parameters").absolute()).item_metadata.tree
    chunks = {name: tuple(leaf.storage.chunk_shape) for name, leaf in found.items()}
    assert chunks["layers.attention.query.kernel"] == (1, 32, 1, 8)
    assert chunks["layers.mlp.gate.kernel"][0] == 1 and np.prod(chunks["layers.mlp.gate.kernel"]) * 2 <= 1024
    assert same_bits(load(tmp_path / "model", "llama"), params)


def remove(name: str) -> Callable[[Path], None]:
    return lambda directory: (directory / name).unlink()


def describe(**changes: Any) -> Callable[[Path], None]:
    def damage(directory: Path) -> None:
        content = json.loads((directory / "medha.json").read_text())
        (directory / "medha.json").write_text(json.dumps(content | changes))

    return damage


def largest(directory: Path) -> Path:
    return max((directory / "parameters").rglob("*"), key=lambda path: path.is_file() and path.stat().st_size)


def truncate(directory: Path) -> None:
    largest(directory).write_bytes(largest(directory).read_bytes()[:-1])


def spoil(name: str) -> Callable[[Path], None]:
    """Overwrite a file with as many other bytes."""

    def damage(directory: Path) -> None:
        path = directory / "parameters" / name if name else largest(directory)
        path.write_bytes(b"?" * path.stat().st_size)

    return damage


CASES: dict[str, tuple[Callable[[Path], Any], list[str]]] = {
    "no description": (remove("medha.json"), ["model has no medha.json", "Convert the model again"]),
    "description not JSON": (
        lambda directory: (directory / "medha.json").write_text("{"),
        ["medha.json in model is not readable JSON"],
    ),
    "description not an object": (
        lambda directory: (directory / "medha.json").write_text("[]"),
        ["states format None; this version reads 1"],
    ),
    "another format": (describe(format=2), ["states format 2; this version reads 1"]),
    "another dtype": (describe(dtype="int4"), ["must state a dtype (bfloat16, float16, float32)"]),
    "no list of files": (describe(files=None), ["and its files"]),
    "no parameters": (lambda directory: shutil.rmtree(directory / "parameters"), ["model has no parameters/"]),
    "missing file": (remove("parameters/manifest.ocdbt"), ["parameters/manifest.ocdbt is missing; expected"]),
    "truncated file": (truncate, ["are damaged", "parameters/ocdbt.process_0/d/", " bytes; expected "]),
    "broken metadata": (spoil("_METADATA"), ["model/parameters holds no readable Orbax metadata"]),
    "broken manifest": (spoil("manifest.ocdbt"), ["model/parameters holds no readable Orbax metadata"]),
}


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("case", CASES)
def test_damage_is_found_before_anything_is_read(
    case: str, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damage, said = CASES[case]
    shutil.copytree(saved, tmp_path / "model")
    damage(tmp_path / "model")
    monkeypatch.setattr(ocp.StandardCheckpointer, "restore", lambda *_: pytest.fail("values were read"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError) as caught:
        load(Path("model"), "llama")
    for part in said:
        assert part in str(caught.value)
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.usefixtures("settled")
def test_values_that_cannot_be_decoded(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(saved, tmp_path / "model")
    spoil("")(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=r"parameter layers\.mlp\.\w+\.kernel in model/parameters") as caught:
        load(Path("model"), "llama")
    assert str(tmp_path) not in str(caught.value)


MODELS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "missing": ({"architectures": ["Qwen3ForCausalLM"]}, ["query_norm.scale is missing; expected shape [2, 8]"]),
    "surplus": (
        {"mlp_bias": False, "tie_word_embeddings": True},
        ["parameter head of shape [64, 32] is not part of this model", "layers.mlp.up.bias of shape [2, 48]"],
    ),
    "wrong shape": ({"vocab_size": 65}, ["parameter embedding has shape [64, 32]; expected [65, 32]"]),
}


@pytest.mark.parametrize("case", MODELS)
def test_weights_of_another_model(case: str, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes, said = MODELS[case]
    monkeypatch.setattr(ocp.StandardCheckpointer, "restore", lambda *_: pytest.fail("values were read"))
    with pytest.raises(CheckpointError, match=r"do not fit the model that config\.json describes") as caught:
        load(saved, "llama", **changes)
    for part in said:
        assert part in str(caught.value)


def test_unsupported_dtype(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path / "model")
    shutil.rmtree(tmp_path / "model/parameters")
    params = parameters("llama") | {"norm.scale": np.zeros(32, np.int32)}
    with ocp.StandardCheckpointer() as writer:
        writer.save(tmp_path / "model/parameters", params)
    describe(files={})(tmp_path / "model")
    with pytest.raises(CheckpointError, match=r"norm\.scale is stored as int32; supported are bfloat16"):
        load(tmp_path / "model", "llama")


def test_saving_is_refused(tmp_path: Path) -> None:
    source, params = write_model(tmp_path / "source", "mistral"), parameters("mistral")
    with pytest.raises(CheckpointError, match="source already exists.*choose another place, or remove it"):
        save_orbax(source, source, params)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


EIGHT_DEVICES = """
import sys
from pathlib import Path
import jax, numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from medha_jax.checkpoints import load_parameters, orbax
from medha_jax.models import parameter_specs
from tests.checkpoints.small_models import DTYPES, architecture, bits, one_device, same_bits, save_orbax

directory, arch = Path(sys.argv[1]), architecture("llama")
orbax.CHUNK_BYTES = 1 << 20
mesh = Mesh(np.array(jax.devices()).reshape(2, 2, 2), ("x", "y", "z"), axis_types=(AxisType.Auto,) * 3)
axes = {"layers": "x", "heads": "y", "kv_heads": "y", "ffn": "y", "vocab": ("x", "y")}
specs, rng = parameter_specs(arch, "bfloat16"), np.random.default_rng(0)
shardings = {
    path: NamedSharding(mesh, PartitionSpec(*(axes.get(axis) for axis in spec.axes)))
    for path, spec in specs.items()
}
values = {path: rng.standard_normal(spec.shape, np.float32).astype(DTYPES["bfloat16"]) for path, spec in specs.items()}
params = {path: jax.device_put(value, shardings[path]) for path, value in values.items()}
save_orbax(directory / "model", directory / "source", params)
whole = load_parameters(directory / "model", arch, "bfloat16", one_device())
again = load_parameters(directory / "model", arch, "bfloat16", shardings)
assert same_bits(whole, params) and same_bits(again, params)
for path, value in again.items():
    assert value.sharding == shardings[path], path
    for shard in value.addressable_shards:
        assert bits(shard.data) == bits(whole[path][shard.index]), (path, shard)
print("done")
"""


def test_sharded_arrays_are_saved_and_restored_in_silence(tmp_path: Path) -> None:
    write_model(tmp_path / "source", "llama")
    run = run_on_eight_devices(EIGHT_DEVICES, str(tmp_path))
    assert (run.stdout, run.stderr) == ("done\n", "")
