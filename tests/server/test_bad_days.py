"""Overload, clients that go, deadlines, signals: what is promised holds, and nothing is left behind.

That it is gone within two ticks is counted in tests/engine/test_release.py.
"""

import os
import signal
import subprocess
import sys
import threading
import time

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from medha_jax.client import Accepted, Client, Delta, Finished, ServerError
from medha_jax.client.connection import SERVICE
from medha_jax.protos import inference_pb2 as pb
from tests.server.processes import ROOT, SIMULATED, ServerProcess, idle, refusal, wait_until

IDS = (5, 6, 7)


@pytest.fixture
def client(simulated):
    with Client(simulated.address) as connected:
        wait_until(lambda: idle(connected))
        yield connected
        wait_until(lambda: idle(connected))


def filled(client, count=4 + 64):
    """Streams that take all slots and all of the queue."""
    streams = [client.generate(IDS, max_tokens=2000, ignore_eos=True) for _ in range(count)]
    for stream in streams:
        assert isinstance(next(stream), Accepted)
    return streams


def test_a_full_queue_refuses_at_once_and_disturbs_nobody(client):
    streams = filled(client)
    wait_until(lambda: client.load().waiting == 64)
    for _ in range(20):
        error = refusal(client.generate(IDS, max_tokens=1))
        assert error.code == "RESOURCE_EXHAUSTED" and error.retry_s > 0, error
        assert "allowed are 64" in error.message
    load = client.load()
    assert (load.running, load.waiting) == (4, 64)
    assert isinstance(next(streams[0]), Delta)
    for stream in streams:
        stream.close()


def test_a_refusal_waits_for_no_tick():
    with ServerProcess(*SIMULATED, "--tick-ms", 3000, "--slots", 1, "--max-queue", 1) as server:
        with Client(server.address) as client:
            streams = []  # one that runs and one that waits
            for _ in range(2):
                streams.append(client.generate(IDS, max_tokens=2000, ignore_eos=True))
                next(streams[-1])
                wait_until(lambda: client.load().running == 1)
            began = time.monotonic()
            for _ in range(5):
                assert refusal(client.generate(IDS)).code == "RESOURCE_EXHAUSTED"
            assert time.monotonic() - began < 3, "five refusals took longer than a tick"
        server.process.kill()


def test_queue_limit_in_tokens_and_stream_limit():
    limits = ("--tick-ms", 20, "--slots", 1, "--max-queue-tokens", 1000, "--max-streams", 3)
    with ServerProcess(*SIMULATED, *limits) as server, Client(server.address) as client:
        streams = [client.generate([5] * 600, max_tokens=500, ignore_eos=True)]
        next(streams[0])
        wait_until(lambda: client.load().running == 1)
        streams.append(client.generate([5] * 600, max_tokens=500, ignore_eos=True))
        next(streams[1])
        wait_until(lambda: client.load().waiting_tokens == 600)
        error = refusal(client.generate([5] * 600))
        assert error.code == "RESOURCE_EXHAUSTED" and "1000" in error.message and error.retry_s > 0
        streams.append(client.generate([5] * 10, max_tokens=500, ignore_eos=True))
        next(streams[2])
        error = refusal(client.generate(IDS))
        assert error.code == "RESOURCE_EXHAUSTED" and "allowed are 3" in error.message and error.retry_s > 0


def test_cancelled_while_queued_in_prefill_and_in_decode(client):
    holders = [client.generate(IDS, max_tokens=2000, ignore_eos=True) for _ in range(4)]
    for holder in holders:
        next(holder), next(holder)
    queued = client.generate(IDS, max_tokens=5)
    next(queued)
    assert client.load().waiting == 1
    queued.close()
    wait_until(lambda: client.load().waiting == 0)
    for holder in holders:  # in decode
        holder.close()
    wait_until(lambda: idle(client))
    prefilling = client.generate([5] * 8000, max_tokens=5)
    next(prefilling)
    wait_until(lambda: client.load().running == 1)
    prefilling.close()
    wait_until(lambda: idle(client))


def test_an_iterator_that_is_dropped_ends_its_request(client):
    stream = client.generate(IDS, max_tokens=4000, ignore_eos=True)
    next(stream)
    wait_until(lambda: not idle(client))
    del stream
    wait_until(lambda: idle(client))


HOLD = """
import sys
from medha_jax.client import Client
streams = [Client(sys.argv[1]).generate([5, 6], max_tokens=4000, ignore_eos=True) for _ in range(8)]
for stream in streams:
    next(stream)
print("running", flush=True)
for event in streams[0]:
    pass
"""


