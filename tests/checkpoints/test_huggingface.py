"""Reading and writing Hugging Face directories: values, slices, and every way in which one can be broken."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from medha_jax.checkpoints import (
    CheckpointError,
    convert,
    huggingface,
    load_parameters,
    stored_dtype,
    write_huggingface,
)
from medha_jax.checkpoints.stored_tensors import TABLE, StoredTensor
from tests.checkpoints.small_models import (
    CONFIGS,
    DTYPES,
    EMBED,
    HEAD_DIM,
    HEADS,
    LAYERS,
    VOCAB,
    architecture,
    one_device,
    run_on_eight_devices,
    same_bits,
    stored_tensors,
    write_model,
)

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def load(directory: Path, family: str, dtype: str = "bfloat16") -> dict[str, jax.Array]:
    return load_parameters(directory, architecture(family), dtype, one_device())


def load_told(directory: Path, family: str) -> tuple[dict[str, jax.Array], list[str]]:
    """The parameters, and what was told about the files."""
    lines: list[str] = []
    return load_parameters(directory, architecture(family), "bfloat16", one_device(), report=lines.append), lines


def read_back(directory: Path) -> dict[str, np.ndarray]:
    tensors: dict[str, np.ndarray] = {}
    for file in directory.glob("*.safetensors"):
        with safe_open(file, framework="numpy") as opened:
            tensors |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    return tensors


def test_orientation(tmp_path: Path) -> None:
    stored = stored_tensors("llama", "float32")
    ours = load(write_model(tmp_path / "model", "llama", stored), "llama", "float32")
    x = np.random.default_rng(1).standard_normal(EMBED).astype(np.float32)
    heads = np.random.default_rng(2).standard_normal((HEADS, HEAD_DIM)).astype(np.float32)
    for layer in range(LAYERS):
        at = f"model.layers.{layer}."
        expected = stored[at + "self_attn.q_proj.weight"] @ x + stored[at + "self_attn.q_proj.bias"]
        kernel, bias = ours["layers.attention.query.kernel"][layer], ours["layers.attention.query.bias"][layer]
        found = np.einsum("e,ehd->hd", x, kernel) + bias
        np.testing.assert_allclose(found.reshape(-1), expected, rtol=1e-5, atol=1e-5)
        expected = stored[at + "self_attn.o_proj.weight"] @ heads.reshape(-1)
        found = np.einsum("hd,hde->e", heads, ours["layers.attention.output.kernel"][layer])
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
        expected = stored[at + "mlp.up_proj.weight"] @ x
        np.testing.assert_allclose(x @ ours["layers.mlp.up.kernel"][layer], expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(ours["head"], stored["lm_head.weight"])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", CONFIGS)
def test_round_trip_keeps_every_bit(tmp_path: Path, family: str, dtype: str) -> None:
    stored = stored_tensors(family, dtype)
    ours = load(write_model(tmp_path / "model", family, stored), family, dtype)
    write_huggingface(tmp_path / "again", CONFIGS[family], ours)
    assert same_bits(read_back(tmp_path / "again"), stored)
    assert same_bits(load(tmp_path / "again", family, dtype), ours)
    assert json.loads((tmp_path / "again/config.json").read_text()) == CONFIGS[family]
    assert stored_dtype(tmp_path / "again") == dtype


def test_several_files(tmp_path: Path) -> None:
    ours = load(write_model(tmp_path / "model", "qwen3"), "qwen3")
    write_huggingface(tmp_path / "shards", CONFIGS["qwen3"], ours, max_shard_bytes=8000)
    files = sorted(path.name for path in (tmp_path / "shards").glob("*.safetensors"))
    assert files[0] == f"model-00001-of-{len(files):05}.safetensors" and len(files) > 3
    assert all(sum(t.nbytes for t in load_file(tmp_path / "shards" / file).values()) <= 8000 for file in files)
    index = json.loads((tmp_path / "shards" / INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in ours.values())
    assert same_bits(load(tmp_path / "shards", "qwen3"), ours)


@pytest.mark.parametrize("wanted", DTYPES)
@pytest.mark.parametrize("stored", DTYPES)
def test_values_are_cast_to_the_wanted_dtype(tmp_path: Path, stored: str, wanted: str) -> None:
    write_model(tmp_path / "model", "mistral", stored_tensors("mistral", stored))
    kept, cast = load(tmp_path / "model", "mistral", stored), load(tmp_path / "model", "mistral", wanted)
    assert same_bits(cast, {name: value.astype(wanted) for name, value in kept.items()})


def test_values_beyond_float16_are_refused(tmp_path: Path) -> None:
    tensors = stored_tensors("mistral", "float32")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = 1e6
    write_model(tmp_path / "model", "mistral", tensors)
    with pytest.raises(CheckpointError, match=r"model\.layers\.1\.mlp\.up_proj\.weight .* float16.*65504.*bfloat16"):
        load(tmp_path / "model", "mistral", "float16")
    assert load(tmp_path / "model", "mistral")["layers.mlp.up.kernel"][1, 5, 3] == jnp.bfloat16(1e6)


ROTARY = "model.layers.0.self_attn.rotary_emb."


def test_harmless_surplus_is_left_with_one_line(tmp_path: Path) -> None:
    tensors = stored_tensors("qwen2")
    expected, told = load_told(write_model(tmp_path / "model", "qwen2", tensors), "qwen2")
    assert told == []
    for name in ("cos_cached", "inv_freq", "sin_cached"):
        tensors[ROTARY + name] = np.zeros(4, np.float64)
    tensors[ROTARY.replace("0", "1") + "inv_freq"] = np.zeros(4, np.float64)
    found, told = load_told(write_model(tmp_path / "model", "qwen2", tensors), "qwen2")
    assert same_bits(found, expected)
    names = f"{ROTARY}cos_cached, {ROTARY}inv_freq, {ROTARY}sin_cached and 1 more"
    assert told == [f"warning: tensors that are not read: {names}"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_stored_head_that_equals_tied_embeddings_changes_nothing(tmp_path: Path, dtype: str) -> None:
    tensors = stored_tensors("qwen2")
    tensors["model.embed_tokens.weight"][3, 5] = np.nan
    expected = load(write_model(tmp_path / "model", "qwen2", tensors), "qwen2")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].astype(DTYPES[dtype])
    found, told = load_told(write_model(tmp_path / "model", "qwen2", tensors), "qwen2")
    assert same_bits(found, expected) and told == []


@pytest.mark.parametrize("rows", [VOCAB, VOCAB + 2])
def test_a_stored_head_that_differs_from_tied_embeddings_is_refused(
    tmp_path: Path, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last value of the last block counts, too."""
    monkeypatch.setattr(huggingface, "COMPARED_BYTES", 5 * 4 * EMBED)
    tensors = stored_tensors("qwen2")
    tensors["lm_head.weight"] = np.resize(tensors["model.embed_tokens.weight"], (rows, EMBED))
    tensors["lm_head.weight"][-1, -1] += 1
    write_model(tmp_path / "model", "qwen2", tensors)
    message = r"lm_head.weight in model.safetensors of .* differs from model.embed_tokens.weight, but tie_word_embed"
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path / "model", "qwen2")
    with pytest.raises(CheckpointError, match=message):
        convert(tmp_path / "model", tmp_path / "converted")
    if rows == VOCAB:  # the advice works
        untied = architecture("qwen2", tie_word_embeddings=False)
        found = load_parameters(tmp_path / "model", untied, "bfloat16", one_device())["head"]
        np.testing.assert_array_equal(np.asarray(found), tensors["lm_head.weight"])


