from __future__ import annotations

from medha_jax.config import SchedulerConfig
from medha_jax.simulate.deployments import DEPLOYMENTS
from medha_jax.simulate.simulation import simulate
from tests.simulate.simulated import request

MACHINE = DEPLOYMENTS["a100-16"]


def test_a_record_says_what_a_request_asked_for_and_got() -> None:
    requests = [request(0.0, 200_000, 5, "long"), request(1.0, 100, 1), request(1.5, 100, 9)]
    long, one, nine = simulate(MACHINE, SchedulerConfig(), requests).records
    assert (long.kind, one.kind) == ("long", "short")
    assert [record.index for record in (long, one, nine)] == [0, 1, 2]
    assert (nine.prompt_tokens, nine.output_tokens, nine.due, nine.sent) == (100, 9, 1.5, 1.5)
    assert sum(tokens for _, tokens in nine.outputs) == 9
    assert nine.outputs[-1][0] == nine.ended
    assert one.outputs == ((one.ended, 1),)
    assert one.status == "ok"
    assert one.alone_s is not None
    assert one.deadline_s == max(1.5 * one.alone_s, 0.5)


def test_what_was_cut_off_is_unfinished() -> None:
    outcome = simulate(MACHINE, SchedulerConfig(), [request(0.0, 500_000, 5, "long")], until=2.0)
    (record,) = outcome.records
    assert (record.status, record.outputs, record.ended) == ("unfinished", (), outcome.end)
