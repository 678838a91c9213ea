"""Written collectives and compiled ones brought together, on the axes of a 2x2x2 mesh."""

from medha_jax.inspection.hlo import ArrayShape, Instruction
from medha_jax.inspection.traced import WrittenCollective
from medha_jax.inspection.traffic import bytes_by_axis, traffic

AXES = {"spp": 2, "kvp": 2, "tp": 2, "one": 1}


def written(axes=("tp",), dims=(4, 8), dtype="f32", count=1, depth=0, kind="all-reduce"):
    return WrittenCollective(kind, axes, dtype, dims, int(dtype[-2:]) // 8, count, False, depth)


def compiled(dims=(4, 8), dtype="f32", kind="all-reduce"):
    return Instruction("r", kind, (ArrayShape(dtype, dims),))


def test_bytes_are_those_of_the_type_that_was_written():
    (found,) = traffic([compiled()], [written(dims=(32,), dtype="bf16")], AXES)
    assert (found.axis, found.dtype, found.nbytes, found.compiled_nbytes) == ("tp", "bf16", 64, 128)
    assert found.shapes == ("f32[4,8]",)


def test_equal_collectives_are_one_line():
    found = traffic(
        [compiled(), compiled(), compiled((8,))], [written(), written(count=5), written(dims=(8,), count=3)], AXES
    )
    assert [(one.nbytes, one.count) for one in found] == [(128, 6), (32, 3)]


def test_lines_stand_in_the_order_of_the_text_where_bodies_of_loops_come_first():
    found = traffic(
        [compiled(), compiled((2,), kind="all-gather"), compiled()],
        [written(("spp",)), written(("tp",), count=9, depth=1), written(("kvp",), (2,), kind="all-gather")],
        AXES,
    )
    assert [(one.axis, one.count) for one in found] == [("tp", 9), ("kvp", 1), ("spp", 1)]


def test_axes_have_the_order_of_the_mesh_and_those_of_one_device_no_name():
    both = [written(("tp", "one", "spp")), written(("one",), (2,))]
    found = traffic([compiled(), compiled((2,))], both, AXES)
    assert [one.axis for one in found] == ["spp+tp", ""]
    assert bytes_by_axis(found) == {"spp+tp": 128}


def test_what_the_compiler_adds_is_shown_and_not_counted():
    found = traffic([compiled(), compiled((3,), "bf16")], [written()], AXES)
    assert [(one.axis, one.dtype, one.nbytes, one.count) for one in found] == [
        ("tp", "f32", 128, 1),
        ("unknown", "bf16", 6, None),
    ]
    assert bytes_by_axis(found) == {"tp": 128}


def test_what_the_compiler_removes_is_shown_and_not_counted():
    (found,) = traffic([], [written(count=7)], AXES)
    assert (found.axis, found.shapes, found.nbytes, found.count) == ("tp", ("f32[4,8]",), 128, None)
    assert bytes_by_axis([found]) == {}


def test_a_sum_over_one_device_may_go():
    assert traffic([], [written(("one",))], AXES) == ()


def test_a_loop_of_unknown_length_has_no_count():
    (found,) = traffic([compiled()], [written(count=None)], AXES)
    assert (found.axis, found.count) == ("tp", None)


def test_groups_that_follow_no_axes_are_unknown():
    (found,) = traffic([compiled()], [written(None)], AXES)
    assert (found.axis, found.count) == ("unknown", 1)
    assert bytes_by_axis([found]) == {"unknown": 128}
