import asyncio
import math

import pytest

from medha_jax.bench.search import highest_rate


def search(knee, start=1.0, precision=1.05, most=20, wanted=0.9):
    """Find the rate of a server whose attainment falls from 1 to 0 about a knee."""
    asked = []

    async def measure(rate):
        asked.append(rate)
        return 1 / (1 + (rate / knee) ** 8)

    return asyncio.run(highest_rate(measure, start, wanted, precision, most)), asked


@pytest.mark.parametrize("knee", [0.01, 0.7, 3.0, 40.0, 900.0])
def test_it_finds_the_border_from_either_side(knee):
    found, asked = search(knee)
    border = knee * (1 / 9) ** (1 / 8)  # where attainment is 0.9
    assert found.best <= border < found.bad <= found.best * 1.05
    assert [tried.rate for tried in found.tried] == asked and len(set(asked)) == len(asked)


def test_it_tries_no_more_than_it_may():
    found, asked = search(1000.0, most=4)
    assert asked == [1.0, 2.0, 4.0, 8.0] and (found.best, found.bad) == (8.0, None)
    found, asked = search(1.0, start=1e6)
    assert found.best is None and len(asked) <= 18 and found.bad == min(asked)


def test_a_measurement_that_was_given_up_ends_it():
    async def measure(rate):
        return None if rate > 3 else 1.0

    found = asyncio.run(highest_rate(measure, 1.0, 0.9, 1.05, 20))
    assert (found.best, found.bad) == (2.0, None) and found.tried[-1].attainment is None
    assert math.isclose(found.tried[-1].rate, 4.0)
