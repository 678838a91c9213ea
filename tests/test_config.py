from __future__ import annotations

import os
from pathlib import Path

import pytest

from medha_jax.config import (
    MESH_CONFIGS,
    Buckets,
    ConfigError,
    MeshConfig,
    RuntimeConfig,
    Setting,
    claim_device_memory,
    default_compilation_cache,
    load_mesh,
)
from medha_jax.specs.sizes import with_gpu_rows


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dtype": "float16"}, "allowed are auto, float32, bfloat16"),
        ({"slots": 0}, "slots is 0; it must be at least 1"),
        ({"max_context": -5}, "max_context is -5"),
        ({"pool_tokens": 0}, "pool_tokens is 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RuntimeConfig(**settings)


@pytest.mark.parametrize(
    ("slots", "rows"),
    [(1, (0, 1)), (4, (0, 1, 4)), (16, (0, 1, 16)), (17, (0, 1, 16, 17)), (32, (0, 1, 16, 32)), (33, (0, 1, 16, 32))],
)
def test_decode_sizes_end_at_the_slots(slots: int, rows: tuple[int, ...]) -> None:
    config = RuntimeConfig(slots=slots, mesh=MeshConfig(shared_buckets=Buckets(decode=(2, 16))))
    assert config.mesh.buckets.decode == rows
    assert config.mesh.shared_buckets is not None and config.mesh.shared_buckets.decode[-1] == min(slots, 16)
    assert config.mesh.buckets.prefill == MeshConfig().buckets.prefill


def test_rows_for_gpus_are_multiples() -> None:
    sizes = Buckets(decode=(1, 8, 31), prefill=(20, 64), slices=(100, 256))
    config = with_gpu_rows(RuntimeConfig(mesh=MeshConfig(buckets=sizes, shared_buckets=Buckets(decode=(4,)))))
    found = config.mesh.buckets
    assert (found.decode, found.prefill, found.slices) == ((8, 32), (24, 64), (104, 256))
    assert config.mesh.shared_buckets is not None and config.mesh.shared_buckets.decode == (8,)
    assert with_gpu_rows(config) == config
    assert with_gpu_rows(RuntimeConfig(slots=4)).mesh.buckets.decode == (0, 4)  # never more than there are requests


def test_jax_takes_most_of_a_gpu_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION", raising=False)
    claim_device_memory()
    assert os.environ["XLA_PYTHON_CLIENT_MEM_FRACTION"] == "0.95"
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.5")
    claim_device_memory()
    assert os.environ["XLA_PYTHON_CLIENT_MEM_FRACTION"] == "0.5"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"decode": ()}, "decode buckets is"),
        ({"decode": (0,)}, "at least 1"),
        ({"prefill": (64, 64)}, "must increase"),
        ({"prefill": (0, 64)}, "at least 1"),
        ({"chunks": 0}, "chunks a tick is 0"),
    ],
)
def test_buckets_must_increase(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Buckets(**settings, slices=())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"page_size": 48}, "powers of two from 1 to 1024"),
        ({"page_size": 2048}, "powers of two"),
        ({"spp": 0}, "spp is 0; it must be at least 1"),
        ({"tokens_per_group": 100}, "tokens per group is 100; it must be a multiple of the page size 64"),
        ({"memory_fraction": 1.5}, "memory fraction is 1.5"),
        ({"tp": 2, "overlap_rows": 15}, "overlap rows is 15; it must be at least 16"),
        ({"spp": 2, "overlap_rows": 64}, "overlap rows is 64 with tp 1; it needs a tp of at least 2"),
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
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/someone")
    assert default_compilation_cache() == Path("/home/someone/.cache/medha-jax/compiled")


