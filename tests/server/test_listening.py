"""What a connection to the server may do."""

import threading
import time

import grpc
import pytest

from medha_jax.client.connection import SERVICE
from medha_jax.protos import inference_pb2 as pb
from tests.server.processes import SIMULATED, ServerProcess

PINGS = [
    ("grpc.keepalive_time_ms", 1_100),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
]
SECONDS = 7.0  # at least five pings; three are too many for a server that counts them


@pytest.fixture(scope="module")
def silent():
    """A server whose first token comes late, and nothing before it."""
    with ServerProcess(*SIMULATED, "--tick-ms", 1000 * SECONDS, "--slots", 1) as server:
        yield server
        server.process.kill()


def test_pings_of_idle_connections_and_of_silent_streams_are_welcome(silent):
    seen: list[grpc.ChannelConnectivity] = []
    with grpc.insecure_channel(silent.address, PINGS) as idle, grpc.insecure_channel(silent.address, PINGS) as busy:
        ready = threading.Event()

        def told(state):
            seen.append(state)
            if state is grpc.ChannelConnectivity.READY:
                ready.set()

        idle.subscribe(told, try_to_connect=True)
        assert ready.wait(10)
        began = time.monotonic()
        request = pb.GenerateRequest(token_ids=pb.PromptIds(ids=[5, 6, 7]))
        request.settings.sampling.max_tokens = 1
        generate = busy.unary_stream(
            f"{SERVICE}Generate", pb.GenerateRequest.SerializeToString, pb.GenerateEvent.FromString
        )
        kinds = [event.WhichOneof("event") for event in generate(request, timeout=60)]
        assert kinds == ["accepted", "delta", "finished"]
        time.sleep(max(0.0, began + SECONDS - time.monotonic()))
        assert time.monotonic() - began >= SECONDS
        idle.unsubscribe(told)
    assert seen[-1] is grpc.ChannelConnectivity.READY and seen.count(grpc.ChannelConnectivity.READY) == 1, seen