def test_the_index_decides_what_is_read(tmp_path: Path) -> None:
    expected = load(write_model(tmp_path / "model", "qwen2"), "qwen2")
    (tmp_path / "model" / SINGLE).unlink()
    tensors = stored_tensors("qwen2")
    weight_map = {name: "a.safetensors" if "layers.0" in name else "b.safetensors" for name in tensors}
    shards = {file: {n: tensors[n] for n in tensors if weight_map[n] == file} for file in set(weight_map.values())}
    shards["a.safetensors"] |= {NORM: np.zeros(EMBED, np.float32), "model.extra": np.zeros(3, np.float32)}
    shards["b.safetensors"] |= {"lm_head.weight": -tensors["model.embed_tokens.weight"]}
    for file, stored in shards.items():
        save_file(stored, tmp_path / "model" / file)
    (tmp_path / "model" / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    found, told = load_told(tmp_path / "model", "qwen2")
    assert same_bits(found, expected)
    (line,) = told
    assert all(name in line for name in (NORM, "model.extra", "lm_head.weight"))


def test_files_may_be_links(tmp_path: Path) -> None:
    """The download cache of Hugging Face keeps the files elsewhere under other names."""
    write_model(tmp_path / "model", "mistral")
    (tmp_path / "blobs").mkdir()
    (tmp_path / "model" / SINGLE).rename(tmp_path / "blobs" / "0123abcd")
    (tmp_path / "model" / SINGLE).symlink_to("../blobs/0123abcd")
    assert load(tmp_path / "model", "mistral")["embedding"].shape == (64, EMBED)


# Each case damages a sound directory and names what the error must say.
NORM, QUERY = "model.norm.weight", "model.layers.1.self_attn.q_proj.weight"
Damage = Callable[[Path], None]


def tensors_with(**changes: np.ndarray | None) -> Damage:
    """Rewrite the file with tensors replaced, added, or (None) left out; `.` is written `__` in the names."""

    def damage(directory: Path) -> None:
        tensors = stored_tensors("mistral") | {name.replace("__", "."): value for name, value in changes.items()}
        save_file({name: value for name, value in tensors.items() if value is not None}, directory / SINGLE)

    return damage


def header_with(change: Callable[[dict], object]) -> Damage:
    """Rewrite the header of the file and leave the values as they are."""

    def damage(directory: Path) -> None:
        content = (directory / SINGLE).read_bytes()
        (length,) = struct.unpack("<Q", content[:8])
        header = json.loads(content[8 : 8 + length])
        changed = change(header)
        text = json.dumps(header if changed is None else changed).encode()
        (directory / SINGLE).write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])

    return damage


