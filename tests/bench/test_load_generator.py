"""The load generator against backends in memory: what it sends, when, and what it notes."""

import asyncio
import dataclasses
import time

import numpy as np
import pytest

from medha_jax.bench.backend import Reply, RequestFailedError
from medha_jax.bench.load_generator import AHEAD, LoadGenerator, LoadSettings, Tally
from medha_jax.bench.over_grpc import GrpcBackend
from medha_jax.client import Client, Connection
from medha_jax.workload import Isolated, Slos, WorkloadConfig, build
from tests.server.processes import idle, wait_until

CONFIG = WorkloadConfig(
    source="random", prompt_range=(1, 50), output_range=(2, 9), rate=400.0, num_requests=40, vocabulary=100, seed=3
)


class Memory:
    """A backend that answers at once, and keeps what it was asked."""

    name = "memory"

    def __init__(self, reply=None, tokens=(1,), pause=0.0):
        self.reply, self.tokens, self.pause = reply or Reply("ids", prompt_tokens=7), tokens, pause
        self.prompts, self.wanted, self.ended = [], [], []
        self.at_once = self.most_at_once = self.prepared = 0

    async def prepare(self, prompt, wanted):
        self.prepared += 1
        self.wanted.append(wanted)
        return prompt

    async def send(self, prepared, taken, heard):
        self.prompts.append(prepared)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            taken()
            for tokens in self.tokens:
                if self.pause:
                    await asyncio.sleep(self.pause)
                heard(tokens)
            return self.reply
        finally:
            self.at_once -= 1
            self.ended.append(len(self.prompts))


def run(backend, config=CONFIG, settings=None, stop_when=None):
    workload = build(config)

    async def everything():
        generator = LoadGenerator(workload, workload.requests, backend, settings or LoadSettings(), time.perf_counter)
        running = asyncio.create_task(generator.run())
        while stop_when is not None and not stop_when(generator.tally):
            await asyncio.sleep(0.005)
        if stop_when is not None:
            generator.stop()
        return await running, generator.tally

    return asyncio.run(everything())


def test_two_runs_of_one_seed_send_the_same_requests_at_the_same_due_times():
    one, two, other = Memory(), Memory(), Memory()
    (first, _), (second, _) = run(one), run(two)
    third, _ = run(other, dataclasses.replace(CONFIG, seed=4))

    def sent(backend, records):
        asked = [(record.index, record.due, record.prompt_tokens, record.output_tokens) for record in records]
        return asked, [prompt.tolist() for prompt in backend.prompts], backend.wanted

    assert sent(one, first) == sent(two, second) != sent(other, third)
    due = [request.at for request in build(CONFIG).requests]
    assert [record.due for record in first] == due and len(due) == 40


def test_nothing_is_sent_before_it_is_due_and_everything_is_noted():
    records, tally = run(Memory(tokens=(2, 3)))
    assert all(record.sent >= record.due for record in records)
    assert [record.index for record in records] == list(range(40))
    assert all(record.status == "ok" and record.outputs.tokens == 5 and record.error is None for record in records)
    assert all(record.sent <= record.outputs[0][0] <= record.ended for record in records)
    assert (tally.sent, tally.running, tally.tokens, tally.ended["ok"]) == (40, 0, 200, 40) and tally.ttft_s > 0


def test_the_schedule_does_not_wait_for_answers():
    class Patient(Memory):
        async def send(self, prepared, taken, heard):
            self.prompts.append(prepared)
            while len(self.prompts) < 40:  # for ever, if a request waited for another one's answer
                await asyncio.sleep(0.005)
            heard(1)
            return self.reply

    records, _ = run(Patient(), settings=LoadSettings(timeout_s=60))
    assert {record.status for record in records} == {"ok"}


def test_with_a_limit_requests_wait_in_the_client_and_are_due_when_they_have_a_place():
    backend = Memory(pause=0.01)
    records, _ = run(backend, settings=LoadSettings(max_concurrency=2))
    assert backend.most_at_once == 2
    planned = [request.at for request in build(CONFIG).requests]
    held_back = [record.due - at for record, at in zip(records, planned, strict=True)]
    assert min(held_back) >= 0 and max(held_back) > 0.05
    assert all(record.sent >= record.due for record in records)


def test_only_a_few_requests_are_prepared_before_they_are_sent():
    backend = Memory()
    config = dataclasses.replace(CONFIG, rate=50.0, num_requests=2 * AHEAD)
    run(backend, config, stop_when=lambda tally: tally.sent > 5)
    assert 5 < backend.prepared < AHEAD
    backend = Memory(pause=0.2)
    at_once = dataclasses.replace(config, rate=float("inf"))
    _, tally = run(backend, at_once, LoadSettings(max_concurrency=1), lambda tally: tally.ended["ok"] > 1)
    assert backend.prepared <= AHEAD + tally.sent < 2 * AHEAD


@pytest.mark.parametrize(
    "error, said",
    [
        (RequestFailedError("HTTP 500: no"), "HTTP 500: no"),
        (ValueError("two\nlines"), "ValueError: two lines"),
        (OSError("gone"), "OSError: gone"),
    ],
)
def test_whatever_fails_is_counted_with_its_reason(error, said):
    class Failing(Memory):
        async def send(self, prepared, taken, heard):
            if len(self.prompts) % 2:
                heard(1)
                self.prompts.append(prepared)
                raise error
            return await super().send(prepared, taken, heard)

    records, tally = run(Failing())
    failed = [record for record in records if record.status == "failed"]
    assert len(failed) == 20 == tally.ended["failed"] and {record.error for record in failed} == {said}
    assert len(records) == 40 and all(record.outputs.tokens == 1 for record in failed) and tally.error == said


