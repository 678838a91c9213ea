"""Prefixes are looked up and come back from host memory a few pages a plan, beside everybody else."""

from __future__ import annotations

import dataclasses
import itertools

import pytest

from medha_jax.config import SchedulerConfig
from medha_jax.plan import HostTier
from medha_jax.scheduler.cached_prefixes import LOOKED_UP
from tests.scheduler.device import continuation
from tests.scheduler.serving import Server, shapes_of

PAGE_S = 1e-4
CONFIG = SchedulerConfig(prefix_cache=True, slice_s=4 * PAGE_S)  # four pages a plan
HOST = HostTier(200, PAGE_S)


def served(config: SchedulerConfig = CONFIG, host: HostTier = HOST, pages: int = 100) -> Server:
    """A server whose host holds the prefixes of 300 and 60 tokens that begin with 0 and 1,000."""
    server = Server(config, shapes_of(slots=6), pages=pages, host=host)
    for first, prompt in [(0, 300), (1000, 60), (2000, 390)]:  # the last one takes all pages
        server.ask(prompt, 2, first)
        server.run()
    return server


def copied(server: Server, since: int = 0) -> list[int]:
    """Pages that came back with each plan."""
    return [sum(not copy.to_host for copy in planned.copies) for planned in server.plans[since:]]


def test_what_was_evicted_comes_back_a_few_pages_a_plan() -> None:
    server = served()
    assert server.allocator.host.used >= 74 and sum(copied(server)) == 0
    ticks = len(server.plans)
    number = server.ask(300, 2)
    server.run()
    came = copied(server, ticks)
    assert max(came) == 4 and sum(came) == 74
    assert server.outputs[number] == continuation(range(300), 2)
    assert sum(len(planned.plan.chunks) for planned in server.plans[ticks:]) <= 4, "the rest, and a decode"


def test_a_short_prefix_is_soon_there_beside_a_long_one() -> None:
    server = served()
    ticks = len(server.plans)
    long = server.ask(300, 2)
    server.step()
    short = server.ask(60, 2, 1000)
    server.run()
    assert max(copied(server, ticks)) == 4, "together they have what one has alone"
    assert server.first_token[short] < server.first_token[long]
    assert sum(copied(server, ticks)) == 74 + 14


def test_beside_decodes_less_is_copied_and_they_go_on() -> None:
    server = served(dataclasses.replace(CONFIG, slice_s=30 * PAGE_S))
    decoding = server.ask(5, 40, 5000)
    for _ in range(3):
        server.step()
    ticks, had = len(server.plans), len(server.outputs[decoding])
    server.ask(300, 2)
    for _ in range(10):
        server.step()
    assert len(server.outputs[decoding]) == had + 10
    assert max(copied(server, ticks)) == 3, "a tenth"
    server.run()


def test_what_takes_longer_to_copy_is_computed() -> None:
    server = served(host=HostTier(200, 1.0))
    ticks = len(server.plans)
    number = server.ask(300, 2)
    server.run()
    assert sum(copied(server, ticks)) == 0
    assert server.outputs[number] == continuation(range(300), 2)


@pytest.mark.parametrize("steps", range(1, 22, 4))
def test_who_is_cancelled_while_it_comes_leaves_nothing_behind(steps: int) -> None:
    server = served()
    number = server.ask(300, 2)
    for _ in range(steps):
        server.step()
    server.scheduler.cancel(number)
    again, other = server.ask(300, 2), server.ask(60, 2, 1000)
    server.run()
    assert server.outputs[again] == continuation(range(300), 2)
    assert server.outputs[other] == continuation(range(1000, 1060), 2)
    assert server.allocator.free == (100,)


def test_no_plan_computes_many_digests() -> None:
    pages = 3 * LOOKED_UP
    shapes = dataclasses.replace(shapes_of(), context=5 * pages)
    server = Server(SchedulerConfig(prefix_cache=True, idle_tick_s=1.0), shapes, pages=5 * pages // 4)
    prompt = 4 * pages + 1
    server.ask(prompt, 1)
    server.run()
    state, known = server.scheduler.state(server.ask(prompt, 1)), [0]
    while server.scheduler.busy:
        server.step()
        known.append(len(state.chain) if state.chain is not None else 0)
    assert max(after - before for before, after in itertools.pairwise(known)) == LOOKED_UP
    assert known[-1] == pages
    assert sum(planned.plan.chunks[0].length for planned in server.plans if planned.plan.chunks) == prompt + 1
