import pytest

from medha_jax.runtime.hlo import CONVERSIONS, COPIES, Program
from medha_jax.runtime.hlo_text import HloError, Shape

HEADER = "HloModule tick, is_scheduled=true, num_partitions=8\n\n"

# a loop of 5 around a loop whose bound is only in its condition: first 2, last 8, step 2, so 3
NESTED = (
    HEADER
    + """
%inner_body (p: (s32[], f32[4,6])) -> (s32[], f32[4,6]) {
  %p = (s32[], f32[4,6]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %two = s32[] constant(2)
  %next = s32[] add(%i, %two)
  %x = f32[4,6]{1,0} get-tuple-element(%p), index=1
  %sum = f32[4,6]{1,0} all-reduce(%x), channel_id=1, replica_groups={{0,1},{2,3},{4,5},{6,7}}, to_apply=%add
  ROOT %t = (s32[], f32[4,6]{1,0}) tuple(%next, %sum)
}

%inner_condition (p: (s32[], f32[4,6])) -> pred[] {
  %p = (s32[], f32[4,6]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %eight = s32[] constant(8)
  ROOT %less = pred[] compare(%i, %eight), direction=LT
}

%outer_body (p: (s32[], f32[4,6])) -> (s32[], f32[4,6]) {
  %p = (s32[], f32[4,6]{1,0}) parameter(0)
  %x = f32[4,6]{1,0} get-tuple-element(%p), index=1
  %start = s32[] constant(2)
  %given = (s32[], f32[4,6]{1,0}) tuple(%start, %x)
  ROOT %while.1 = (s32[], f32[4,6]{1,0}) while(%given), condition=%inner_condition, body=%inner_body
}

%outer_condition (p: (s32[], f32[4,6])) -> pred[] {
  %p = (s32[], f32[4,6]{1,0}) parameter(0)
  ROOT %go = pred[] constant(true)
}

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %s = f32[] add(%a, %b)
}

ENTRY %main (x: f32[4,6]) -> (s32[], f32[4,6]) {
  %x = f32[4,6]{1,0} parameter(0), metadata={op_name="x { not a bracket"}
  %zero = s32[] constant(0)
  %given = (s32[], /*index=1*/f32[4,6]{1,0}) tuple(%zero, %x)
  ROOT %while.2 = (s32[], f32[4,6]{1,0}) while(%given), condition=%outer_condition, body=%outer_body, KNOWN
}
"""
)
NOTED = 'backend_config={"known_induction_variable":{"tuple_index":"0"},"known_trip_count":{"n":"5"}}'


def entry(*lines):
    return HEADER + "ENTRY %main (x: f32[4]) -> f32[4] {\n" + "".join(f"  {line}\n" for line in lines) + "}\n"


def only(text):
    (found,) = Program.parse(text).collectives
    return found


def test_loops_multiply():
    found = only(NESTED.replace("KNOWN", NOTED))
    assert (found.kind, found.count, found.conditional) == ("all-reduce", 15, False)
    assert (found.shapes, found.nbytes) == ((Shape("f32", (4, 6)),), 96)
    assert found.groups == ((0, 1), (2, 3), (4, 5), (6, 7))


def test_a_loop_of_unknown_length_is_not_guessed():
    assert only(NESTED.replace(", KNOWN", "")).count is None


@pytest.mark.parametrize(
    "change",
    [
        ("direction=LT", "direction=NE"),
        ("%next = s32[] add", "%next = s32[] multiply"),
        ("%start = s32[] constant(2)", "%start = s32[] parameter(1)"),
        ("add(%i, %two)", "add(%two, %two)"),
    ],
)
def test_conditions_that_are_no_plain_count_are_unknown(change):
    assert change[0] in NESTED
    assert only(NESTED.replace("KNOWN", NOTED).replace(*change)).count is None


@pytest.mark.parametrize(
    "stated, groups",
    [
        ("[4,2]<=[8]", ((0, 1), (2, 3), (4, 5), (6, 7))),
        ("[2,4]<=[4,2]T(1,0)", ((0, 2, 4, 6), (1, 3, 5, 7))),
        ("[4,2]<=[2,2,2]T(0,2,1)", ((0, 2), (1, 3), (4, 6), (5, 7))),
        ("{}", (tuple(range(8)),)),
        ("{{0,4},{1,5},{2,6},{3,7}}", ((0, 4), (1, 5), (2, 6), (3, 7))),
        # named axes, as jax 0.12 writes them
        ("mesh['spp'=2,'kvp'=2,'tp'=2] {'tp'}, use_global_device_ids=true", ((0, 1), (2, 3), (4, 5), (6, 7))),
        ("mesh['spp'=2,'kvp'=2,'tp'=2] {'kvp'}", ((0, 2), (1, 3), (4, 6), (5, 7))),
        ("mesh['spp'=2,'kvp'=2,'tp'=2] {'spp','tp'}", ((0, 1, 4, 5), (2, 3, 6, 7))),
        ("mesh['spp'=2,'kvp'=2,'tp'=2] {}", tuple((n,) for n in range(8))),
        ("mesh['spp'=2,'kvp'=1,'tp'=4] {'kvp'}", tuple((n,) for n in range(8))),
        ("mesh['a'=8] {'a':(1)2}", ((0, 4), (1, 5), (2, 6), (3, 7))),
        ("mesh['a'=8] {'a':(4)2}", ((0, 1), (2, 3), (4, 5), (6, 7))),
        ("mesh['a'=8] {'a':(1)2,'a':(4)2}", ((0, 1, 4, 5), (2, 3, 6, 7))),
        ("mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}", ((0, 2, 4, 6), (1, 3, 5, 7))),
        ("mesh['a'=2,'b'=4], device_ids=(7,6,5,4,3,2,1,0) {'b'}", ((7, 6, 5, 4), (3, 2, 1, 0))),
        ("mesh[spp=4,tp=2] {tp}", ((0, 1), (2, 3), (4, 5), (6, 7))),
    ],
)
def test_replica_groups(stated, groups):
    line = f"ROOT %g = bf16[8]{{0}} all-gather(%x), channel_id=1, replica_groups={stated}, dimensions={{0}}"
    found = only(entry("%x = bf16[4]{0} parameter(0)", line))
    assert (found.groups, found.pairs, found.nbytes) == (groups, False, 16)


