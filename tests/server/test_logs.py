"""Logs that nobody reads, or that cannot be written, hurt no call and no drain."""

import fcntl
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.request

import pytest

from medha_jax.client import Client, Finished
from medha_jax.server.server import serve
from medha_jax.server.settings import ServerSettings
from tests.server import embedded
from tests.server.embedded import running
from tests.server.processes import ON_CPU, ROOT, SEARCHED, SIMULATED

IDS = (5, 6, 7)
CALLS = 100


def standard_error(kind):
    """Where a server's log goes, and who reads it."""
    if kind == "/dev/full":
        return os.open(kind, os.O_WRONLY), None
    reading, writing = os.pipe()
    if kind == "stands still":
        fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
        return writing, reading

    def read():
        with os.fdopen(reading) as lines:
            for _ in range(30):
                lines.readline()

    threading.Thread(target=read, daemon=True).start()
    return writing, None


@pytest.mark.parametrize("kind", ["goes away", "stands still", "/dev/full"])
def test_a_log_without_a_reader_hurts_no_call_and_no_drain(kind):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    errors, reading = standard_error(kind)
    words = [*SIMULATED, "--access-log", "json", "--tick-ms", "2", "--metrics-port", str(port)]
    process = subprocess.Popen(
        [sys.executable, *words],
        env=os.environ | ON_CPU | {"PYTHONPATH": SEARCHED},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
    )
    os.close(errors)
    try:
        with Client(process.stdout.readline().split()[-1]) as client:
            for _ in range(CALLS):
                *_, last = client.generate(IDS, max_tokens=2, ignore_eos=True, timeout=10)
                assert isinstance(last, Finished)
            stream = client.generate(IDS, max_tokens=400, ignore_eos=True)
            next(stream), next(stream)
            scraped = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10).read().decode()
            (dropped,) = [line for line in scraped.splitlines() if line.startswith("medha_log_lines_dropped_total ")]
            if kind != "stands still":  # there they still wait
                assert float(dropped.split()[1]) > CALLS // 2
            process.send_signal(signal.SIGTERM)
            *_, last = stream
            assert last.usage.output_tokens == 400
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        if reading is not None:
            os.close(reading)


def test_a_function_that_takes_lines_and_raises_hurts_nobody(monkeypatch, caplog):
    def raising(line):
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(embedded, "serve", lambda *given, tell, **named: serve(*given, tell=raising, **named))
    settings = ServerSettings(port=0, access_log="json")
    with running(settings) as (lines, _), Client(lines[-1].split()[-1]) as client:
        for _ in range(3):
            *_, last = client.generate(IDS, max_tokens=20, ignore_eos=True)
            assert isinstance(last, Finished)
    assert caplog.text.count("a line: [Errno 32] Broken pipe") == 1
