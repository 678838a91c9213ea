import pytest

from medha_jax.inspection.hlo import CONVERSIONS, COPIES, ArrayShape, HloError, collectives, instructions, making

HEADER = "HloModule tick, is_scheduled=true, num_partitions=8\n\n"
# the same sum, as the compilers of two releases of JAX write it
JAX_0_10 = (
    "%sum = f32[20,64]{1,0} all-reduce(%x), channel_id=1, replica_groups={{0,1},{2,3},{4,5},{6,7}}, "
    'use_global_device_ids=true, to_apply=%add, metadata={op_name="jit(tick)/shard_map/psum" stack_frame_id=91}'
)
JAX_0_12 = (
    "%sum = f32[20,64]{1,0} all-reduce(%x), channel_id=1, replica_groups=mesh['spp'=2,'kvp'=2,'tp'=2] {'tp'}, "
    'use_global_device_ids=true, to_apply=%add, metadata={op_name="jit(tick)/shard_map/psum" stack_frame_id=91}'
)
OTHER_GROUPS = (
    "%sum = f32[20,64]{1,0} all-reduce(%x), replica_groups=[2,4]<=[4,2]T(1,0), to_apply=%add",
    "%sum = f32[20,64]{1,0} all-reduce(%x), replica_groups=mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b':(2)2}",
    "%sum = f32[20,64] all-reduce(x), replica_groups={}",
)


def entry(*lines):
    return HEADER + "ENTRY %main (x: f32[4]) -> f32[4] {\n" + "".join(f"  {line}\n" for line in lines) + "}\n"


def found(*lines):
    return [(one.opcode, one.nbytes) for one in collectives(instructions(entry(*lines)))]


@pytest.mark.parametrize("line", [JAX_0_10, JAX_0_12, *OTHER_GROUPS])
def test_a_collective_is_read_however_its_groups_are_written(line):
    (one,) = collectives(instructions(entry("%x = f32[20,64]{1,0} parameter(0)", line)))
    assert (one.name, one.opcode, one.shapes) == ("sum", "all-reduce", (ArrayShape("f32", (20, 64)),))
    assert (one.elements, one.nbytes) == (1280, 5120)


def test_an_asynchronous_pair_is_one_collective_with_the_result_of_its_end():
    assert found(
        "%x = f32[4]{0:T(8,128)} parameter(0)",
        "%s = (f32[4]{0:T(8,128)}, f32[8]{0:T(8,128)(2,1)}) all-gather-start(%x), replica_groups=[4,2]<=[8]",
        "%d = f32[8]{0} all-gather-done(%s)",
        "%ps = (f32[4], f32[4], u32[], u32[]) collective-permute-start(%x), source_target_pairs={{0,4},{4,0}}",
        "ROOT %pd = f32[4]{0} collective-permute-done(%ps)",
    ) == [("all-gather", 32), ("collective-permute", 16)]


def test_a_generic_asynchronous_call_is_counted_once():
    text = entry(
        "%x = f32[4]{0} parameter(0)",
        "%s = ((f32[4]{0}), f32[2]{0}) async-start(%x), calls=%scatter",
        "%u = ((f32[4]{0}), f32[2]{0}) async-update(%s), calls=%scatter",
        "ROOT %d = f32[2]{0} async-done(%u), calls=%scatter",
    ).replace(
        "ENTRY",
        "%scatter (y: f32[4]) -> f32[2] {\n  %y = f32[4]{0} parameter(0)\n"
        "  ROOT %r = f32[2]{0} reduce-scatter(%y), replica_groups=[4,2]<=[8], dimensions={0}\n}\n\nENTRY",
    )
    assert [(one.opcode, one.nbytes) for one in collectives(instructions(text))] == [("reduce-scatter", 8)]


def test_a_tuple_result_is_all_its_parts():
    (one,) = collectives(
        instructions(
            entry(
                '%x = f32[4]{0} parameter(0), metadata={op_name="x { not a bracket"}',
                "%r = (f32[4]{0}, bf16[3,5]{1,0}, /*index=2*/pred[]) all-reduce(%x, %x, %x), replica_groups={}",
                "ROOT %y = f32[4]{0} get-tuple-element(%r), index=0",
            )
        )
    )
    assert (one.nbytes, one.elements) == (16 + 30 + 1, 4 + 15 + 1)


def test_copies_are_found_wherever_they_stand():
    text = entry(
        "%x = f32[4]{0} parameter(0)",
        "%y = f32[2,2]{1,0} bitcast(%x)",
        "%z = f32[2,2]{0,1} copy(%y)",
        "%v = bf16[2,2]{0,1} convert(%z)",
        "ROOT %w = f32[1]{0} slice(%x), slice={[0:1]}",
    )
    program = instructions(text)
    assert [copy.name for copy in making(program, COPIES, 4)] == ["z"]
    assert [conversion.name for conversion in making(program, CONVERSIONS, 4)] == ["v"]
    assert not making(program, COPIES, 8)


def test_text_before_compilation_has_no_percent_signs():
    text = entry("%z = f32[2,2]{0,1} copy(%x)").replace("%", "")
    assert [copy.name for copy in making(instructions(text), COPIES, 4)] == ["z"]


def test_text_without_an_entry_is_refused():
    with pytest.raises(HloError, match="no ENTRY"):
        instructions("module @jit_tick {\n}\n")


def test_a_line_in_another_form_is_refused():
    with pytest.raises(HloError, match="not an instruction: '%y <- f32"):
        instructions(entry("%y <- f32[4] copy(%x), kind = new"))


def test_an_unknown_element_type_is_refused():
    with pytest.raises(HloError, match="'q4' of the program's text is not known"):
        ArrayShape("q4", (2,)).nbytes  # noqa: B018
