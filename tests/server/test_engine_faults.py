"""Whatever ends the engine is told to every stream and to who checks health, and ends the process with its own code."""

import signal
import threading
import time

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from medha_jax.cli.exit_codes import ENGINE_ENDED
from medha_jax.client import Client
from medha_jax.config import ConfigError
from medha_jax.server.prometheus import Metrics
from medha_jax.server.settings import ServerSettings
from medha_jax.server.trace import ScheduleTrace
from medha_jax.server.vitals import LIVENESS
from tests.server.broken_server import LAST_SECONDS, POISON
from tests.server.embedded import running
from tests.server.processes import ServerProcess, refusal, wait_until

BROKEN = ["-m", "tests.server.broken_server"]
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


class Witness:
    """A stream that runs, and who watches health, until the server ends."""

    def __init__(self, address, names=("", LIVENESS)):
        self.states = {name: [] for name in names}
        self.end = None
        self._client = Client(address)
        stream = self._client.generate((5, 6, 7), max_tokens=8000, ignore_eos=True)
        next(stream), next(stream)
        self._threads = [threading.Thread(target=self._watch, args=(address, name)) for name in names]
        self._threads.append(threading.Thread(target=self._read, args=(stream,)))
        for thread in self._threads:
            thread.start()
        wait_until(lambda: all(states == [SERVING] for states in self.states.values()))

    def poison(self):
        """Send the request with which the defect begins; returns its end."""
        return self._client.generate((5, 6), seed=POISON, max_tokens=8000, ignore_eos=True)

    def gone(self):
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive()
        self._client.close()

    def _watch(self, address, name):
        with grpc.insecure_channel(address) as channel:
            try:
                asked = health_pb2.HealthCheckRequest(service=name)
                for answer in health_pb2_grpc.HealthStub(channel).Watch(asked):
                    self.states[name].append(answer.status)
            except grpc.RpcError:
                pass

    def _read(self, stream):
        self.end = refusal(stream)


FAULTS = {
    "hang": "a tick of the engine did not end within 1 s",
    "panic": "an error ended the engine (Panic)",
    "plan": "an error made the engine unusable",
    "listener": "an error ended the engine (ValueError)",
}


@pytest.mark.parametrize("defect", FAULTS)
def test_what_ends_the_engine_is_told_and_ends_the_process(defect):
    with ServerProcess(*BROKEN, defect, "--tick-seconds", 1) as server:
        witness = Witness(server.address)
        began = time.monotonic()
        poisoned = refusal(witness.poison())
        assert server.process.wait(10) == ENGINE_ENDED
        assert time.monotonic() - began < 5
        witness.gone()
        for end in (witness.end, poisoned):
            assert end.code in ("UNAVAILABLE", "INTERNAL")
            assert "engine" in end.message or "an internal error ended the request" in end.message
        assert witness.states == {"": [SERVING, NOT_SERVING], LIVENESS: [SERVING, NOT_SERVING]}
        assert f"error: {FAULTS[defect]}\n" in server.errors
        assert server.errors.count("Traceback") == (defect != "hang")


def test_a_hung_tick_does_not_keep_a_server_that_is_stopped():
    """The first signal ends it after the drain, the second one at once, and the streams get their status."""
    with ServerProcess(*BROKEN, "hang", "--drain-seconds", 0.5) as server:
        witness = Witness(server.address)
        poisoned = witness.poison()
        time.sleep(0.5)
        began = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(10) == ENGINE_ENDED  # a hung device is no good end, however it was noticed
        assert 0.5 < time.monotonic() - began < 5.5
        ended = refusal(poisoned)  # before the witness closes its connection
        witness.gone()
        assert witness.end.code == ended.code == "UNAVAILABLE"
        assert witness.states == {"": [SERVING, NOT_SERVING], LIVENESS: [SERVING]}
        assert "2 streams ended before their output did\n" in server.errors
        assert "the engine's last tick did not end within 3 s" in server.errors
        assert "error: a tick of the engine did not end within 3 s\n" in server.errors


def test_a_second_signal_ends_the_process_even_if_nothing_in_it_runs():
    for defect, code in {"hang": 0, "loop": -signal.SIGALRM}.items():
        with ServerProcess(*BROKEN, defect, "--drain-seconds", 600) as server:
            witness = Witness(server.address, ())
            poisoned = witness.poison()
            time.sleep(0.5)
            began = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            time.sleep(0.2)
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(10) == code
            assert time.monotonic() - began < LAST_SECONDS + 5
            assert refusal(poisoned).code == "UNAVAILABLE"
            witness.gone()


def test_metrics_and_a_trace_that_raise_do_not_disturb_anybody(monkeypatch, caplog, tmp_path):
    def broken(self, what):
        raise ValueError("Out of range float values are not JSON compliant")

    for kind in (Metrics, ScheduleTrace):
        monkeypatch.setattr(kind, "on_events", broken)
        monkeypatch.setattr(kind, "on_tick", broken)
    settings = ServerSettings(port=0, metrics_port=0, trace=tmp_path / "trace.json", access_log="off")
    with running(settings) as (lines, _), Client(lines[-1].split()[-1]) as client:
        for _ in range(3):
            *_, last = client.generate((5, 6, 7), max_tokens=20, ignore_eos=True)
            assert last.usage.output_tokens == 20
        assert client.load().accepting
    assert caplog.text.count("metrics or trace: Out of range float values") == 1


def test_the_limit_of_a_tick_is_checked():
    for wrong in (0.0, -1.0, float("nan")):
        with pytest.raises(ConfigError, match="tick_seconds"):
            ServerSettings(tick_seconds=wrong)
