"""Ticks and slices compiled for a GPU that is not there, and what is said if the compiler ends early."""

from importlib.util import find_spec

import jax.numpy as jnp
import jaxlib.version
import pytest

from medha_jax.config import Buckets, MeshConfig, RuntimeConfig
from medha_jax.inspection import GpuTargetError, gpu_inspection, inspect_for_gpu, load_gpu
from medha_jax.inspection.compile_task import LOG, CompileOutcome
from medha_jax.inspection.gpu_inspection import GpuCompileError, read_outcome
from medha_jax.runtime.shapes import SliceShape
from medha_jax.specs.buckets import Bucket, Segment
from medha_jax.specs.model import Architecture
from tests.inspection.gpu_texts import LOG as LOGGED
from tests.inspection.gpu_texts import METADATA, PROGRAM, THUNKS
from tests.small import CONFIG

LAYERS = 4
ARCH = Architecture.from_config({**CONFIG, "num_hidden_layers": LAYERS, "hidden_size": 256, "head_dim": 64})
# rows that a GPU would pad: they are rounded up to 8, 32 and 64
BUCKETS = Buckets(decode=(1,), prefill=(30,), chunks=2, mixed_only=True, slices=(63,))
CONFIGURATION = RuntimeConfig(mesh=MeshConfig(page_size=16, buckets=BUCKETS), slots=8, compilation_cache=None)
# XLA records no calls of jax-triton 0.3, which goes with jax 0.10
RECORDS_CALLS = jaxlib.version.__version_info__ >= (0, 11)
TICK = Bucket(Segment(8, 32, 2))

LACKING = [name for name in ("triton", "jax_triton", "jax_cuda12_plugin") if find_spec(name) is None]


def needs_kernels(test):
    return pytest.mark.kernels(pytest.mark.skipif(LACKING != [], reason="the `kernels` extra is not installed")(test))


@pytest.fixture(scope="module")
def report():
    return inspect_for_gpu(load_gpu("h200"), CONFIGURATION, ARCH, jnp.dtype("bfloat16"))


@pytest.fixture(scope="module")
def tick(report):
    return report.programs[0]


def assert_one_command_buffer(program):
    """With everything in it; else the kernels' calls are outside, and what stands alone between them."""
    if RECORDS_CALLS:
        assert (program.buffers.buffers, program.buffers.launches, program.buffers.loose) == (1, 1, ())
    else:
        assert "kCustomCall" in {one.kind for one in program.buffers.loose}


@needs_kernels
def test_every_shape_is_compiled_for_the_gpu(report):
    assert (report.target, report.device, report.devices) == ("h200", "NVIDIA H200", 1)
    assert report.attention.startswith("triton (NVIDIA H200, sm90")
    assert [(one.bucket, one.slice_layers) for one in report.programs] == [
        ("8+32", None),
        ("0+64", 1),
        ("0+64", 4),
    ]


@needs_kernels
def test_a_layer_has_four_products_and_three_kernels(tick):
    assert tick.steps == LAYERS
    layer = {one.kind: one.in_a_layer for one in tick.kernels}
    assert layer["matrix product"] == 4
    assert layer["Triton kernel"] >= 3


@needs_kernels
def test_no_weights_of_products_and_no_pool_are_moved(report):
    for program in report.programs:
        assert program.pool_aliased
        assert [one for one in program.moves if one.moved == "pool"] == []
        assert_one_command_buffer(program)
    tick = report.programs[0]
    assert [one.argument for one in tick.moves if one.in_a_layer and one.argument.endswith(".kernel")] == []
    assert tick.repeated == () and tick.sent == ()
    assert [one for program in report.programs for one in program.moves if one.kind == "pad" and one.in_a_layer] == []


@needs_kernels
def test_a_program_is_seen_to_its_end(tick):
    assert (tick.error, tick.unseen) == (None, ())
    assert_one_command_buffer(tick)
    assert tick.buffers.recorded > 10
    assert tick.temporary_bytes > 0


