from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medha_jax.config import Buckets
from medha_jax.plan import Chunk, StepPlan
from medha_jax.runtime.buckets import Bucket, PlanLayout, UnknownShapeError, all_buckets, smallest_bucket
from medha_jax.runtime.packing import pack

BUCKETS = Buckets(decode=(1, 4), prefill=(16, 64, 256, 1024), chunks=4)
PAGE, SLOTS = 16, 9


@st.composite
def plans(draw: st.DrawFn) -> StepPlan:
    """Chunks of different slots that fit the largest bucket."""
    singles = draw(st.integers(0, 4))
    longer = draw(st.lists(st.integers(2, 1000), max_size=4).filter(lambda x: sum(x) <= 1024))
    chunks = []
    for slot, length in enumerate([1] * singles + longer):
        start = draw(st.integers(0, 5000))
        decode = length == 1 and draw(st.booleans())
        first, past = -(-start // PAGE), -(-(start + length) // PAGE)
        chunks.append(
            Chunk(
                slot=slot,
                start=start,
                length=length,
                tokens=None if decode else tuple(range(100, 100 + length)),
                last=draw(st.booleans()),
                first_page=first,
                pages=tuple(range(7, 7 + past - first)),
            )
        )
    return StepPlan(tuple(draw(st.permutations(chunks))))


@given(plans())
def test_every_token_stands_once_in_rows_tiles_and_samples(plan: StepPlan) -> None:
    bucket, flat = pack(plan, BUCKETS, PAGE, SLOTS)
    view = {name: np.asarray(part) for name, part in PlanLayout(bucket, PAGE).views(flat).items()}
    rows = {(int(s), int(p)): r for r, (s, p) in enumerate(zip(view["row_slot"], view["row_position"], strict=True))}
    wanted = {(c.slot, p): c for c in plan.chunks for p in range(c.start, c.end)}
    assert {key for key in rows if key[0] < SLOTS} == set(wanted)
    for (slot, position), chunk in wanted.items():
        token = -1 if chunk.tokens is None else chunk.tokens[position - chunk.start]
        assert view["row_token"][rows[slot, position]] == token

    covered = [(int(view["row_slot"][r]), int(view["row_position"][r])) for r in range(view["decodes"])]
    for size, most in bucket.tiles.items():
        used = int(view[f"tile{size}_used"])
        assert used <= most
        for at in range(used):
            slot, row, start, count = (int(view[f"tile{size}_{n}"][at]) for n in ("slot", "row", "start", "count"))
            assert 1 <= count <= size
            assert row >= bucket.decode
            for offset in range(count):
                assert rows[slot, start + offset] == row + offset
                covered.append((slot, start + offset))
    assert sorted(covered) == sorted(wanted)

    def entries(*names: str) -> list[tuple[int, ...]]:
        return list(zip(*(view[name].tolist() for name in names), strict=True))

    kept = {(slot, row) for slot, row, keep in entries("sample_slot", "sample_row", "sample_keep") if keep}
    assert kept == {(c.slot, rows[c.slot, c.end - 1]) for c in plan.chunks if c.last}
    updates = [entry for entry in entries("update_slot", "update_index", "update_page") if entry[0] < SLOTS]
    assert sorted(updates) == sorted((c.slot, c.first_page + i, p) for c in plan.chunks for i, p in enumerate(c.pages))


def test_the_smallest_bucket_is_taken() -> None:
    assert smallest_bucket(BUCKETS, 0, 0, 0) == Bucket(1, 0, 4)
    assert smallest_bucket(BUCKETS, 2, 17, 1) == Bucket(4, 64, 4)
    assert {smallest_bucket(BUCKETS, d, t, 1) for d in range(5) for t in range(1025)} == set(all_buckets(BUCKETS))


@pytest.mark.parametrize(("decodes", "tokens", "chunks"), [(5, 0, 0), (0, 1025, 1), (0, 10, 5)])
def test_a_plan_beyond_every_shape_is_an_error(decodes: int, tokens: int, chunks: int) -> None:
    with pytest.raises(UnknownShapeError, match="beyond the compiled shapes: 4 decodes, 1024 tokens, 4 chunks"):
        smallest_bucket(BUCKETS, decodes, tokens, chunks)
