from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from medha_jax.results import Outputs, RequestRecord
from medha_jax.results.metrics import e2el, gaps, on_time, received, tpot, ttft, waited
from tests.results.recorded import recorded

RECORDS = recorded()
FIRST, SINGLE, LONG, FAILED, CANCELLED, UNFINISHED = RECORDS


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        # TTFT, E2EL, tokens, TPOT = (E2EL - TTFT) / (tokens - 1), gaps
        (FIRST, (0.5, 1.1, 4, 0.6 / 3, [0.2, 0.4])),
        (SINGLE, (0.2, 0.2, 1, None, [])),
        (LONG, (4.0, 4.5, 2, 0.5, [0.5])),
        (FAILED, (0.4, 0.4, 1, None, [])),
        (CANCELLED, (None, None, 0, None, [])),
    ],
)
def test_a_requests_figures_are_those_of_its_timestamps(record: RequestRecord, expected: tuple[object, ...]) -> None:
    found = (ttft(record), e2el(record), received(record), tpot(record))
    assert found == tuple(None if value is None else pytest.approx(value) for value in expected[:4])
    assert gaps(record) == pytest.approx(expected[4])


def test_tokens_count_for_tpot_and_messages_for_itl() -> None:
    burst = replace(FIRST, outputs=((2.0, 10), (3.0, 11)))
    assert tpot(burst) == pytest.approx(1.0 / 20)
    assert gaps(burst).tolist() == [1.0]
    one_message = replace(FIRST, outputs=((2.0, 10),))
    assert tpot(one_message) == 0.0


def test_the_wait_of_a_request_without_output_is_until_its_end() -> None:
    assert [waited(record) for record in RECORDS] == pytest.approx([0.5, 0.2, 4.0, 0.4, 0.1, 1.1])


@pytest.mark.parametrize(
    ("record", "verdict"),
    [
        (FIRST, True),  # its TTFT is its deadline
        (replace(FIRST, deadline_s=0.49), False),
        (replace(FIRST, tpot_slo_s=0.19), False),
        (replace(FIRST, deadline_s=None), True),
        (replace(FIRST, deadline_s=None, tpot_slo_s=None), None),
        (SINGLE, False),
        (replace(SINGLE, deadline_s=None, tpot_slo_s=0.001), True),  # one token has no time per token
        (LONG, False),  # on time, but 0.5 s a token
        (FAILED, False),
        (replace(FAILED, deadline_s=None), None),
        (CANCELLED, None),
        (UNFINISHED, None),  # it could still have been in time
        (replace(UNFINISHED, deadline_s=1.0), False),
        (replace(UNFINISHED, outputs=((4.5, 1),)), None),
    ],
)
def test_on_time_is_within_every_objective(record: RequestRecord, verdict: bool | None) -> None:
    assert on_time(record) is verdict


def test_outputs_are_a_compact_sequence() -> None:
    outputs = Outputs()
    for seconds, tokens in ((1.0, 1), (1.5, 2)):
        outputs.add(seconds, tokens)
    assert outputs == Outputs([1.0, 1.5], [1, 2]) == ((1.0, 1), (1.5, 2)) == outputs
    assert outputs == ((1.0, 1), (1.5, 2))
    assert outputs != Outputs([1.0], [1])
    assert outputs != 5
    assert (len(outputs), outputs[-1], outputs[:1], list(outputs)) == (2, (1.5, 2), [(1.0, 1)], [(1.0, 1), (1.5, 2)])
    assert outputs.tokens == 3
    assert outputs.seconds.dtype == np.float64
    assert outputs.counts.tolist() == [1, 2]
    assert repr(outputs) == "Outputs([1.0, 1.5], [1, 2])"
    with pytest.raises(ValueError, match="1 times and 2 counts of tokens"):
        Outputs([1.0], [1, 2])


@pytest.mark.parametrize(("tokens", "counts"), [(7, [3, 2, 2]), (3, [1, 1, 1]), (2, [1, 1, 0]), (0, [0, 0, 0])])
def test_a_total_is_spread_evenly_over_the_messages(tokens: int, counts: list[int]) -> None:
    outputs = Outputs([1, 2, 3], [1, 1, 1])
    outputs.spread(tokens)
    assert outputs.counts.tolist() == counts
    empty = Outputs()
    empty.spread(5)
    assert len(empty) == 0
