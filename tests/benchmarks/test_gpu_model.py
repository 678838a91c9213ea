"""The whole-model GPU benchmark: what it counts, and that it runs, on a tiny model without a GPU."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.gpu import model
from benchmarks.gpu.ceilings import Ceilings
from benchmarks.gpu.counts import LLAMA_3_8B, Counts
from benchmarks.gpu.device import NO_GPU
from medha_jax.attention.gpu.launch import LaunchError
from medha_jax.specs.model import Architecture

EIGHT_B = Architecture.from_config(LLAMA_3_8B)
SIZES = replace(model.SMALL, config={**model.TINY, "num_hidden_layers": 1}, prompt=96, long=256, batch=2, steps=4)


def test_counts_are_those_of_llama_3_8b() -> None:
    counts = Counts.of(EIGHT_B, "bfloat16", fp8=False)
    assert counts.head == 128256 * 4096
    # the published 8,030,261,248 are the layers, embedding, head and the last norm
    assert counts.blocks == 8_030_261_248 - 2 * counts.head - 4096
    assert counts.kv_bytes == 2 * 32 * 8 * 128 * 2 == 131_072
    assert Counts.of(EIGHT_B, "bfloat16", fp8=True).kv_bytes == 2 * 32 * 8 * 129


def test_work_of_a_prompt_and_of_a_decode() -> None:
    counts = Counts(blocks=100, head=10, attention=8, kv_bytes=16, weight_bytes=2)
    # three tokens see 1, 2 and 3
    assert counts.prefill_flops(3) == 2 * 100 * 3 + 8 * (1 + 2 + 3) + 2 * 10
    assert counts.decode_bytes(context=1000, batch=4) == 2 * 110 + 16 * 1000 * 4
    full = Counts.of(EIGHT_B, "bfloat16", fp8=False)
    assert full.prefill_flops(2**17) == pytest.approx(6.33e15, rel=1e-3)
    assert full.decode_bytes(2**19, 1) == pytest.approx(83.7e9, rel=1e-3)


def test_it_runs_on_a_tiny_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys) -> None:
    monkeypatch.setattr(model, "SMALL", SIZES)
    monkeypatch.setattr(model, "measure_ceilings", lambda *_: Ceilings(1e12, 1e12, 1e15))
    assert model.main(["--small", "--out", str(tmp_path)]) == 0
    stated = json.loads((tmp_path / "gpu_model.json").read_text())
    prefill, decode, engine = stated["rows"]
    counts = Counts.of(Architecture.from_config(SIZES.config), "bfloat16", fp8=False)
    assert prefill["share"] == pytest.approx(counts.prefill_flops(96) / prefill["seconds"] / 1e15)
    assert decode["share"] == pytest.approx(counts.decode_bytes(256, 1) / decode["seconds"] / 1e12)
    assert engine["rate"] == pytest.approx(2 / engine["seconds"])
    assert [row["floor"] for row in stated["rows"]] == [0.60, 0.85, 0.97]
    assert stated["settings"]["attention"] == "llvm" and "prompts by XLA" in stated["settings"]["why"]
    assert "engine decode 2 at" in capsys.readouterr().out


def test_without_a_gpu_nothing_is_measured(tmp_path: Path, capsys) -> None:
    assert model.main(["--out", str(tmp_path / "none")]) == NO_GPU
    assert "nothing was measured: the kernels need an NVIDIA GPU" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_a_memory_without_room_for_the_loads_is_an_error() -> None:
    with pytest.raises(LaunchError, match="room for .* tokens of KV; the prompt needs 96"):
        model.open_runtime(SIZES, room=model.WORKSPACE)
