"""Overload is refused, and the accepted requests end well; how fast is for `python -m benchmarks.overload`."""

import asyncio

from benchmarks.overload import overloaded, unloaded
from tests.server.processes import SIMULATED, ServerProcess


def test_overload_is_refused_with_a_time_to_come_again():
    with ServerProcess(*SIMULATED, "--tick-ms", 5, "--slots", 2, "--max-queue", 2) as server:
        goodput, answers = asyncio.run(unloaded(server.address, 2, 0.5))
        assert goodput > 0 and not answers.refusals and not answers.other
        goodput, answers = asyncio.run(overloaded(server.address, rate=100.0, seconds=1.0))
    assert goodput > 0 and not answers.other
    assert len(answers.refusals) == answers.with_retry > 50