def test_what_cannot_be_prepared_has_failed():
    class Choosy(Memory):
        async def prepare(self, prompt, wanted):
            raise TypeError("no such prompt")

    records, _ = run(Choosy())
    assert {record.error for record in records} == {"cannot be sent: TypeError: no such prompt"}


def test_a_stream_without_tokens_and_one_without_end_have_failed():
    records, _ = run(Memory(tokens=(), reply=Reply("usage", output_tokens=3)))
    assert {record.error for record in records} == {"the stream ended well and without a token; the server counts 3"}
    records, _ = run(Memory(pause=30.0), settings=LoadSettings(timeout_s=0.05))
    assert {(record.status, record.error) for record in records} == {("failed", "no end within 0.05 s")}


def test_the_usage_is_spread_over_the_messages():
    records, _ = run(Memory(tokens=(1, 1, 1), reply=Reply("usage", output_tokens=7)))
    assert [tokens for _, tokens in records[0].outputs] == [3, 2, 2] and records[0].counted == "usage"


def test_cancelled_requests_are_given_up_after_as_many_tokens_as_the_workload_says():
    config = dataclasses.replace(CONFIG, cancel_rate=0.5, num_requests=100)
    backend = Memory(tokens=(1,) * 9)
    records, tally = run(backend, config)
    asked = {request.index: request.cancel_after for request in build(config).requests}
    cancelled = {record.index: record.outputs.tokens for record in records if record.status == "cancelled"}
    assert cancelled == {index: after for index, after in asked.items() if after is not None}
    assert 30 < len(cancelled) < 70 and 0 in cancelled.values() and backend.at_once == 0
    assert tally.ended["cancelled"] + tally.ended["ok"] == 100


def test_a_server_that_does_not_take_a_request_cannot_hold_its_cancellation_up():
    class Silent(Memory):
        async def send(self, prepared, taken, heard):
            await asyncio.sleep(30)

    config = dataclasses.replace(CONFIG, cancel_rate=1.0, output_range=(1, 1))
    records, _ = run(Silent(), config)
    assert {record.status for record in records} == {"cancelled"}


def test_stopping_keeps_what_was_measured():
    config = dataclasses.replace(CONFIG, rate=20.0, num_requests=200)
    records, tally = run(Memory(pause=0.2, tokens=(1, 1)), config, stop_when=lambda tally: tally.ended["ok"] > 3)
    statuses = [record.status for record in records]
    assert {"ok", "unfinished"} == set(statuses) and len(records) == tally.sent < 200
    assert tally.ended["unfinished"] == statuses.count("unfinished")
    assert all(record.ended > record.sent for record in records)


def test_a_defect_of_this_program_is_not_taken_for_a_failed_request(monkeypatch):
    def broken(self, request):
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr(LoadGenerator, "_prompt", broken)
    with pytest.raises(ZeroDivisionError):
        run(Memory())


def test_deadlines_are_noted_and_told():
    isolated = Isolated([(1, 1.0), (100, 2.0)])
    settings = LoadSettings(slos=Slos(tpot_s=0.1), alone=isolated)
    backend = Memory()
    records, _ = run(backend, settings=settings)
    for record in records:
        assert record.alone_s == isolated(record.prompt_tokens) and record.tpot_slo_s == 0.1
        assert record.deadline_s == max(1.5 * record.alone_s, 0.5)
    assert sorted(wanted.ttft_s for wanted in backend.wanted) == sorted(record.deadline_s for record in records)
    backend = Memory()
    records, _ = run(backend, settings=dataclasses.replace(settings, tell_slos=False))
    assert {(wanted.ttft_s, wanted.tpot_s) for wanted in backend.wanted} == {(None, None)}
    assert all(record.deadline_s is not None for record in records)


def test_against_a_server_lateness_is_that_of_the_client_and_cancelled_requests_leave_nothing(simulated):
    async def send():
        workload = build(dataclasses.replace(CONFIG, cancel_rate=0.3, output_range=(5, 40), vocabulary=2048))
        backend = GrpcBackend(Connection(simulated.address))
        try:
            generator = LoadGenerator(workload, workload.requests, backend, LoadSettings(), time.perf_counter)
            return workload, await generator.run()
        finally:
            await backend.close()

    workload, records = asyncio.run(send())
    assert len(records) == 40 and [record.error for record in records if record.status == "failed"] == []
    assert {record.status for record in records} <= {"ok", "cancelled"}
    wanted = {request.index: request.output_tokens for request in workload.requests}
    assert all(r.outputs.tokens == wanted[r.index] for r in records if r.status == "ok")
    assert any(record.status == "cancelled" for record in records)
    assert all(record.sent >= record.due and record.counted == "ids" for record in records)
    with Client(simulated.address) as client:
        wait_until(lambda: idle(client))


def test_the_median_follows_the_latest():
    tally = Tally(1)
    assert tally.ttft_s is None
    for seconds in np.linspace(0, 10, 5000):
        tally.first_token(seconds)
    assert 8.9 < tally.ttft_s < 9.1
