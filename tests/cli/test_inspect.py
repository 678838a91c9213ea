"""`medha-jax inspect`: 128 devices that are not there, tables, refusals."""

import json
from importlib.util import find_spec

import pytest

from tests.cli.command import CONFIG, refused

KERNELS = ("triton", "jax_triton", "jax_cuda12_plugin")
LLAMA_70B = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 128256,
    "hidden_size": 8192,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "intermediate_size": 28672,
    "max_position_embeddings": 131072,
}
LAYOUT = """
{tp: 8, spp: 4, kvp: 4, page_size: 128, tokens_per_group: 32768, hardware: h100,
 buckets: {decode: [8], prefill: [64], chunks: 2, mixed_only: true, slices: []},
 shared_buckets: {decode: [4], prefill: [64], chunks: 2, mixed_only: true, slices: [128]}}
"""


@pytest.fixture
def inspect(medha):
    return lambda *arguments: medha("inspect", *arguments, timeout=240)


def test_a_large_model_on_128_devices(inspect, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_70B))
    (tmp_path / "layout.yaml").write_text(LAYOUT)
    done = inspect("--model", tmp_path / "config.json", "--mesh", tmp_path / "layout.yaml", "--json")
    assert done.returncode == 0, done.stderr
    assert "compiled 3/3" in done.stderr
    report = json.loads(done.stdout)
    assert (report["devices"], report["dtype"]) == (128, "bfloat16")
    # one of 8 KV heads, 20 of 80 layers
    assert report["kv_bytes_per_token"] == 2 * 20 * 128 * 2
    assert report["model_kv_bytes_per_token"] == 327_680
    assert 70e9 < report["parameters"] < 71e9
    assert 4e9 < report["weight_bytes"] < 5e9
    assert report["longest_context"] > 10_000_000

    private, shared, sliced = report["buckets"]
    assert set(private["bytes_by_axis"]) == {"tp", "spp"}
    # bf16 output and fp32 log-sum-exp of 8 of 64 heads, from each of 4 groups, 20 layers
    assert shared["bytes_by_axis"]["kvp"] == 20 * 4 * 68 * 8 * (128 * 2 + 4)
    ring = [one for one in shared["collectives"] if one["kind"] == "collective-permute"]
    assert [(one["axis"], one["count"], one["nbytes"]) for one in ring] == [("spp", 1, shared["rows"] * 8192 * 2)]
    sums = [one for one in shared["collectives"] if (one["axis"], one["kind"]) == ("tp", "all-reduce")]
    assert [(one["count"], one["nbytes"]) for one in sums] == [(2 * 20 + 1, shared["rows"] * 8192 * 2)]
    assert private["uncounted"] == shared["uncounted"] == sliced["uncounted"] == 0
    # of a slice: one layer, and 128 rows that rest
    assert (sliced["bucket"], sliced["slice_layers"], sliced["rows"]) == ("0+0/0+128", 1, 128)
    assert sliced["bytes_by_axis"]["kvp"] == 4 * 128 * 8 * (128 * 2 + 4)
    assert report["held_bytes"] == 128 * 8192 * 2


def test_tables(inspect, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    buckets = "{decode: [2], prefill: [16], chunks: 1, mixed_only: true, slices: [32]}"
    (tmp_path / "one.yaml").write_text(f"{{tp: 2, buckets: {buckets}}}")
    # longer than the model's own limit: only shapes are looked at
    done = inspect("--model", tmp_path, "--mesh", tmp_path / "one.yaml", "--max-context", "4096", "--memory-gib", "1")
    assert done.returncode == 0, done.stderr
    assert "llama, 2 layers, float32, on 2 devices" in done.stdout
    assert "4,096 tokens" in done.stdout and "f32[18,32]" in done.stdout
    assert done.stdout.count("no copy of the pool") == 2
    assert "slice 0+32: 32 rows, 1 layer" in done.stdout and "bytes a slice" in done.stdout


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--mesh", "tp=3"], "the model does not fit tp=3,spp=1,kvp=1: heads 4 is not divisible by tp=3"),
        (["--mesh", "tp=2", "--memory-gib", "0.0001"], "MiB a device"),
    ],
)
def test_refusals(inspect, tmp_path, arguments, message):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    assert message in refused(inspect("--model", tmp_path, *arguments))


def test_a_model_that_is_not_there(inspect, tmp_path):
    assert "no config.json" in refused(inspect("--model", tmp_path))


def test_a_gpu_that_is_not_described(inspect, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    message = refused(inspect("--model", tmp_path, "--target", "h300"))
    assert message == "no GPU named 'h300'; there are a100, h100, h200"


@pytest.mark.skipif(all(map(find_spec, KERNELS)), reason="the `kernels` extra is installed")
def test_a_gpu_without_what_compiles_for_it(inspect):
    assert "pip install 'medha-jax[kernels]'" in refused(inspect("--model", "tiny", "--target", "h200"))


@pytest.mark.kernels
@pytest.mark.skipif(not all(map(find_spec, KERNELS)), reason="the `kernels` extra is not installed")
def test_a_gpu_that_is_not_there(inspect, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "one.yaml").write_text(
        "{buckets: {decode: [8], prefill: [16], chunks: 1, mixed_only: true, slices: []}}"
    )
    given = ("--model", tmp_path, "--mesh", tmp_path / "one.yaml", "--target", "h200")
    done = inspect(*given)
    assert done.returncode == 0, done.stderr
    assert "llama, 2 layers, bfloat16, on 1 x NVIDIA H200" in done.stdout
    assert "tick 8+16: 24 rows" in done.stdout and "in one of 2 layers" in done.stdout
    assert "the pool stays in its memory" in done.stdout
    assert "times a run;" in done.stdout
    (tick,) = json.loads(inspect(*given, "--json").stdout)["programs"]
    assert (tick["bucket"], tick["steps"], tick["pool_aliased"]) == ("8+16", 2, True)