@pytest.mark.parametrize("home", [None, "somewhere"])
def test_without_a_home_only_a_stated_cache_is_used(monkeypatch: pytest.MonkeyPatch, home: str | None) -> None:
    def nobody(number: int) -> None:
        raise KeyError(number)

    monkeypatch.setattr("pwd.getpwuid", nobody)
    for name in ("MEDHA_JAX_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    if home is not None:
        monkeypatch.setenv("HOME", home)
    assert default_compilation_cache() is None and RuntimeConfig().compilation_cache is None
    monkeypatch.setenv("MEDHA_JAX_CACHE", "/somewhere")
    assert default_compilation_cache() == Path("/somewhere")


def test_layouts_are_read_by_name_file_and_axes(tmp_path: Path) -> None:
    assert load_mesh("tp=2, kvp=4") == MeshConfig(tp=2, kvp=4)
    assert load_mesh("dgx-h100-128").tp * load_mesh("dgx-h100-128").spp * load_mesh("dgx-h100-128").kvp == 128
    file = tmp_path / "mine.yaml"
    file.write_text("tp: 2\nbuckets: {decode: [4], prefill: [64, 128]}\nshared_buckets: null\n")
    read = load_mesh(str(file))
    assert read == MeshConfig(tp=2, buckets=Buckets(decode=(4,), prefill=(64, 128)), shared_buckets=None)


@pytest.mark.parametrize("name", sorted(file.stem for file in MESH_CONFIGS.glob("*.yaml")))
def test_every_shipped_layout_is_valid(name: str) -> None:
    assert load_mesh(name).hardware


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nowhere", "cannot read layout 'nowhere' (No such file or directory); give a YAML file, tp=N,spp=N,kvp=N, or"),
        ("nowhere.yaml", "cannot read layout 'nowhere.yaml'"),
        ("tp=two", "tp=two is not a whole number"),
        ("tp=2,pp=2", "layout has unknown settings pp; allowed are tp, spp, kvp, page_size"),
        ("tp=0", "tp is 0; it must be at least 1"),
        ("tp=2,spp=1, tp=1", "layout setting tp is stated twice"),
        ("tp=" + "1" * 5000, "is not a whole number of at most nine digits"),
    ],
)
def test_layouts_that_cannot_be_read(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_mesh(text)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("tp: [", "is not valid YAML"),
        ("- 1", "must be a mapping"),
        ("tp: 1\ndevices: 4", "unknown settings devices"),
        ("buckets: {decode: [4], sizes: [1]}", "buckets has unknown settings sizes"),
        ("tp: two", "layout"),
        ("tp: 1\nspp: 2\ntp: 2", "tp is stated twice"),
        ("page-size: 16\npage_size: 32", "page_size is stated twice"),
        ("buckets: {decode: [4], decode: [8]}", "decode is stated twice"),
        ("tp: " + "[" * 5000, "cannot be read as YAML"),
        ("tp: " + "1" * 5000, "cannot be read as YAML"),
        ("tp: 1 #" + " " * 2**20, "has more than 1,048,576 bytes"),
        ("\x00", "is not valid YAML"),
    ],
)
def test_layout_files_that_cannot_be_read(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "bad.yaml").write_text(content)
    with pytest.raises(ConfigError) as caught:
        load_mesh(str(tmp_path / "bad.yaml"))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("declared", "allowed", "refused", "words"),
    [
        (dict(at_least=1), (1, 2**40), (0, float("nan"), float("inf")), "it must be at least 1"),
        (dict(above=0), (1e-9, 5), (0, -1, float("inf")), "it must be above 0"),
        (dict(above=0, below=1), (0.5,), (0, 1), "it must be above 0 and below 1"),
        (dict(above=0, at_most=1), (0.5, 1), (0, 1.1), "allowed is (0, 1]"),
        (dict(at_least=0, below=1), (0, 0.9), (1, -0.1), "allowed is [0, 1)"),
        (dict(at_least=0, at_most=65535), (0, 65535), (-1, 65536), "allowed are 0 to 65535"),
        (dict(choices=("a", "b")), ("a",), ("c", ""), "allowed are a, b"),
    ],
)
def test_a_setting_says_what_it_allows(declared: dict, allowed: tuple, refused: tuple, words: str) -> None:
    stated = Setting("help", **declared)
    assert stated.allowed == words
    assert all(map(stated.allows, allowed)) and not any(map(stated.allows, refused))
