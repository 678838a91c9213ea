"""Which requests can all be on time together."""

from __future__ import annotations

import heapq

import numpy as np


def on_time_together(work: np.ndarray, time: np.ndarray, cost: np.ndarray) -> np.ndarray:
    """Choose requests that are all done in time if they run one after the other, earliest deadline first.

    Moore and Hodgson (1968): take them by deadline, and where one would be late, set aside the one of highest cost so
    far. With the work as the cost as many as possible are kept. It takes O(n log n), and one sum where all can be on
    time.

    Args:
        work: seconds of each, `[requests]`, in order of their deadlines.
        time: seconds to the deadline of each; none is less than its work.
        cost: of keeping each.

    Returns:
        Whether each is kept, `[requests]`.
    """
    kept = np.ones(len(work), bool)
    if not np.any(np.cumsum(work) > time):
        return kept
    heap: list[tuple[float, int]] = []
    busy, works = 0.0, work.tolist()
    for at, (own, until, price) in enumerate(zip(works, time.tolist(), cost.tolist(), strict=True)):
        heapq.heappush(heap, (-price, at))
        busy += own
        while busy > until and heap:
            _, dearest = heapq.heappop(heap)
            busy -= works[dearest]
            kept[dearest] = False
    return kept
