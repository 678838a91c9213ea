from __future__ import annotations

import pytest

from medha_jax.workload import Isolated, Slos, WorkloadError


def test_a_fixed_objective_goes_before_the_length() -> None:
    assert Slos(ttft_s=2.0).deadline_s(alone_s=100.0) == 2.0
    assert Slos().deadline_s(None) is None
    # max(1.5 x alone, 0.5 s)
    assert [Slos().deadline_s(alone) for alone in (0.01, 1 / 3, 0.4, 100.0)] == pytest.approx([0.5, 0.5, 0.6, 150.0])


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
def test_objectives_are_bounded(bad: float) -> None:
    with pytest.raises(WorkloadError, match="TTFT objective in seconds is"):
        Slos(ttft_s=bad)
    with pytest.raises(WorkloadError, match="TPOT objective in seconds is"):
        Slos(tpot_s=bad)


def test_isolated_prefills_follow_a_line_and_a_square() -> None:
    """Seconds a n + b n² are met everywhere from two measurements."""

    def seconds(tokens: int) -> float:
        return 1e-4 * tokens + 3e-9 * tokens**2

    isolated = Isolated([(32_768, seconds(32_768)), (1024, seconds(1024))])
    for tokens in (1024, 5000, 32_768, 1_000_000):
        assert isolated(tokens) == pytest.approx(seconds(tokens))
    assert isolated(10) == seconds(1024)  # a short prompt takes what the shortest measured one did


def test_isolated_prefills_never_become_cheaper_beyond_what_was_measured() -> None:
    isolated = Isolated([(100, 1.0), (1000, 2.0)])  # the fixed cost of a tick outweighs the tokens
    assert isolated(2000) == 4.0
    assert Isolated([(100, 1.0)])(1000) == 10.0


def test_measurements_must_be_of_different_lengths() -> None:
    for bad in ([], [(5, 1.0), (5, 2.0)]):
        with pytest.raises(WorkloadError, match="each of another length"):
            Isolated(bad)
    with pytest.raises(WorkloadError, match="measured seconds is 0"):
        Isolated([(5, 0.0)])
