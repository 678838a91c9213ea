"""Kernels are compiled once: later starts take their machine code from the folder of compiled programs."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import llvmlite
import llvmlite.binding as llvm
import pytest
from llvmlite import ir

from medha_jax.native import compiled
from medha_jax.native.compiled import loaded
from medha_jax.runtime.executables import use_compilation_cache

ROOT = Path(__file__).parents[2]
WORD = ir.IntType(64)


def adds(constant: int) -> ir.Module:
    """A module whose function adds a constant."""
    module = ir.Module("medha_adds")
    function = ir.Function(module, ir.FunctionType(WORD, [WORD]), module.name)
    builder = ir.IRBuilder(function.append_basic_block())
    builder.ret(builder.add(function.args[0], ir.Constant(WORD, constant)))
    return module


def result(module: ir.Module) -> int:
    """What the module's function makes of 1000."""
    engine = loaded(module)
    return ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)(engine.get_function_address(module.name))(1000)


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The modules that are compiled."""
    made: list[str] = []
    compile_module = compiled.compile_module

    def counted(text: str, machine: object) -> bytes:
        made.append(text)
        return compile_module(text, machine)

    monkeypatch.setattr(compiled, "compile_module", counted)
    return made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty folder, which is that of JAX's cache."""
    use_compilation_cache(tmp_path)
    return tmp_path


def kernels(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.kernel"))


def test_the_second_start_compiles_nothing(folder: Path, compilations: list[str]) -> None:
    assert result(adds(7)) == 1007 and len(compilations) == 1 == len(kernels(folder))
    assert result(adds(7)) == 1007 and len(compilations) == 1 == len(kernels(folder))
    assert result(adds(8)) == 1008 and len(compilations) == 2 == len(kernels(folder))


def test_a_broken_file_is_compiled_again(
    folder: Path, compilations: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    result(adds(7))
    (file,) = kernels(folder)
    whole = file.read_bytes()
    for broken in (b"", whole[:-1], whole[:40], b"no program", bytes([*whole[:-1], whole[-1] ^ 1])):
        file.write_bytes(broken)
        compilations.clear()
        caplog.clear()
        assert result(adds(7)) == 1007 and len(compilations) == 1 == len(caplog.messages)
        assert kernels(folder) == [file] and file.read_bytes() == whole
    assert result(adds(7)) == 1007 and len(compilations) == 1


def test_code_for_another_processor_is_not_taken(
    folder: Path, compilations: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    result(adds(7))
    (own,) = kernels(folder)
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(llvm, "get_host_cpu_name", lambda: "generic")
        assert result(adds(7)) == 1007 and len(compilations) == 2
    (foreign,) = set(kernels(folder)) - {own}
    foreign.replace(own)
    assert result(adds(7)) == 1007 and len(compilations) == 3


@pytest.mark.parametrize("change", ["llvmlite", "LLVM", "features", "options"])
def test_what_determines_the_code_is_in_its_key(
    folder: Path, compilations: list[str], monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    result(adds(7))
    features: Callable[[], dict[str, bool]] = llvm.get_host_cpu_features
    fewer = type(features())({**features(), "sse4a": False, "sha3": False})
    match change:
        case "llvmlite":
            monkeypatch.setattr(llvmlite, "__version__", "0.0")
        case "LLVM":
            monkeypatch.setattr(llvm, "llvm_version_info", (1, 0, 0))
        case "features":
            monkeypatch.setattr(llvm, "get_host_cpu_features", lambda: fewer)
        case "options":
            monkeypatch.setattr(compiled, "OPTIMISATION", 2)
    assert result(adds(7)) == 1007 and len(compilations) == 2 == len(kernels(folder))


def test_without_a_place_every_start_compiles(folder: Path, compilations: list[str]) -> None:
    folder.rmdir()
    assert [result(adds(7)) for _ in range(2)] == [1007] * 2 and len(compilations) == 2
    jax.config.update("jax_compilation_cache_dir", None)
    assert result(adds(7)) == 1007 and len(compilations) == 3


def test_a_kernel_from_its_file_computes_the_same_bits(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.native.product_bits", str(tmp_path)]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    runs = []
    for _ in range(2):
        ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
        assert ended.returncode == 0, ended.stderr
        runs.append((ended.stdout, [(file.name, file.stat().st_ino) for file in kernels(tmp_path)]))
    assert runs[0] == runs[1] and len(runs[0][1]) == 1 and len(runs[0][0].strip()) == 64
