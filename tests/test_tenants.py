from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from medha_jax.tenants import TenantCounts

changes = st.lists(st.tuples(st.sampled_from(["", "a", "b"]), st.integers(-3, 3)) | st.none(), max_size=30)


@given(changes)
def test_counts_are_sums_and_zeros_are_not_kept(made: list[tuple[str, int] | None]) -> None:
    counts, sums = TenantCounts(), Counter[str]()
    for change in made:
        if change is None:
            counts.clear()
            sums.clear()
        else:
            counts.add(*change)
            sums[change[0]] += change[1]
        assert counts.total == sums.total()
        assert all(counts[tenant] == sums[tenant] for tenant in ("", "a", "b"))
        assert counts.copied() == {tenant: count for tenant, count in sums.items() if count}
