from __future__ import annotations

from research.shares import shared


def test_more_time_for_prompts_serves_more_where_decodes_miss_their_target() -> None:
    smallest, most = (shared(32, 128, 64, 20, share) for share in (1.0, 8.0))
    assert most.rate > smallest.rate
    assert most.tpot > 0.02 < smallest.tpot, "the target is missed in both"


def test_where_the_target_is_kept_the_share_changes_nothing() -> None:
    assert shared(8, 128, 16, 50, 1.0) == shared(8, 128, 16, 50, 8.0)
