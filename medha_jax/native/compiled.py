"""Compiling a kernel for the processor at hand, and making it known to JAX."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import jax
import llvmlite
import llvmlite.binding as llvm
from llvmlite import ir

from medha_jax.native.machine_code import CodeFolder

KernelKind = TypeVar("KernelKind", bound=Hashable)  # what a kernel is made for
_REGISTERING = threading.Lock()
OPTIMISATION = 3  # of LLVM's levels, the highest
WIDEST = 16  # lanes, with AVX-512; other processors get half


@dataclass(frozen=True)
class Processor:
    """What a kernel has to know of a processor: the lanes of a vector, and how many vectors fit its registers."""

    name: str
    lanes: int
    registers: int


@cache
def processor() -> Processor:
    """The processor at hand."""
    features = llvm.get_host_cpu_features()
    wide = features.get("avx512f", False)
    return Processor(llvm.get_host_cpu_name(), WIDEST if wide else WIDEST // 2, 32 if wide else 16)


def register(write: Callable[[KernelKind], ir.Module], kind: KernelKind) -> str:
    """Compile a kernel and register it with JAX as a target of `jax.ffi.ffi_call`. Returns its name there.

    Any thread may ask; JAX refuses a second kernel of a name. The machine code is kept in the folder of JAX's
    compilation cache, if that is on, and taken from there next time.

    Args:
        write: makes the module, whose name is that of its one visible function.
    """
    with _REGISTERING:
        return _registered(write, kind).name


@dataclass(frozen=True)
class _Compiled:
    """A kernel's machine code, which is used until the process ends."""

    name: str
    engine: llvm.ExecutionEngine


@cache
def _registered(write: Callable[[Any], ir.Module], kind: Hashable) -> _Compiled:
    module = write(kind)
    engine = loaded(module)
    capsule = ctypes.pythonapi.PyCapsule_New
    capsule.restype, capsule.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    address = engine.get_function_address(module.name)
    jax.ffi.register_ffi_target(module.name, capsule(address, None, None), platform="cpu", api_version=1)
    return _Compiled(module.name, engine)


def loaded(written: ir.Module) -> llvm.ExecutionEngine:
    """A module's machine code in memory, kept or compiled."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    target = llvm.Target.from_default_triple()
    name, features = llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()
    machine = target.create_target_machine(cpu=name, features=features, opt=OPTIMISATION, jit=True)
    text, kept = str(written), _kept()
    versions = llvmlite.__version__, llvm.llvm_version_info
    key = repr((versions, target.triple, name, features, OPTIMISATION, text)).encode()
    code = None if kept is None else kept.read(key)
    if code is None:
        code = compile_module(text, machine)
        if kept is not None:
            kept.write(key, code)
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    return engine


def _kept() -> CodeFolder | None:
    stated: Any = jax.config
    directory = stated.jax_compilation_cache_dir if stated.jax_enable_compilation_cache else None
    return CodeFolder(Path(directory)) if directory else None


def compile_module(text: str, machine: llvm.TargetMachine) -> bytes:
    """The machine code of a module, as an object file."""
    module = llvm.parse_assembly(text)
    module.verify()
    builder = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=OPTIMISATION))
    builder.getModulePassManager().run(module, builder)
    code: bytes = machine.emit_object(module)
    return code
