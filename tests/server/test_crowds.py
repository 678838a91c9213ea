"""Nobody shuts others out: crowds of calls that send nothing, watch, or have no token.

The attacks have the numbers of the default limits. Honest callers have other connections and a bound that a busy
machine keeps; on an idle one they are answered within some milliseconds.
"""

import asyncio
import time
from collections import Counter
from contextlib import ExitStack

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from medha_jax.client import Client, Connection, Finished
from medha_jax.client.connection import SERVICE
from medha_jax.server.settings import MOST_STREAMS, Limits
from tests.server.processes import SIMULATED, ServerProcess, idle, wait_until

TOKEN = "a-secret-of-some-length"
AUTHORIZED = (("authorization", f"Bearer {TOKEN}"),)
CROWD = 2304  # calls
PART_SECONDS = 4.0
SOON = 3.0  # seconds for an honest answer; nobody waits for a crowd's calls to end
METHODS = [SERVICE + name for name in ("Generate", "GenerateStream", "Tokenize", "GetModelInfo", "GetLoad", "Abort")]
METHODS.append("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")
HEALTH = "/grpc.health.v1.Health/"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    """A server with a token and the default limits, except for --part-seconds; a connection may have many calls."""
    token = tmp_path_factory.mktemp("crowds") / "token"
    token.write_text(TOKEN)
    options = ["--auth-token-file", token, "--part-seconds", PART_SECONDS, "--connection-streams", 2 * CROWD]
    with ServerProcess(*SIMULATED, *options, "--max-streams", MOST_STREAMS) as server:
        yield server


def honest(address):
    """Health and a whole request, on connections of their own; returns the seconds of each."""
    times = []
    with grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        began = time.monotonic()
        status = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10).status
        assert status == health_pb2.HealthCheckResponse.SERVING
        times.append(time.monotonic() - began)
    with Client(Connection(address, token=TOKEN)) as client:
        began = time.monotonic()
        *_, last = client.generate([5, 6, 7], max_tokens=2, timeout=10)
        assert isinstance(last, Finished)
        times.append(time.monotonic() - began)
    return times


def crowd(address, calls_of, ends=None):
    """Make a crowd on one channel, ask beside it, and return the codes of the crowd's calls that have ended."""

    async def attack():
        async with grpc.aio.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            calls = calls_of(channel)
            await asyncio.sleep(1)  # they have reached the server
            times = await asyncio.to_thread(honest, address)
            assert max(times) < SOON, times
            if ends is not None:
                async with asyncio.timeout(ends):
                    codes = await asyncio.gather(*(call.code() for call in calls))
            else:
                codes = [await call.code() for call in calls if call.done()]
            for call in calls:
                call.cancel()
            return codes

    return asyncio.run(attack())


def test_calls_that_send_nothing_end_and_shut_nobody_out(guarded):
    def calls_of(channel):
        crowd = [channel.stream_stream(METHODS[n % len(METHODS)]) for n in range(CROWD)]
        return [call(metadata=AUTHORIZED) for call in crowd]

    codes = crowd(guarded.address, calls_of, ends=5 * PART_SECONDS)
    # all turns were taken, so the honest request took the place of the call that had been silent for longest
    assert Counter(codes) == {grpc.StatusCode.DEADLINE_EXCEEDED: CROWD - 1, grpc.StatusCode.RESOURCE_EXHAUSTED: 1}
    with Client(Connection(guarded.address, token=TOKEN)) as client:
        wait_until(lambda: idle(client))


@pytest.mark.parametrize("method", METHODS)
def test_without_a_token_silent_calls_end_at_once(guarded, method):
    def calls_of(channel):
        call = channel.stream_stream(method)
        return [call() for _ in range(20)]

    codes = crowd(guarded.address, calls_of, ends=SOON + 1)
    assert codes == [grpc.StatusCode.UNAUTHENTICATED] * 20


def test_watches_are_limited_and_checks_are_not(guarded):
    def calls_of(channel):
        watch = channel.unary_stream(
            HEALTH + "Watch", request_serializer=health_pb2.HealthCheckRequest.SerializeToString
        )
        return [watch(health_pb2.HealthCheckRequest()) for _ in range(CROWD)]

    codes = crowd(guarded.address, calls_of)
    assert codes == [grpc.StatusCode.RESOURCE_EXHAUSTED] * (CROWD - Limits.max_watches)


def test_a_watcher_on_another_connection_takes_a_place_from_a_crowd(guarded):
    def watcher(opened):
        channel = opened.enter_context(grpc.insecure_channel(guarded.address, [("grpc.use_local_subchannel_pool", 1)]))
        return lambda: health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=60)

    with ExitStack() as opened:
        watch = watcher(opened)
        crowd = []
        for _ in range(Limits.max_watches):  # one after another: calls made at once come in any order
            crowd.append(watch())
            assert next(crowd[-1]).status == health_pb2.HealthCheckResponse.SERVING
        honest = watcher(opened)()
        assert next(honest).status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.RpcError) as raised:
            next(crowd[-1])
        assert raised.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        with pytest.raises(grpc.RpcError, match="calls watch; allowed are"):  # the crowd gains nothing by coming again
            next(watch())
        assert all(one.is_active() for one in (*crowd[:-1], honest))


@pytest.mark.parametrize("method", ["Check", "Watch"])
def test_health_calls_that_send_nothing_shut_no_probe_out(guarded, method):
    crowd(guarded.address, lambda channel: [channel.stream_stream(HEALTH + method)() for _ in range(CROWD)])


def test_a_call_without_a_message_is_refused(guarded):
    with grpc.insecure_channel(guarded.address) as channel:
        for name, metadata in ((SERVICE + "GetLoad", AUTHORIZED), (HEALTH + "Check", ())):
            with pytest.raises(grpc.RpcError) as raised:
                channel.stream_unary(name)(iter(()), metadata=metadata, timeout=10)
            assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT
            assert "the call has no message" in raised.value.details()
