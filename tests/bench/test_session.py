import asyncio
import dataclasses
import time

import pytest

from medha_jax.bench.backend import BackendError
from medha_jax.bench.load_generator import LoadSettings
from medha_jax.bench.over_grpc import GrpcBackend
from medha_jax.bench.over_http import OpenAiBackend
from medha_jax.bench.session import Session
from medha_jax.client import Connection
from medha_jax.workload import WorkloadConfig, build

CONFIG = WorkloadConfig(
    source="random", prompt_range=(20, 400), output_range=(4, 4), rate=200.0, num_requests=30, vocabulary=2048, warmup=3
)


class Screen:
    def __init__(self):
        self.shown, self.closed = [], 0

    def show(self, what, tally, seconds):
        self.shown.append((what, tally.sent, seconds))

    def close(self):
        self.closed += 1


def with_session(make, work):
    """Do some work in a session; returns its result and the screen."""

    async def run():
        backend, screen = make(), Screen()
        try:
            session = Session(backend, LoadSettings(), 2048, screen, time.perf_counter)
            return await work(session), screen
        finally:
            await backend.close()

    return asyncio.run(run())


@pytest.fixture
def grpc(simulated):
    return lambda: GrpcBackend(Connection(simulated.address))


def test_repeats_have_the_next_seeds(grpc):
    repeats, _ = with_session(grpc, lambda session: session.repeat(CONFIG, 3))
    for number, repeat in enumerate(repeats):
        workload = build(dataclasses.replace(CONFIG, seed=number))
        assert [record.due for record in repeat.records] == [request.at for request in workload.requests]
        assert {record.status for record in repeat.records} == {"ok"}
    assert repeats[0].records[0].prompt_tokens != repeats[1].records[0].prompt_tokens


def test_what_goes_on_is_shown(grpc):
    async def work(session):
        shown = session._display.shown
        running = asyncio.create_task(session.repeat(dataclasses.replace(CONFIG, rate=20.0, num_requests=500), 1))
        while not running.done() and not (shown and shown[-1][1] > shown[0][1] > 0):
            await asyncio.sleep(0.01)
        session.stop()
        await running

    _, screen = with_session(grpc, work)
    assert len(screen.shown) >= 2 and screen.closed == 1
    assert all(what == "load" and seconds > 0 for what, _, seconds in screen.shown)
    assert screen.shown[-1][1] > screen.shown[0][1] > 0


def test_a_stopped_session_returns_what_it_has(grpc):
    async def work(session):
        running = asyncio.create_task(session.repeat(dataclasses.replace(CONFIG, rate=20.0, num_requests=500), 3))
        while session._running is None or session._running.tally.sent < 3:
            await asyncio.sleep(0.01)
        session.stop()
        return await running, await session.alone(10, 2), session.stopped

    (repeats, alone, stopped), _ = with_session(grpc, work)
    assert len(repeats) == 1 and 3 <= len(repeats[0].records) < 500 and alone is None and stopped


def test_a_warm_up_must_not_fail_altogether(grpc, completions):
    with_session(grpc, lambda session: session.warm_up(build(CONFIG)))
    with pytest.raises(BackendError, match="all 3 warm-up requests failed; the first: HTTP 500"):
        with_session(
            lambda: OpenAiBackend(completions.url("status-500"), model="x"),
            lambda session: session.warm_up(build(CONFIG)),
        )


def test_prompts_alone_give_deadlines_by_length(grpc):
    async def work(session):
        isolated = await session.isolated(build(CONFIG))
        session.deadlines_from(isolated)
        return isolated, await session.repeat(CONFIG, 1)

    (isolated, (repeat,)), _ = with_session(grpc, work)
    assert 0 < isolated(20) < 1
    assert all(record.alone_s == isolated(record.prompt_tokens) for record in repeat.records)
    assert all(record.deadline_s == 0.5 for record in repeat.records if record.alone_s < 0.3)


def test_a_prompt_alone_that_fails_ends_it(grpc):
    with pytest.raises(BackendError, match="a prompt of 300,000 tokens, sent alone, failed: OUT_OF_RANGE"):
        with_session(grpc, lambda session: session.alone(300_000, 1))