def test_groups_in_another_form_are_refused():
    line = "ROOT %g = f32[8]{0} all-gather(%x), replica_groups=maximal_mesh[device_id=3] {}, dimensions={0}"
    with pytest.raises(HloError, match="replica groups"):
        Program.parse(entry("%x = f32[4]{0} parameter(0)", line)).collectives  # noqa: B018


def test_an_asynchronous_pair_is_one_collective_with_the_result_of_its_end():
    found = Program.parse(
        entry(
            "%x = f32[4]{0:T(8,128)} parameter(0)",
            "%s = (f32[4]{0:T(8,128)}, f32[8]{0:T(8,128)(2,1)}) all-gather-start(%x), replica_groups=[4,2]<=[8]",
            "%d = f32[8]{0} all-gather-done(%s)",
            "%ps = (f32[4], f32[4], u32[], u32[]) collective-permute-start(%x), source_target_pairs={{0,4},{4,0}}",
            "ROOT %pd = f32[4]{0} collective-permute-done(%ps)",
        )
    ).collectives
    assert [(one.kind, one.nbytes, one.count, one.pairs) for one in found] == [
        ("all-gather", 32, 1, False),
        ("collective-permute", 16, 1, True),
    ]
    assert found[1].groups == ((0, 4), (4, 0))


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
    found = only(text)
    assert (found.kind, found.count, found.nbytes) == ("reduce-scatter", 1, 8)


def test_a_tuple_result_is_all_its_parts():
    found = only(
        entry(
            "%x = f32[4]{0} parameter(0)",
            "%r = (f32[4]{0}, bf16[3,5]{1,0}, /*index=2*/pred[]) all-reduce(%x, %x, %x), replica_groups={}",
            "ROOT %y = f32[4]{0} get-tuple-element(%r), index=0",
        )
    )
    assert (found.nbytes, found.elements) == (16 + 30 + 1, 4 + 15 + 1)


def test_a_branch_is_the_most_and_two_calls_are_two():
    inner = (
        "%inner (y: f32[4]) -> f32[4] {\n  %y = f32[4]{0} parameter(0)\n"
        "  ROOT %r = f32[4]{0} all-reduce(%y), replica_groups={}\n}\n\n"
        "%other (y: f32[4]) -> f32[4] {\n  ROOT %y = f32[4]{0} parameter(0)\n}\n\n"
    )
    text = entry(
        "%x = f32[4]{0} parameter(0)",
        "%p = pred[] constant(false)",
        "%a = f32[4]{0} call(%x), to_apply=%inner",
        "%b = f32[4]{0} fusion(%a), kind=kLoop, calls=%inner",
        "ROOT %c = f32[4]{0} conditional(%p, %b, %b), branch_computations={%inner, %other}",
    ).replace("ENTRY", inner + "ENTRY")
    assert [(one.count, one.conditional) for one in Program.parse(text).collectives] == [
        (1, False),
        (1, False),
        (1, True),
    ]


def test_text_before_compilation_has_no_percent_signs():
    text = NESTED.replace("KNOWN", NOTED).replace("%", "").replace("(p: (s32[], f32[4,6])) -> pred[] {", "{")
    assert only(text).count == 15


def test_copies_are_found_wherever_they_stand():
    text = entry(
        "%x = f32[4]{0} parameter(0)",
        "%y = f32[2,2]{1,0} bitcast(%x)",
        "%z = f32[2,2]{0,1} copy(%y)",
        "%v = bf16[2,2]{0,1} convert(%z)",
        "ROOT %w = f32[1]{0} slice(%x), slice={[0:1]}",
    )
    program = Program.parse(text)
    assert [copy.name for copy in program.making(COPIES, 4)] == ["z"]
    assert [conversion.name for conversion in program.making(CONVERSIONS, 4)] == ["v"]
    assert not program.making(COPIES, 8)


def test_text_without_an_entry_is_refused():
    with pytest.raises(HloError, match="no ENTRY"):
        Program.parse("module @jit_tick {\n}\n")
