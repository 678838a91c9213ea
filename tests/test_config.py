from __future__ import annotations

from pathlib import Path

import pytest

from medha_jax.config import Buckets, ConfigError, MeshConfig, RuntimeConfig, default_compilation_cache


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dtype": "float16"}, "allowed are auto, float32, bfloat16"),
        ({"slots": 0}, "slots is 0; it must be at least 1"),
        ({"max_context": -5}, "max_context is -5"),
        ({"pool_tokens": 0}, "pool_tokens is 0"),
        ({"slots": 8}, "decode bucket 32 is larger than 8 slots"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RuntimeConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"decode": ()}, "decode buckets is"),
        ({"prefill": (64, 64)}, "must increase"),
        ({"prefill": (0, 64)}, "at least 1"),
        ({"chunks": 0}, "chunks a tick is 0"),
    ],
)
def test_buckets_must_increase(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Buckets(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"page_size": 48}, "powers of two from 1 to 1024"),
        ({"page_size": 2048}, "powers of two"),
        ({"spp": 0}, "spp is 0; it must be at least 1"),
        ({"tokens_per_group": 100}, "tokens per group is 100; it must be a multiple of the page size 64"),
        ({"memory_fraction": 1.5}, "memory fraction is 1.5"),
    ],
)
def test_layouts_out_of_range_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MeshConfig(**settings)


def test_where_compiled_programs_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDHA_JAX_CACHE", "/somewhere")
    assert default_compilation_cache() == Path("/somewhere")
    monkeypatch.delenv("MEDHA_JAX_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert default_compilation_cache() == Path("/caches/medha-jax/compiled")
