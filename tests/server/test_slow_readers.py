"""Clients that do not read: what they leave is bounded, their requests end, and they hold up nobody.

Each talks to a real socket. A stalled call has a small window and is not iterated, so the server's writes stand still.
"""

from contextlib import ExitStack, contextmanager

import grpc
import pytest

from medha_jax.client import Accepted, Client, Delta, Finished, ServerError
from medha_jax.client.connection import SERVICE
from medha_jax.protos import inference_pb2 as pb
from medha_jax.server import server as serving
from medha_jax.server.settings import Limits, ServerSettings
from tests.server.embedded import running
from tests.server.processes import idle, wait_until

CONTEXT = 2**17  # a request would run for minutes
LONG, FOREVER = 100_000, 10_000.0  # tokens, seconds
WINDOW = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 1024), ("grpc.use_local_subchannel_pool", 1)]


def settings(drain_seconds=0.5, **limits):
    """Only the stated limits can end a request."""
    unlimited = {"write_seconds": FOREVER, "unread_bytes": 2**40, "unread_total_bytes": 2**40}
    return ServerSettings(port=0, drain_seconds=drain_seconds, limits=Limits(**unlimited | limits))


@contextmanager
def served(given):
    """A server's lines, a client, and what makes a stalled call."""
    with ExitStack() as clients, running(given, CONTEXT) as (lines, _):  # the server ends before its clients do
        address = "127.0.0.1:" + lines[-1].rpartition(":")[2]
        client = clients.enter_context(Client(address))
        channel = clients.enter_context(grpc.insecure_channel(address, WINDOW))
        call = channel.unary_stream(SERVICE + "Generate", request_serializer=pb.GenerateRequest.SerializeToString)

        def stalled(name):
            sampling = pb.SamplingSettings(max_tokens=LONG, ignore_eos=True, logprobs=20)
            wanted = pb.GenerateSettings(request_id=name, sampling=sampling)
            return call(pb.GenerateRequest(token_ids=pb.PromptIds(ids=[5, 6]), settings=wanted), timeout=600)

        yield lines, client, stalled


def logged(lines, **values):
    """Whether a line of the access log has these values: the call's coroutine is over."""
    return any(all(f"{name}={value}" in line for name, value in values.items()) for line in lines)


def status(call):
    """What a stalled client finds once it reads."""
    with pytest.raises(grpc.RpcError) as raised:
        list(call)
    return raised.value.code().name, raised.value.details()


def test_who_leaves_too_much_unread_ends_and_others_do_not_notice():
    with served(settings(unread_bytes=65536)) as (lines, client, stalled):
        call = stalled("slow")
        *_, last = client.generate([5, 6], max_tokens=1000, ignore_eos=True)
        assert isinstance(last, Finished) and last.usage.output_tokens == 1000
        wait_until(lambda: logged(lines, request_id="slow", code="RESOURCE_EXHAUSTED"), 120)
        wait_until(lambda: idle(client), 60)  # slot and pages are back, though nobody has read
        assert not client.abort("slow")
        code, message = status(call)
        assert code == "RESOURCE_EXHAUSTED" and "bytes of the output are unread; allowed are 65,536" in message


def test_all_streams_together_have_a_budget():
    with served(settings(unread_total_bytes=65536)) as (lines, client, stalled):
        calls = [stalled("one"), stalled("two")]
        wait_until(lambda: client.load().running == 2, 60)
        *_, last = client.generate([5, 6], max_tokens=1000, ignore_eos=True)
        assert isinstance(last, Finished) and last.usage.output_tokens == 1000
        for name in ("one", "two"):
            wait_until(lambda name=name: logged(lines, request_id=name, code="RESOURCE_EXHAUSTED"), 120)
        wait_until(lambda: idle(client), 60)
        for call in calls:
            code, message = status(call)
            assert code == "RESOURCE_EXHAUSTED" and "of all streams are unread; allowed are 65,536" in message


def test_a_write_that_stands_still_ends_its_request():
    with served(settings(write_seconds=0.5)) as (lines, client, stalled):
        call = stalled("still")
        wait_until(lambda: logged(lines, request_id="still", code="RESOURCE_EXHAUSTED"), 120)
        wait_until(lambda: idle(client), 60)
        assert status(call) == (
            "RESOURCE_EXHAUSTED",
            "a write stood still for 0.5 s; allowed are 0.5; read faster",
        )


def test_a_status_that_nobody_reads_keeps_nobody_out():
    """It counts as a stream. Once the places are needed, its connection is closed, and no other."""
    with served(settings(write_seconds=2.0, max_streams=2)) as (lines, client, stalled):
        call = stalled("still")
        wait_until(lambda: logged(lines, request_id="still", code="RESOURCE_EXHAUSTED"), 120)
        wait_until(lambda: idle(client), 60)
        running = client.generate([5, 6], max_tokens=LONG, ignore_eos=True)
        next(running)
        with pytest.raises(ServerError, match="2 streams are open; allowed are 2"):  # for 2 s its client may still read
            list(client.generate([5, 6], max_tokens=2))

        def taken():
            try:
                *_, last = client.generate([5, 6], max_tokens=2)
            except ServerError:
                return False
            return isinstance(last, Finished)

        wait_until(taken, 60)
        assert isinstance(next(running), (Accepted, Delta))
        (line,) = (line for line in lines if "closed the connection of" in line)
        assert "it did not read the end of 1 calls" in line
        assert status(call)[0] == "UNAVAILABLE"
        running.close()


def stands(client):
    """Wait until a stalled request has run for long enough that its write stands still."""
    wait_until(lambda: client.load().running == 1, 60)
    *_, last = client.generate([5, 6], max_tokens=1000, ignore_eos=True)
    assert isinstance(last, Finished)


def test_an_abort_ends_a_stream_that_nobody_reads():
    with served(settings()) as (lines, client, stalled):
        call = stalled("mine")
        stands(client)
        assert client.abort("mine")
        wait_until(lambda: logged(lines, request_id="mine", code="CANCELLED"), 60)
        wait_until(lambda: idle(client), 60)
        assert not client.abort("mine")
        assert status(call) == ("CANCELLED", "the request was aborted")


@pytest.mark.parametrize("drain_seconds", [0.2, FOREVER])
def test_a_stream_that_nobody_reads_holds_up_no_drain(monkeypatch, drain_seconds):
    """`running` asserts that the server is over within 30 s."""
    monkeypatch.setattr(serving, "LAST_WRITE_SECONDS", 0.5)
    with served(settings(drain_seconds)) as (lines, client, stalled):
        call = stalled("still")
        stands(client)
    assert logged(lines, request_id="still", code="RESOURCE_EXHAUSTED" if drain_seconds == FOREVER else "UNAVAILABLE")
    call.cancel()


def test_a_client_that_goes_while_a_write_stands_still_is_no_error_of_the_server():
    with served(settings()) as (lines, client, stalled):
        call = stalled("gone")
        stands(client)
        call.cancel()
        wait_until(lambda: logged(lines, request_id="gone", code="CANCELLED"), 60)
        wait_until(lambda: idle(client), 60)
