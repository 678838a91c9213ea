"""Rapid reset on a simulated mesh; 100,000 calls are sent by hand, with `python -m benchmarks.rapid_reset`."""

import pytest

from benchmarks.fuzz import held
from benchmarks.rapid_reset import Attack, beside
from medha_jax.client import Client, Connection
from medha_jax.client.connection import SERVICE
from tests.server.processes import SIMULATED, ServerProcess, idle, wait_until

TOKEN = "a-secret-of-some-length"
CALLS, SECONDS = 20_000, 3.0
CHECK = "/grpc.health.v1.Health/Check"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    token = tmp_path_factory.mktemp("reset") / "token"
    token.write_text(TOKEN)
    with ServerProcess(*SIMULATED, "--tick-ms", 5, "--auth-token-file", token) as server:
        yield server


@pytest.mark.parametrize("method, token", [(SERVICE + "Generate", TOKEN), (SERVICE + "Generate", None), (CHECK, None)])
def test_connections_that_reset_all_their_calls_are_closed_and_others_go_on(guarded, method, token):
    was = held(guarded.process.pid)
    got = beside(guarded.address, Attack(CALLS, method=method, token=token), SECONDS, TOKEN)
    assert got.done.closed == got.done.connections == 4
    assert got.during and not got.failed and "Traceback" not in guarded.errors
    with Client(Connection(guarded.address, token=TOKEN)) as client:
        wait_until(lambda: idle(client), 30)
    memory, files, threads = was
    wait_until(lambda: held(guarded.process.pid)[1] <= files + 4, 30)
    now = held(guarded.process.pid)
    assert now[0] < memory + 128 and now[2] <= threads + 8