def content_with(change: Callable[[bytes], bytes]) -> Damage:
    def damage(directory: Path) -> None:
        (directory / SINGLE).write_bytes(change((directory / SINGLE).read_bytes()))

    return damage


def index_with(change: Callable[[dict], object]) -> Damage:
    """Turn the file into two with an index, then change the index."""

    def damage(directory: Path) -> None:
        (directory / SINGLE).unlink()
        tensors = stored_tensors("mistral")
        weight_map = {name: "a.safetensors" if "layers.0" in name else "b.safetensors" for name in tensors}
        for file in ("a.safetensors", "b.safetensors"):
            save_file({name: tensors[name] for name in tensors if weight_map[name] == file}, directory / file)
        changed = change(weight_map)
        index = {"metadata": {}, "weight_map": weight_map} if changed is None else changed
        (directory / INDEX).write_text(json.dumps(index))

    return damage


def unreadable_index(directory: Path) -> None:
    """Linux knows a file that is there for everybody and cannot be read, for root neither."""
    (directory / SINGLE).unlink()
    (directory / INDEX).symlink_to("/proc/self/mem")


def overlap(header: dict) -> None:
    first, second = sorted(name for name in header if name.endswith("input_layernorm.weight"))
    header[first]["data_offsets"] = header[second]["data_offsets"]