@needs_kernels
@pytest.mark.parametrize("name", ["a100", "h100"])
def test_other_gpus(name):
    shapes = inspect_for_gpu(
        load_gpu(name),
        CONFIGURATION,
        ARCH,
        jnp.dtype("bfloat16"),
        choose=ticks_only,
    )
    (tick,) = shapes.programs
    assert {one.kind: one.in_a_layer for one in tick.kernels}["matrix product"] == 4
    assert_one_command_buffer(tick)


@needs_kernels
def test_two_gpus_sum_twice_a_layer():
    mesh = MeshConfig(tp=2, page_size=16, buckets=BUCKETS)
    config = RuntimeConfig(mesh=mesh, slots=8, compilation_cache=None)
    report = inspect_for_gpu(load_gpu("h200"), config, ARCH, jnp.dtype("bfloat16"), choose=ticks_only)
    (tick,) = report.programs
    sums = [one for one in tick.sent if one.kind == "all-reduce"]
    assert sum(one.times for one in sums if one.result == ("bf16[40,256]",)) >= 2 * LAYERS
    assert_one_command_buffer(tick)


@needs_kernels
def test_a_compiler_that_does_not_start(monkeypatch):
    gpu = load_gpu("h200")
    broken = type(gpu)(gpu.name, "no description", gpu.target, gpu.memory)
    with pytest.raises(GpuCompileError, match="ended with status 1"):
        inspect_for_gpu(broken, CONFIGURATION, ARCH, jnp.dtype("bfloat16"))


def ticks_only(buckets):
    return buckets if buckets[0].decodes else ()


def written(folder, **texts):
    names = {
        "program": "module_0001.jit_tick.sm_9.0a_gpu_after_optimizations.txt",
        "thunks": "module_0001.jit_tick.thunk_sequence_after_thunk_passes.txt",
        "metadata": "module_0001.jit_tick.thunk_metadata.txt",
        "memory": "module_0001.jit_tick.sm_9.0a_gpu_after_optimizations-buffer-assignment.txt",
        "log": LOG,
    }
    for name, text in texts.items():
        (folder / names[name]).write_text(text)
    return folder


MEMORY = "allocation 21: size 4098, output\nallocation 22: size 140711048, preallocated-temp:\n value: <1>\n"


@pytest.mark.parametrize("memory", [MEMORY, MEMORY.replace(", pre", ", page 0, pre")])  # of jax 0.10 and 0.11
def test_all_that_xla_wrote(tmp_path, memory):
    folder = written(tmp_path, program=PROGRAM, thunks=THUNKS, metadata=METADATA, memory=memory, log=LOGGED)
    report = read_outcome(TICK, CompileOutcome(2.5), folder)
    assert (report.bucket, report.rows, report.slice_layers, report.steps) == ("8+32", 40, None, 0)
    assert (report.error, report.unseen, report.temporary_bytes) == (None, (), 140_711_048)
    assert report.buffers.buffers == 3 and report.buffers.loose[2].why


def test_a_compile_that_ends_early_says_what_is_not_seen(tmp_path):
    folder = written(tmp_path, program=PROGRAM, log="")
    report = read_outcome(SliceShape(TICK, 2), CompileOutcome(2.5, "INTERNAL: no"), folder)
    assert (report.error, report.slice_layers) == ("INTERNAL: no", 2)
    assert report.unseen == ("command buffers", "temporary memory")
    assert report.kernels and report.pool_aliased


def test_a_compile_without_a_program(tmp_path):
    with pytest.raises(GpuCompileError, match=r"does not compile for this GPU: INTERNAL: no"):
        read_outcome(TICK, CompileOutcome(0.1, "INTERNAL: no"), tmp_path)


def test_packages_that_are_missing(monkeypatch):
    monkeypatch.setattr(gpu_inspection, "find_spec", lambda name: None)
    with pytest.raises(GpuTargetError, match=r"triton and jax_triton and jax_cuda12_plugin not installed; pip install"):
        inspect_for_gpu(load_gpu("h200"), CONFIGURATION, ARCH, jnp.dtype("bfloat16"))
