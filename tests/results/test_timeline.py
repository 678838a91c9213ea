from __future__ import annotations

from medha_jax.results.timeline import Bar, bars, marks
from tests.results.recorded import recorded


def test_phases_follow_each_other_in_the_order_of_sending() -> None:
    found = bars(recorded())
    assert [(bar.row, bar.phase) for bar in found if bar.kind == "long"] == [(0, "waiting or prefill"), (0, "decode")]
    assert [bar for bar in found if bar.row == 1] == [
        Bar(1, 1.0, 1.1, "short", "waiting"),
        Bar(1, 1.1, 1.5, "short", "prefill"),
        Bar(1, 1.5, 2.1, "short", "decode"),
    ]
    # one token, none, none: no decode
    assert [(bar.row, bar.phase, bar.end) for bar in found if bar.row in (2, 4, 5)] == [
        (2, "waiting or prefill", 2.2),
        (4, "waiting or prefill", 3.2),
        (5, "waiting or prefill", 5.1),
    ]
    assert marks(recorded(), "failed") == [(3.6, 3)]
    assert marks(recorded(), "cancelled") == [(3.2, 4)]
