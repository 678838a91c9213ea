"""Collectives of small programs under `shard_map` on a 2x2x2 mesh."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import PartitionSpec

from medha_jax.inspection.traced import written_collectives
from medha_jax.mesh import build_mesh
from medha_jax.specs.layout import Layout


@pytest.fixture(scope="module")
def mesh():
    return build_mesh(Layout(tp=2, spp=2, kvp=2))


@pytest.fixture
def written(mesh):
    def trace(function, dtype=jnp.float32, **settings):
        whole = PartitionSpec()
        mapped = jax.shard_map(function, mesh=mesh, in_specs=whole, out_specs=whole, **{"check_vma": False, **settings})
        traced = jax.jit(mapped).trace(jax.ShapeDtypeStruct((4, 6), dtype))
        return list(written_collectives(traced.jaxpr.jaxpr))

    return trace


def only(found):
    (one,) = found
    return one


@pytest.mark.parametrize(
    "function, kind, axes, dims",
    [
        (lambda x: lax.psum(x, "tp"), "all-reduce", ("tp",), (4, 6)),
        (lambda x: lax.pmax(x, ("spp", "tp")), "all-reduce", ("spp", "tp"), (4, 6)),
        (lambda x: lax.all_gather(x, "kvp"), "all-gather", ("kvp",), (2, 4, 6)),
        (lambda x: lax.all_gather(x, "spp", axis=1, tiled=True), "all-gather", ("spp",), (4, 12)),
        (lambda x: lax.ppermute(x, "spp", [(0, 1), (1, 0)]), "collective-permute", ("spp",), (4, 6)),
        (lambda x: lax.psum_scatter(x, "tp", tiled=True), "reduce-scatter", ("tp",), (2, 6)),
        (lambda x: lax.all_to_all(x, "tp", 0, 1, tiled=True), "all-to-all", ("tp",), (2, 12)),
    ],
)
def test_kinds_axes_and_results(written, function, kind, axes, dims):
    one = only(written(function))
    assert (one.kind, one.axes, one.dims) == (kind, axes, dims)
    assert (one.count, one.conditional, one.depth) == (1, False, 0)


@pytest.mark.parametrize(
    "dtype, name, nbytes", [("float32", "f32", 96), ("bfloat16", "bf16", 48), ("int32", "s32", 96), ("uint8", "u8", 24)]
)
def test_element_types_have_their_names_in_hlo(written, dtype, name, nbytes):
    one = only(written(lambda x: lax.psum(x, "tp"), jnp.dtype(dtype)))
    assert (one.dtype, one.nbytes, one.elements) == (name, nbytes, 24)


def test_fp8_has_the_name_that_hlo_gives_it(written):
    assert only(written(lambda x: lax.all_gather(x, "tp"), jnp.float8_e4m3fn)).dtype == "f8e4m3fn"


def test_loops_multiply(written):
    def inner(n, x):
        return lax.psum(x, "tp")

    def outer(x, _):
        return lax.fori_loop(2, 5, inner, x), None

    one = only(written(lambda x: lax.scan(outer, x, length=5)[0]))
    assert (one.count, one.conditional, one.depth) == (15, False, 2)


def test_a_loop_of_unknown_length_is_not_guessed(written):
    def body(x):
        return lax.scan(lambda y, _: (lax.psum(y, "tp"), None), x, length=3)[0]

    assert only(written(lambda x: lax.while_loop(lambda y: y[0, 0] > 0, body, x))).count is None


def test_a_branch_is_the_most_and_two_calls_are_two(written):
    inner = jax.jit(lambda x: lax.psum(x, "kvp"))
    found = written(lambda x: lax.cond(x[0, 0] > 0, inner, lambda y: y, inner(inner(x))))
    assert [(one.count, one.conditional) for one in found] == [(1, False), (1, False), (1, True)]


def test_groups_that_divide_an_axis_follow_none(written):
    one = only(written(lambda x: lax.all_gather(x, "tp", axis_index_groups=[[0], [1]])))
    assert one.axes is None


def test_several_arrays_are_several_collectives(written):
    found = written(lambda x: sum(lax.psum((x, x + 1), "tp")))
    assert [one.dims for one in found] == [(4, 6)] * 2


def test_checked_programs_name_their_primitives_otherwise(written):
    found = written(lambda x: lax.psum(x * lax.axis_index("tp"), "tp"), check_vma=True)
    assert [(one.kind, one.axes) for one in found] == [("all-reduce", ("tp",))]


def test_naming_an_axis_sends_nothing(written):
    assert written(lambda x: x * (lax.axis_index("tp") * lax.axis_size("spp"))) == []
