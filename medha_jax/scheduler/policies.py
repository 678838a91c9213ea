"""Who runs next: five orders from the literature behind one interface.

A policy maps columns over requests to priorities; least goes first, ties go by arrival, then by number. All times
are seconds of one clock. `remaining` and `total` are predicted seconds of prompt work, alone on the machine.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from medha_jax.config import SchedulerConfig

LEAST_WORK_S = 1e-6  # of a request, so that a time model that knows nothing divides by no zero


@dataclass(frozen=True)
class Columns:
    """What policies see of requests; float64 arrays `[requests]`.

    Args:
        arrival: when each came.
        deadline: by when its first token is due.
        remaining: predicted seconds of prompt work that are left.
        total: predicted seconds of all its prompt work.
    """

    arrival: np.ndarray
    deadline: np.ndarray
    remaining: np.ndarray
    total: np.ndarray


Policy = Callable[[Columns, float], np.ndarray]


def fcfs(requests: Columns, now: float) -> np.ndarray:
    """First come, first served: `arrival`. A long request holds up whoever comes after it (the convoy)."""
    return requests.arrival


def srtf(requests: Columns, now: float) -> np.ndarray:
    """Shortest remaining time first (Schrage 1968): `remaining`. Starves long requests under sustained overload."""
    return requests.remaining


def edf(requests: Columns, now: float) -> np.ndarray:
    """Earliest deadline first (Liu and Layland 1973): `deadline`."""
    return requests.deadline


def lrs(requests: Columns, now: float) -> np.ndarray:
    """Least remaining slack (least laxity, Mok 1983; the Medha paper's LRS): `deadline - now - remaining`.

    Absolute: two seconds of slack count the same for a request of 5 s and one of 100 s.
    """
    return requests.deadline - now - requests.remaining


def lars(requests: Columns, now: float, margin: float = 1.0) -> np.ndarray:
    """Length-aware relative slack (Medha, arXiv 2409.17264v5 §4.1): `(arrival + m D - now - remaining) / total`.

    D is `deadline - arrival`. Everyone's lateness is bounded in proportion to its length. Requests finish just in
    time, so the policy aims at the fraction `m = margin` of D and has the rest in hand.
    """
    due = requests.arrival + margin * (requests.deadline - requests.arrival)
    return (due - now - requests.remaining) / np.maximum(requests.total, LEAST_WORK_S)


def policy_from(config: SchedulerConfig) -> Policy:
    """The policy that a configuration names."""
    orders: dict[str, Policy] = {"fcfs": fcfs, "srtf": srtf, "edf": edf, "lrs": lrs}
    orders["lars"] = partial(lars, margin=config.deadline_margin)
    return orders[config.policy]
