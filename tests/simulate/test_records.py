from __future__ import annotations

from medha_jax.config import SchedulerConfig
from medha_jax.simulate.deployments import DEPLOYMENTS
from medha_jax.simulate.records import records
from medha_jax.simulate.run import default_deadline, simulate
from medha_jax.workload import Arrival

MACHINE = DEPLOYMENTS["a100-16"]


def test_a_record_says_what_a_request_asked_for_and_got() -> None:
    arrivals = [Arrival(0.0, 200_000, 5, long=True), Arrival(1.0, 100, 1), Arrival(1.5, 100, 9)]
    outcome = simulate(MACHINE, SchedulerConfig(), arrivals)
    long, one, nine = records(outcome, tpot_slo_s=0.05)
    assert (long.kind, one.kind) == ("long", "short")
    assert [record.index for record in (long, one, nine)] == [0, 1, 2]
    assert (nine.prompt_tokens, nine.output_tokens, nine.due, nine.sent) == (100, 9, 1.5, 1.5)
    assert sum(tokens for _, tokens in nine.outputs) == 9
    assert nine.outputs[-1][0] == nine.ended == outcome.served[2].finished
    assert one.outputs == ((one.ended, 1),)
    assert one.status == "ok"
    assert one.tpot_slo_s == 0.05
    assert one.alone_s is not None
    assert one.deadline_s == default_deadline(one.alone_s)


def test_what_was_cut_off_is_unfinished() -> None:
    outcome = simulate(MACHINE, SchedulerConfig(), [Arrival(0.0, 500_000, 5, long=True)], until=2.0)
    (record,) = records(outcome)
    assert (record.status, record.outputs, record.ended) == ("unfinished", (), outcome.end)
