"""Requests for simulations, and when their tokens came."""

from __future__ import annotations

from medha_jax.results import RequestRecord
from medha_jax.workload import WorkloadRequest


def request(at: float, prompt: int, output: int, kind: str = "short") -> WorkloadRequest:
    """A request that is due at a moment."""
    return WorkloadRequest(0, at, kind, prompt, output)


def first(record: RequestRecord) -> float:
    """When the first token came."""
    assert record.outputs
    return record.outputs[0][0]