CASES: dict[str, tuple[Damage, list[str]]] = {
    "missing tensor": (tensors_with(model__norm__weight=None), [f"tensor {NORM} is missing; expected shape [32]"]),
    "unexpected tensor": (
        tensors_with(model__extra=np.zeros(3, np.float16)),
        ["tensor model.extra in model.safetensors of shape [3] is not part of this model"],
    ),
    "tensor of another family": (
        tensors_with(**{QUERY.replace(".", "__").replace("weight", "bias"): np.zeros(32, np.float16)}),
        ["model.layers.1.self_attn.q_proj.bias", "not part of this model"],
    ),
    "wrong shape": (
        tensors_with(model__norm__weight=np.zeros(31, np.float16)),
        [f"tensor {NORM} in model.safetensors has shape [31]; expected [32]"],
    ),
    "transposed shape": (
        tensors_with(model__embed_tokens__weight=np.zeros((32, 64), np.float16)),
        ["model.embed_tokens.weight", "shape [32, 64]; expected [64, 32]"],
    ),
    "unsupported dtype": (
        tensors_with(model__norm__weight=np.zeros(32, np.float64)),
        [f"tensor {NORM} in model.safetensors is stored as F64; supported are BF16, F16, F32"],
    ),
    "several problems": (
        tensors_with(model__norm__weight=None, model__extra=np.zeros(3, np.float16)),
        [f"tensor {NORM} is missing", "tensor model.extra"],
    ),
    "truncated values": (content_with(lambda content: content[:-10]), [SINGLE, "is truncated: tensor", "ends at byte"]),
    "truncated header": (content_with(lambda content: content[:100]), [SINGLE, "truncated", "the file has 100 bytes"]),
    "empty file": (content_with(lambda content: b""), [SINGLE, "truncated", "the file has 0 bytes"]),
    "not safetensors": (
        content_with(lambda content: b"\x80\x02}q\x00." + content),
        [SINGLE, "truncated or not safetensors"],
    ),
    "header not JSON": (
        content_with(lambda content: content[:8] + b"?" + content[9:]),
        [SINGLE, "not a valid safetensors file", "header that is not JSON"],
    ),
    "header not an object": (header_with(lambda header: [1]), [SINGLE, "header that is not a JSON object"]),
    "broken entry": (
        header_with(lambda header: header[NORM].update(shape=[-32])),
        [SINGLE, f"a broken entry for tensor {NORM}"],
    ),
    "wrong offsets": (
        header_with(lambda header: header[NORM].update(shape=[33])),
        [SINGLE, f"corrupt: tensor {NORM} of dtype BF16 and shape [33] needs 66 bytes, its offsets leave 64"],
    ),
    "overlapping tensors": (header_with(overlap), [SINGLE, "overlap or leave gaps"]),
    "surplus bytes": (content_with(lambda content: content + b"12345"), [SINGLE, "5 bytes behind its last tensor"]),
    "index without its file": (
        index_with(lambda files: files.update({NORM: "c.safetensors"})),
        [INDEX, "names c.safetensors, which does not exist"],
    ),
    "index places a tensor wrongly": (
        index_with(lambda files: files.update({NORM: "a.safetensors"})),
        [f"{INDEX} places tensor {NORM} in a.safetensors, which lacks it"],
    ),
    "index names a tensor that is nowhere": (
        index_with(lambda files: files.update({"model.extra": "a.safetensors"})),
        ["places tensor model.extra in a.safetensors, which lacks it"],
    ),
    "index omits a tensor": (
        index_with(lambda files: files.pop(NORM) and None),
        [f"tensor {NORM} is missing; expected shape [32]"],
    ),
    "index climbs out of the directory": (
        index_with(lambda files: files.update({NORM: "../outside.safetensors"})),
        [INDEX, "'../outside.safetensors'", "in the same directory"],
    ),
    "index names an absolute path": (
        index_with(lambda files: files.update({NORM: "/etc/hosts.safetensors"})),
        [INDEX, "'/etc/hosts.safetensors'", "in the same directory"],
    ),
    "index without a map": (index_with(lambda files: {"weights": {}}), [INDEX, "weight_map"]),
    "index with an empty map": (
        index_with(lambda files: {"weight_map": {}}),
        ["the index in model", "names no tensor"],
    ),
    "index with other types": (index_with(lambda files: {"weight_map": {NORM: 3}}), [INDEX, "weight_map"]),
    "index that cannot be read": (unreadable_index, [INDEX, "in model cannot be read: Input/output error"]),
    "no weights": (lambda directory: (directory / SINGLE).unlink(), ["holds no weights", SINGLE, INDEX]),
}


