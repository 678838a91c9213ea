from __future__ import annotations

import itertools
from typing import Any

import pytest
from jinja2.utils import Namespace

from medha_jax.chat.work_limit import BASE_WORK, DEEPEST, WORK_PER_UNIT, TooMuchWorkError, WorkLimit


def test_work_grows_with_what_is_given() -> None:
    for weight in (0, 1000):
        limit = WorkLimit(weight)
        limit.spend(BASE_WORK + WORK_PER_UNIT * weight)
        with pytest.raises(TooMuchWorkError, match="too much work"):
            limit.spend(1)


@pytest.mark.parametrize("value", ["a" * 90, [["a" * 9] * 3] * 7, {"a" * 40: ("b" * 40, 10**60)}, {"a": 1}.items()])
def test_a_weight_covers_the_text_of_a_value(value: Any) -> None:
    assert WorkLimit(0).weight(value) >= len(str(value)) / 2


def test_a_list_that_holds_another_twice_weighs_as_written_out() -> None:
    limit, weights = WorkLimit(10**6), []
    value: Any = ["abc"]
    for _ in range(20):
        weights.append(limit.weight(value))
        value = [value, value]
    assert all(later > 2 * earlier for earlier, later in itertools.pairwise(weights))
    for _ in range(20):
        value = [value, value]
    with pytest.raises(TooMuchWorkError, match="a list or mapping that is too large"):
        limit.made(value)


def test_depth_is_bounded_where_a_part_was_seen_before_too() -> None:
    def nested(value: Any, times: int) -> Any:
        for _ in range(times):
            value = [value]
        return value

    limit = WorkLimit(0)
    limit.made(nested("a", DEEPEST))
    with pytest.raises(TooMuchWorkError, match="nests lists and mappings more than 100 times"):
        limit.made(nested("a", DEEPEST + 1))
    half = nested("a", DEEPEST // 2)
    with pytest.raises(TooMuchWorkError, match="nests lists and mappings more than 100 times"):
        limit.made([half, nested(half, DEEPEST // 2)])
    with pytest.raises(TooMuchWorkError, match="nests lists and mappings more than 100 times"):
        limit.made(nested("a", 100_000))


def test_namespaces_and_huge_numbers_are_refused_in_values() -> None:
    with pytest.raises(TooMuchWorkError, match="puts a namespace into a list"):
        WorkLimit(0).made([Namespace()])
    with pytest.raises(TooMuchWorkError, match="a number of more than 4096 bits"):
        WorkLimit(0).made(2**5000)