def test_a_client_that_is_killed_leaves_nothing(simulated, client):
    killed = subprocess.Popen(
        [sys.executable, "-c", HOLD, simulated.address],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    with killed:
        assert killed.stdout.readline() == "running\n"
        wait_until(lambda: (client.load().running, client.load().waiting) == (4, 4))
        killed.kill()
        killed.wait()
        wait_until(lambda: idle(client))


def test_a_deadline_in_the_queue_and_in_decode(client):
    error = refusal(client.generate(IDS, max_tokens=4000, ignore_eos=True, timeout=0.2))
    assert error.code == "DEADLINE_EXCEEDED"
    wait_until(lambda: idle(client))
    error = refusal(client.generate([5] * 8000, max_tokens=100, timeout=0.02))
    assert error.code == "DEADLINE_EXCEEDED"
    wait_until(lambda: idle(client))
    holders = [client.generate(IDS, max_tokens=4000, ignore_eos=True) for _ in range(4)]
    for holder in holders:
        next(holder)
    assert refusal(client.generate(IDS, timeout=0.1)).code == "DEADLINE_EXCEEDED"
    wait_until(lambda: client.load().waiting == 0)
    for holder in holders:
        holder.close()


def test_a_request_that_is_to_be_dropped_ends_when_its_first_token_was_due(client):
    holders = [client.generate(IDS, max_tokens=4000, ignore_eos=True, ttft_ms=1) for _ in range(4)]
    for holder in holders:
        next(holder), next(holder)
    began = time.monotonic()
    error = refusal(client.generate(IDS, ttft_ms=100, on_deadline="drop", timeout=30))
    assert error.code == "DEADLINE_EXCEEDED" and "deadline" in error.message
    assert 0.09 < time.monotonic() - began < 5
    for holder in holders:
        holder.close()


def test_abort_ends_a_stream_by_its_id(client):
    stream = client.generate(IDS, max_tokens=4000, ignore_eos=True, request_id="mine")
    assert next(stream).request_id == "mine"
    assert client.abort("mine")
    error = refusal(stream)
    assert (error.code, error.message) == ("CANCELLED", "the request was aborted")
    wait_until(lambda: idle(client))
    assert not client.abort("mine")


def test_a_slow_reader_loses_nothing_and_holds_nobody_up(simulated, client):
    """It reads nothing while another stream runs to its end, and then finds everything."""
    call = grpc.insecure_channel(
        simulated.address, [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 1024)]
    ).unary_stream(SERVICE + "Generate", request_serializer=pb.GenerateRequest.SerializeToString)
    sampling = pb.SamplingSettings(max_tokens=1500, ignore_eos=True, logprobs=0)
    slow = call(
        pb.GenerateRequest(token_ids=pb.PromptIds(ids=IDS), settings=pb.GenerateSettings(sampling=sampling)),
        timeout=120,
    )
    quick = list(client.generate(IDS, max_tokens=200, ignore_eos=True))
    assert quick[-1].usage.output_tokens == 200
    before = simulated.resident_bytes
    wait_until(lambda: idle(client), 60)  # the engine is done with it, though nobody has read
    assert simulated.resident_bytes - before < 32 * 2**20
    events = [pb.GenerateEvent.FromString(data) for data in slow]
    tokens = [token for event in events for token in event.delta.token_ids]
    text = "".join(event.delta.text for event in events)
    logprobs = [entry for event in events for entry in event.delta.logprobs]
    assert len(events) < 1000  # those that waited were joined
    assert len(tokens) == len(text) == len(logprobs) == 1500
    assert events[-1].finished.usage.output_tokens == 1500


def test_a_stalled_upload_ends():
    with ServerProcess(*SIMULATED, "--part-seconds", 0.3) as server, Client(server.address) as client:
        stall = threading.Event()

        def parts(*first):
            yield from (part.SerializeToString() for part in first)
            stall.wait(20)

        start = pb.GeneratePart(start=pb.GenerateStart(prompt_tokens=50))
        ids = pb.GeneratePart(token_ids=pb.PromptIds(ids=IDS))
        with grpc.insecure_channel(server.address) as channel:
            for sent in ((), (start,), (start, ids)):
                call = channel.stream_stream(SERVICE + "GenerateStream")(parts(*sent), timeout=20)
                with pytest.raises(grpc.RpcError) as raised:
                    list(call)
                assert raised.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
                assert "no part of the prompt came within 0.3 s" in raised.value.details()
                wait_until(lambda: idle(client))
            stall.set()


