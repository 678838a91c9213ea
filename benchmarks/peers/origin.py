"""Where figures come from: processor, cores, versions, threads, date, the machine's own speed, the model."""

from __future__ import annotations

import hashlib
import json
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from medha_jax.machine import cores, cpu_model, memory_bytes, vector_flags
from medha_jax.results.stamp import stamp

SIZE, TIMES = 1024, 5  # of the matrix product that measures the machine
HASHED = 2**20  # bytes of each file of weights that identify a model, with its length


def machine() -> dict[str, Any]:
    """Processor, cores that this process may use, memory in GiB, and the processor's vector instructions."""
    memory = memory_bytes() / 2**30
    return {"cpu": cpu_model(), "cores": cores(), "memory_gib": round(memory), "vectors": [*vector_flags()]}


def origin(versions: dict[str, str], started: datetime) -> dict[str, Any]:
    """Date, commit, versions of this project's packages and of the server's `versions`, Python."""
    known = stamp((), started)
    return {
        "date": known["started"],
        "commit": known["commit"],
        "python": known["python"],
        "versions": known["versions"] | versions,
    }


def matmul_gflops() -> float:
    """GFLOP/s of NumPy's fp32 matrix product, the best of a few: how fast the machine is now."""
    a = np.ones((SIZE, SIZE), np.float32)
    best = float("inf")
    for _ in range(TIMES):
        began = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - began)
    return 2 * SIZE**3 / best / 1e9


def model_facts(directory: Path) -> dict[str, Any]:
    """What identifies a model: a digest of its configuration and weights, its vocabulary, and the dtype that it states.

    Raises:
        FileNotFoundError: it has no `config.json`.
    """
    config = directory / "config.json"
    digest = hashlib.sha256(config.read_bytes())
    for weights in sorted(directory.glob("*.safetensors")):
        with weights.open("rb") as file:
            digest.update(file.read(HASHED) + weights.stat().st_size.to_bytes(8))
    stated = json.loads(config.read_text(encoding="utf-8"))
    dtype = stated.get("dtype") or stated.get("torch_dtype") or "float32"
    return {"model": digest.hexdigest()[:16], "vocabulary": int(stated["vocab_size"]), "dtype": dtype}
