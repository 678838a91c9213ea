"""Priorities worked out by hand; the least goes first."""

from __future__ import annotations

import numpy as np
import pytest

from medha_jax.config import POLICIES, ConfigError, SchedulerConfig
from medha_jax.scheduler.policies.base import Columns
from medha_jax.scheduler.policies.formulas import edf, fcfs, lars, lrs, policy_from, srtf

# the paper's three requests and a late one: a long prompt of 10 s due in 16 s, two short ones of 0.5 s due in 1 s that
# come at 5 s, and a medium one of 2 s (half done) that came at 2 s and was due at 5 s
REQUESTS = Columns(
    arrival=np.array([0.0, 5.0, 5.0, 2.0]),
    deadline=np.array([16.0, 6.0, 6.0, 5.0]),
    remaining=np.array([5.0, 0.5, 0.25, 1.0]),
    total=np.array([10.0, 0.5, 0.5, 2.0]),
    tokens=np.array([100e3, 5e3, 5e3, 20e3]),
    number=np.arange(4.0),
    admitted=np.array([True, False, True, True]),
)


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (fcfs, [0, 5, 5, 2]),
        (srtf, [5, 0.5, 0.25, 1]),
        (edf, [16, 6, 6, 5]),
        # 16 - 5 - 5, 6 - 5 - 0.5, 6 - 5 - 0.25, 5 - 5 - 1
        (lrs, [6, 0.5, 0.75, -1]),
        # the same over 10, 0.5, 0.5 and 2
        (lars, [0.6, 1.0, 1.5, -0.5]),
    ],
)
def test_hand_worked_priorities(policy, expected: list[float]) -> None:
    np.testing.assert_allclose(policy(REQUESTS, 5.0), expected, rtol=1e-12)


def test_lars_aims_at_a_fraction_of_the_deadline() -> None:
    # half of the deadlines: due at 8, 5.5, 5.5 and 3.5 s
    expected = [(8 - 5 - 5) / 10, (5.5 - 5 - 0.5) / 0.5, (5.5 - 5 - 0.25) / 0.5, (3.5 - 5 - 1) / 2]
    np.testing.assert_allclose(lars(REQUESTS, 5.0, margin=0.5), expected, rtol=1e-12)
    chosen = policy_from(SchedulerConfig(policy="lars", deadline_margin=0.5), 10**6)
    np.testing.assert_array_equal(chosen.order(REQUESTS, 5.0), lars(REQUESTS, 5.0, margin=0.5))
    np.testing.assert_array_equal(chosen.urgency(REQUESTS, 5.0), lars(REQUESTS, 5.0, margin=0.5))


def test_slack_falls_in_proportion_to_length_only_under_lars() -> None:
    """A second of waiting costs the long request a tenth of its relative slack and the short one two whole units."""
    fall = lars(REQUESTS, 5.0) - lars(REQUESTS, 6.0)
    np.testing.assert_allclose(fall, [0.1, 2, 2, 0.5], rtol=1e-12)
    np.testing.assert_allclose(lrs(REQUESTS, 5.0) - lrs(REQUESTS, 6.0), np.ones(4), rtol=1e-12)


def test_a_model_without_times_gives_finite_priorities() -> None:
    none, two = np.zeros(2), np.array([1.0, 2.0])
    nothing = Columns(none, two, none, none, two, two, np.zeros(2, bool))
    for name in POLICIES:
        assert np.isfinite(policy_from(SchedulerConfig(policy=name), 100).order(nothing, 0.5)).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"policy": "sjf"}, "policy is 'sjf'; allowed are fcfs, srtf, edf, lrs, lars, red"),
        ({"deadline_margin": 0}, r"deadline_margin is 0; allowed is \(0, 1\]"),
        ({"relegated_share": 1}, "relegated_share is 1; it must be above 0 and below 1"),
        ({"relegated_tokens": 0}, "relegated_tokens is 0; it must be at least 1"),
        ({"rho_max": 1}, r"rho_max is 1; allowed is \[0, 1\)"),
        ({"ageing_ticks": 0}, "ageing_ticks is 0; it must be at least 1"),
        ({"tpot_target_s": 0}, "tpot_target_s is 0; it must be above 0"),
        ({"bypass_s": -1}, "bypass_s is -1; it must be at least 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SchedulerConfig(**settings)
