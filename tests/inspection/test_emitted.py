"""What is counted in the traced tick is what the compiled one runs, loops included."""

import re
from collections import Counter

import jax
import jax.numpy as jnp
import pytest

from medha_jax.config import Buckets, MeshConfig, RuntimeConfig
from medha_jax.inspection.hlo import collectives, instructions
from medha_jax.inspection.traced import written_collectives
from medha_jax.mesh import build_mesh
from medha_jax.runtime.programs import Programs
from medha_jax.specs.layout import Layout
from medha_jax.specs.model import Architecture
from tests.small import CONFIG

ARCH = Architecture.from_config({**CONFIG, "num_hidden_layers": 6})
BUCKETS = Buckets(decode=(4,), prefill=(16,), chunks=2, mixed_only=True, slices=())


def runs(text):
    """Executions of each (opcode, elements) in compiled text, by the trip counts that the compiler notes at loops."""
    parts = dict(re.findall(r"^(?:ENTRY )?%?([\w.\-]+) \(.*?\{\n(.*?)^\}", text, re.MULTILINE | re.DOTALL))
    (entry,) = re.findall(r"^ENTRY %?([\w.\-]+)", text, re.MULTILINE)
    found: Counter[tuple[str, int]] = Counter()

    def visit(name, times):
        for one in collectives(instructions(f"\nENTRY x\n{parts[name]}")):
            found[one.opcode, one.elements] += times
        for line in parts[name].splitlines():
            noted = re.search(r'"known_trip_count":\{"n":"(\d+)"', line)
            called = re.findall(r"\b(body|calls|to_apply|branch_computations)=\{?(%[\w.\-]+(?:, ?%[\w.\-]+)*)", line)
            for kind, names in called:
                for inner in re.findall(r"[\w.\-]+", names):
                    # no collective stands in a loop without a count: the comparison would fail
                    visit(inner, times * (int(noted[1]) if noted and kind == "body" else 1))

    visit(entry, 1)
    return found


@pytest.mark.parametrize("layout, dtype", [(Layout(tp=2, spp=2, kvp=2), "float32"), (Layout(tp=4, spp=2), "bfloat16")])
def test_counts_are_those_of_the_compiled_program(layout, dtype):
    mesh = MeshConfig(
        tp=layout.tp,
        spp=layout.spp,
        kvp=layout.kvp,
        page_size=16,
        buckets=BUCKETS,
        shared_buckets=BUCKETS if layout.kvp > 1 else None,
    )
    config = RuntimeConfig(mesh=mesh, slots=4, max_context=2048, compilation_cache=None)
    programs = Programs(config, ARCH, jnp.dtype(dtype), build_mesh(layout, jax.devices("cpu")))
    traced = programs.trace(programs.buckets[-1])
    written: Counter[tuple[str, int]] = Counter()
    for one in written_collectives(traced.jaxpr.jaxpr):
        assert one.count is not None and not one.conditional
        written[one.kind, one.elements] += one.count
    assert sum(written.values()) >= 2 * 6 // layout.spp
    assert runs(traced.lower().compile().as_text()) == written