@pytest.mark.parametrize("case", CASES)
def test_damage_is_found_before_anything_is_read(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    damage, said = CASES[case]
    write_model(tmp_path / "model", "mistral")
    damage(tmp_path / "model")
    (tmp_path / "outside.safetensors").write_bytes(b"")
    monkeypatch.setattr(StoredTensor, "fill", lambda *_: pytest.fail("values were read"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError) as caught:
        load(Path("model"), "mistral")
    for part in said:
        assert part in str(caught.value)
    assert str(tmp_path) not in str(caught.value)


def test_a_missing_directory(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere is not a directory"):
        load(tmp_path / "nowhere", "mistral")


def test_many_problems_are_summed_up(tmp_path: Path) -> None:
    write_model(tmp_path / "model", "mistral", {NORM: np.zeros(32, np.float16)})
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path / "model", "mistral")
    assert "and 12 more like these" in str(caught.value) and len(str(caught.value)) < 1000


def test_untied_models_need_no_surplus_head_and_tied_ones_none(tmp_path: Path) -> None:
    write_model(tmp_path / "model", "mistral", stored_tensors("qwen2"))
    with pytest.raises(CheckpointError, match=r"lm_head\.weight is missing"):
        load(tmp_path / "model", "mistral")


def test_dtype_that_weights_cannot_have(tmp_path: Path) -> None:
    write_model(tmp_path / "model", "mistral")
    for dtype in ("float64", "int8", "brain"):
        with pytest.raises(CheckpointError, match=f"'{dtype}' is not supported.*bfloat16, float16, float32"):
            load(tmp_path / "model", "mistral", dtype)


def test_shardings_are_checked(tmp_path: Path) -> None:
    write_model(tmp_path / "model", "mistral")
    shardings = dict.fromkeys(set(TABLE) - {"norm.scale"}, one_device())
    with pytest.raises(CheckpointError, match=r"no sharding is given for parameter norm\.scale"):
        load_parameters(tmp_path / "model", architecture("mistral"), "bfloat16", shardings)


def test_stored_dtype_is_that_of_most_bytes(tmp_path: Path) -> None:
    tensors = stored_tensors("mistral", "float16")
    tensors[NORM] = tensors[NORM].astype(np.float32)
    assert stored_dtype(write_model(tmp_path / "model", "mistral", tensors)) == "float16"
    wide = {name: value.astype(np.float64) for name, value in tensors.items()}
    with pytest.raises(CheckpointError, match="stored as F64; supported are BF16, F16, F32"):
        stored_dtype(write_model(tmp_path / "model", "mistral", wide))


def test_writing_is_refused(tmp_path: Path) -> None:
    ours = load(write_model(tmp_path / "model", "mistral"), "mistral")
    config = CONFIGS["mistral"]
    with pytest.raises(CheckpointError, match="model already exists.*choose another place"):
        write_huggingface(tmp_path / "model", config, ours)
    with pytest.raises(CheckpointError, match="max_shard_bytes is 0"):
        write_huggingface(tmp_path / "new", config, ours, max_shard_bytes=0)
    with pytest.raises(CheckpointError, match=r"parameter norm\.scale is missing"):
        write_huggingface(tmp_path / "new", config, {n: v for n, v in ours.items() if n != "norm.scale"})
    with pytest.raises(CheckpointError, match="parameter more is not part of this model"):
        write_huggingface(tmp_path / "new", config, ours | {"more": ours["head"]})
    with pytest.raises(CheckpointError, match=r"parameter head has shape \[64, 31\]; expected \[64, 32\]"):
        write_huggingface(tmp_path / "new", config, ours | {"head": ours["head"][:, 1:]})
    with pytest.raises(CheckpointError, match="dtype 'int8' is not supported"):
        write_huggingface(tmp_path / "new", config, ours | {"head": ours["head"].astype("int8")})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


EIGHT_DEVICES = """
import sys
from pathlib import Path
import jax, numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from medha_jax.checkpoints import CheckpointError, huggingface, load_parameters
from medha_jax.models import parameter_specs
from tests.checkpoints.small_models import architecture, bits, one_device

bytes_read = 0

class Slice:
    def __init__(self, inner):
        self.inner = inner
    def __getitem__(self, index):
        global bytes_read
        values = self.inner[index]
        bytes_read += values.nbytes
        return values

class Files:
    def __init__(self, *args, **kwargs):
        self.inner = real(*args, **kwargs)
    def __enter__(self):
        self.opened = self.inner.__enter__()
        return self
    def __exit__(self, *error):
        return self.inner.__exit__(*error)
    def get_slice(self, name):
        return Slice(self.opened.get_slice(name))

real, huggingface.safe_open = huggingface.safe_open, Files
directory, arch = Path(sys.argv[1]), architecture("llama")
whole = load_parameters(directory, arch, "bfloat16", one_device())
specs = parameter_specs(arch, "bfloat16")
size = sum(value.nbytes for value in whole.values())
assert bytes_read == size, (bytes_read, size)

mesh = Mesh(np.array(jax.devices()).reshape(2, 2, 2), ("x", "y", "z"), axis_types=(AxisType.Auto,) * 3)
layouts = {
    "layers and heads, two replicas": {"layers": "x", "heads": "y", "kv_heads": "y", "ffn": "y", "vocab": ("x", "y")},
    "inside a head": {"head_dim": "x", "embed": ("y", "z")},
    "nothing": {},
}
for name, axes in layouts.items():
    bytes_read = 0
    shardings = {
        path: NamedSharding(mesh, PartitionSpec(*(axes.get(axis) for axis in spec.axes)))
        for path, spec in specs.items()
    }
    params = load_parameters(directory, arch, "bfloat16", shardings)
    for path, value in params.items():
        assert value.sharding == shardings[path], path
        for shard in value.addressable_shards:
            assert bits(shard.data) == bits(whole[path][shard.index]), (name, path, shard)
    # slices of different devices do not overlap, and replicas are read once: together they are the model
    assert bytes_read == size, (name, bytes_read, size)

# one device of eight, as a process with a single device would see it, reads an eighth
bytes_read = 0
with huggingface.opened(directory, arch) as reader:
    part = reader.read("layers.mlp.up.kernel", (slice(0, 1), slice(None), slice(0, 12)), "bfloat16")
assert bytes_read == part.nbytes == whole["layers.mlp.up.kernel"].nbytes // 8, bytes_read

try:
    load_parameters(directory, arch, "bfloat16", NamedSharding(mesh, PartitionSpec(("x", "y", "z"))))
except CheckpointError as error:
    assert "layers." in str(error) and "cannot be divided" in str(error), error
else:
    raise AssertionError("two layers were divided by eight")
print("done")
"""


def test_each_device_holds_its_slice_and_only_slices_are_read(tmp_path: Path) -> None:
    run = run_on_eight_devices(EIGHT_DEVICES, str(write_model(tmp_path / "model", "llama")))
    assert run.stdout == "done\n", run.stderr
