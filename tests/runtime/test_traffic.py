"""Collectives of hand-written programs on a 2x2x2 mesh."""

import pytest

from medha_jax.mesh import build_mesh
from medha_jax.runtime.hlo import Program
from medha_jax.runtime.traffic import bytes_by_axis, traffic
from medha_jax.specs.layout import Layout

NEIGHBOURS, ALONE, CROSSED = "[4,2]<=[8]", "[8,1]<=[8]", "{{0,3},{1,2},{4,7},{5,6}}"


@pytest.fixture(scope="module")
def mesh():
    return build_mesh(Layout(tp=2, spp=2, kvp=2))


def program(*results):
    """One all-reduce of each (shape, groups)."""
    lines = [
        f"  %r{number} = {shape} all-reduce(%x), channel_id=1, replica_groups={groups}\n"
        for number, (shape, groups) in enumerate(results)
    ]
    start = "HloModule tick, num_partitions=8\n\nENTRY %main (x: f32[4]) -> f32[4] {\n"
    return Program.parse(start + "  %x = f32[4]{0} parameter(0)\n" + "".join(lines) + "}\n")


def test_bytes_are_those_of_the_type_that_was_meant(mesh):
    (found,) = traffic(program(("f32[4,8]{1,0}", NEIGHBOURS)), program(("bf16[32]{0}", NEIGHBOURS)), mesh)
    assert (found.axis, found.dtype, found.nbytes, found.compiled_nbytes) == ("tp", "bf16", 64, 128)


def test_the_compiled_type_counts_where_the_meant_one_is_not_clear(mesh):
    compiled = program(("f32[32]{0}", NEIGHBOURS))
    for written in (program(), program(("bf16[32]{0}", NEIGHBOURS), ("f32[32]{0}", NEIGHBOURS))):
        (found,) = traffic(compiled, written, mesh)
        assert (found.dtype, found.nbytes) == ("f32", 128)


def test_equal_collectives_are_one_line(mesh):
    both = program(("f32[32]{0}", NEIGHBOURS), ("f32[32]{0}", NEIGHBOURS), ("f32[8]{0}", NEIGHBOURS))
    assert [(one.nbytes, one.count) for one in traffic(both, both, mesh)] == [(128, 2), (32, 1)]


def test_a_device_alone_sends_nothing_and_unknown_groups_have_no_axis(mesh):
    both = program(("f32[32]{0}", ALONE), ("f32[32]{0}", CROSSED))
    found = traffic(both, both, mesh)
    assert [one.axis for one in found] == ["", "unknown"]
    assert bytes_by_axis(found) == {"unknown": 128}
