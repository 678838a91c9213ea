import asyncio
import subprocess
import sys

import numpy as np
import pytest

from medha_jax.bench.backend import BackendError, RequestFailedError, Wanted
from medha_jax.bench.over_grpc import WHOLE, GrpcBackend, Ids
from medha_jax.client import Client, Connection
from tests.server.processes import idle, wait_until


def send(address, prompt, wanted, heard=lambda tokens: None):
    async def run():
        backend, messages, taken = GrpcBackend(Connection(address)), [], []

        def note(count):
            messages.append(count)
            heard(count)

        try:
            prepared = await backend.prepare(prompt, wanted)
            reply = await backend.send(prepared, lambda: taken.append(len(messages)), note)
            return messages, taken, reply
        finally:
            await backend.close()

    return asyncio.run(run())


def test_tokens_are_counted_by_their_ids(simulated):
    messages, taken, reply = send(simulated.address, np.arange(300, dtype=np.int32), Wanted(12))
    assert sum(messages) == 12 and min(messages) > 0 and taken == [0]
    assert (reply.counted, reply.prompt_tokens, reply.output_tokens) == ("ids", 300, 12)
    assert reply.preemptions == 0 and reply.cached_tokens == 0 and reply.queue_s >= 0


def test_texts_and_long_prompts_are_sent_too(simulated):
    assert send(simulated.address, "import unittest", Wanted(2))[2].prompt_tokens > 1
    assert send(simulated.address, np.ones(WHOLE + 60_000, np.int32), Wanted(2))[2].prompt_tokens == WHOLE + 60_000


def test_a_refusal_has_its_code_and_reason(simulated):
    with pytest.raises(RequestFailedError, match="OUT_OF_RANGE: .*200,?000"):
        send(simulated.address, np.ones(200_000, np.int32), Wanted(2))


def test_objectives_are_told(simulated):
    with pytest.raises(RequestFailedError, match="INVALID_ARGUMENT: .*ttft_ms"):
        send(simulated.address, np.ones(3, np.int32), Wanted(2, ttft_s=-1.0))
    assert send(simulated.address, np.ones(3, np.int32), Wanted(2, ttft_s=1.0, tpot_s=0.1))[0]


def test_leaving_a_stream_ends_it_in_the_server(simulated):
    class EnoughError(Exception):
        pass

    def enough(count):
        raise EnoughError

    with pytest.raises(EnoughError):
        send(simulated.address, np.ones(3, np.int32), Wanted(190_000), enough)  # of its own it would end in 6 minutes
    with Client(simulated.address) as client:
        wait_until(lambda: idle(client), 60)


def test_nobody_there_is_one_line():
    async def run():
        backend = GrpcBackend(Connection("127.0.0.1:9"))
        try:
            await backend.facts()
        finally:
            await backend.close()

    with pytest.raises(BackendError, match="no answer from 127.0.0.1:9: UNAVAILABLE"):
        asyncio.run(run())


def test_ids_are_a_sequence_of_numbers():
    ids = Ids(np.array([5, 6, 7], np.int32))
    assert len(ids) == 3 and ids[1] == 6 and ids[1:] == [6, 7] and list(ids) == [5, 6, 7]
    assert all(type(number) is int for number in ids)


def test_load_needs_no_jax():
    code = "import sys, medha_jax.bench.convoy, medha_jax.bench.over_grpc; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
