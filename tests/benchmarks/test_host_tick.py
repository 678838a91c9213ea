from __future__ import annotations

import asyncio

from benchmarks.host_tick import measure, steps


def test_every_step_of_ticks_with_decodes_and_a_chunk_is_measured() -> None:
    found = asyncio.run(measure(decodes=3, chunk=512, ticks=2))
    assert set(found) == set(steps()) and min(found.values()) > 0
