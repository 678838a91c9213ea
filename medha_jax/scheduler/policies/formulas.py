"""Policies from the literature as formulas, least priority first; and the policy that a configuration names."""

from __future__ import annotations

from functools import partial

import numpy as np

from medha_jax.config import SchedulerConfig
from medha_jax.scheduler.policies.base import LEAST_WORK_S, Columns, Policy, PriorityRule, Stateless
from medha_jax.scheduler.policies.red import Relegation


def fcfs(requests: Columns, now: float) -> np.ndarray:
    """First come, first served: `arrival`. A long request holds up the requests after it (the convoy)."""
    return requests.arrival


def srtf(requests: Columns, now: float) -> np.ndarray:
    """Shortest remaining time first (Schrage 1968): `remaining`. Starves long requests under sustained overload."""
    return requests.remaining


def edf(requests: Columns, now: float) -> np.ndarray:
    """Earliest deadline first (Liu and Layland 1973): `deadline`."""
    return requests.deadline


def lrs(requests: Columns, now: float) -> np.ndarray:
    """Least remaining slack (least laxity, Mok 1983; the Medha paper's LRS): `deadline - now - remaining`.

    Slack is absolute: two seconds count the same for a request of 5 s and one of 100 s.
    """
    slack: np.ndarray = requests.deadline - now - requests.remaining
    return slack


def lars(requests: Columns, now: float, margin: float = 1.0) -> np.ndarray:
    """Length-aware relative slack (Medha, arXiv 2409.17264v5 §4.1): `(arrival + m D - now - remaining) / total`.

    D is `deadline - arrival`. The lateness of every request is bounded in proportion to its length. Requests finish
    just in time, so the policy aims at the fraction `m = margin` of D and keeps the rest in reserve.
    """
    due = requests.arrival + margin * (requests.deadline - requests.arrival)
    slack: np.ndarray = (due - now - requests.remaining) / np.maximum(requests.total, LEAST_WORK_S)
    return slack


RULES: dict[str, PriorityRule] = {"fcfs": fcfs, "srtf": srtf, "edf": edf, "lrs": lrs}


def policy_from(config: SchedulerConfig, pool_tokens: int) -> Policy:
    """The policy that a configuration names; `pool_tokens` are the KV tokens that all groups hold together."""
    if config.policy == "red":
        most = config.relegated_tokens
        return Relegation(config.relegated_share, pool_tokens / 2 if most is None else most, config.long_tokens)
    if config.policy == "lars":
        return Stateless(partial(lars, margin=config.deadline_margin))
    return Stateless(RULES[config.policy])