def test_an_upload_that_trickles_ends():
    """Each part is in time, the prompt is not."""
    with ServerProcess(*SIMULATED, "--part-seconds", 1, "--part-rate", 10) as server, Client(server.address) as client:

        def parts():
            yield pb.GeneratePart(start=pb.GenerateStart(prompt_tokens=500)).SerializeToString()
            while True:
                yield pb.GeneratePart(token_ids=pb.PromptIds(ids=[5])).SerializeToString()
                time.sleep(0.3)

        with grpc.insecure_channel(server.address) as channel:
            call = channel.stream_stream(SERVICE + "GenerateStream")(parts(), timeout=20)
            with pytest.raises(grpc.RpcError) as raised:
                list(call)
            assert raised.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
            assert "it must come at 10 tokens/s or faster" in raised.value.details()
            wait_until(lambda: idle(client))


def test_prefill_begins_before_the_last_part(simulated, client):
    """The last part is only sent when the server says that it computes."""
    begun = threading.Event()

    def parts():
        settings = pb.GenerateSettings(sampling=pb.SamplingSettings(max_tokens=3, ignore_eos=True))
        yield pb.GeneratePart(start=pb.GenerateStart(settings=settings, prompt_tokens=4000)).SerializeToString()
        yield pb.GeneratePart(token_ids=pb.PromptIds(ids=[211] * 2000)).SerializeToString()
        assert begun.wait(20)
        yield pb.GeneratePart(token_ids=pb.PromptIds(ids=[6] * 1500)).SerializeToString()

    with grpc.insecure_channel(simulated.address) as channel:
        call = channel.stream_stream(SERVICE + "GenerateStream")(parts(), timeout=30)
        wait_until(lambda: client.load().running == 1)
        begun.set()
        events = [pb.GenerateEvent.FromString(data) for data in call]
    assert events[-1].finished.usage.prompt_tokens == 3500
    assert sum(events[-1].finished.timings.chunk_tokens) == 3500
    assert events[-1].finished.usage.output_tokens == 3


def watch(address, service=""):
    """The states of a Watch, as they come, until the server ends."""
    states = []

    def read():
        with grpc.insecure_channel(address) as channel:
            try:
                for answer in health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=service)):
                    states.append((time.monotonic(), answer.status))
            except grpc.RpcError:
                pass

    thread = threading.Thread(target=read)
    thread.start()
    return states, thread


SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def test_sigterm_finishes_what_runs_and_takes_nothing_new():
    with ServerProcess(*SIMULATED, "--tick-ms", 10) as server, Client(server.address) as client:
        states, watching = watch(server.address, "medha.v1.Inference")
        stream = client.generate(IDS, max_tokens=150, ignore_eos=True)
        next(stream), next(stream)
        wait_until(lambda: [state for _, state in states] == [SERVING])
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: len(states) == 2)
        assert states[1][1] == NOT_SERVING
        error = refusal(client.generate(IDS))
        assert error.code == "UNAVAILABLE" and "about to end" in error.message
        assert not client.load().accepting
        *_, last = stream
        assert isinstance(last, Finished) and last.usage.output_tokens == 150
        assert server.process.wait(10) == 0
        watching.join(10)


def test_streams_that_take_longer_than_the_drain_are_ended_with_a_status():
    with ServerProcess(*SIMULATED, "--drain-seconds", 0.5) as server, Client(server.address) as client:
        stream = client.generate(IDS, max_tokens=8000, ignore_eos=True)
        next(stream)
        began = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        with pytest.raises(ServerError, match="UNAVAILABLE: the server ended before the output did"):
            list(stream)
        assert server.process.wait(10) == 0
        assert 0.5 < time.monotonic() - began < 8


def test_until_it_is_loaded_a_server_says_so_and_may_be_stopped():
    with ServerProcess(*SIMULATED, "--load-seconds", 60, "--port", 19523, ready=False) as server:
        address = "127.0.0.1:19523"
        with Client(address) as client:

            def listening():
                try:
                    return client.load() is not None
                except ServerError:
                    return False

            wait_until(listening, 60)
            assert not client.load().accepting
            error = refusal(client.generate(IDS))
            assert error.code == "UNAVAILABLE" and "starting" in error.message
            with grpc.insecure_channel(address) as channel:
                state = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
                assert state.status == NOT_SERVING
        assert server.stop() == 0
        assert "stopped before it was ready" in server.errors
