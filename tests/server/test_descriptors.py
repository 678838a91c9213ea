"""Open files: sockets that only connect keep nobody out for good, and limits that cannot hold are refused."""

from __future__ import annotations

import contextlib
import json
import resource
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from medha_jax.client import Client, ServerError
from medha_jax.config import ConfigError
from medha_jax.server.descriptors import fitted
from medha_jax.server.settings import Limits
from tests.server.processes import ROOT, SIMULATED, ServerProcess, wait_until

FILES = 256
LIMITED = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, tuple(map(int, sys.argv[1].split(","))))
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"


def limited(soft: int, hard: int) -> list[str]:
    return ["-c", LIMITED, f"{soft},{hard}", *SIMULATED]


def test_sockets_that_only_connect_keep_nobody_out_for_good() -> None:
    """Half of them say nothing at all, half are connections of HTTP/2 without a call."""
    seconds = ("--handshake-seconds", 1, "--idle-seconds", 1)
    with ServerProcess(*limited(FILES, FILES), "--max-streams", 100, *seconds) as server:
        host, port = server.address.split(":")
        crowd = []
        for number in range(300):
            crowd.append(socket.create_connection((host, int(port)), 5))
            if number % 2:
                with contextlib.suppress(OSError):  # it was closed at once
                    crowd[-1].sendall(PREFACE)

        def answered() -> bool:
            try:
                with Client(server.address) as client:
                    return client.load(timeout=2).accepting
            except ServerError:
                return False

        wait_until(answered, 20)
        assert len(list(Path(f"/proc/{server.process.pid}/fd").iterdir())) < FILES
        for one in crowd:
            one.close()


def test_the_soft_limit_is_raised() -> None:
    with ServerProcess(*limited(FILES, 4096), "--max-streams", 3000) as server:
        assert resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE) == (4096, 4096)


def test_limits_that_cannot_hold_are_refused_in_one_line() -> None:
    started = [sys.executable, "-c", LIMITED, f"{FILES},{FILES}", "-m", "medha_jax.cli", "serve", "--port", "0"]
    started += ["--max-streams", "2000"]
    ended = subprocess.run(started, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert ended.returncode == 2
    (line,) = ended.stderr.strip().splitlines()
    assert "max_streams is 2000, which needs 2128 open files; the system allows 256; give --max-streams 128" in line


def test_a_default_that_cannot_hold_is_lowered_and_said() -> None:
    with ServerProcess(*limited(FILES, FILES)) as server, Client(server.address) as client:
        assert client.load().accepting
        lines = [line for line in server.errors.splitlines() if "max-streams" in line]
    assert lines == [
        "--max-streams is 128: its default, 2048, needs 2176 open files; the system allows 256 (ulimit -Hn)"
    ]


@pytest.mark.parametrize(
    "files, stated, streams, connections",
    [
        (resource.RLIM_INFINITY, None, 2048, None),
        (2176, None, 2048, 2048),
        (2175, None, 2047, 2047),
        (129, None, 1, 1),
        (2175, 2047, 2047, 2047),
        (4096, 1, 1, 3968),
    ],
)
def test_limits_are_fitted_to_the_open_files(monkeypatch, files, stated, streams, connections) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (files, files))
    told: list[str] = []
    limits, most = fitted(Limits(max_streams=stated), told.append)
    assert (limits.streams, most) == (streams, connections)
    assert len(told) == (stated is None and streams < 2048)


@pytest.mark.parametrize("files, stated", [(128, None), (128, 1), (2175, 2048)])
def test_what_can_never_hold_is_refused(monkeypatch, files, stated) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (files, files))
    with pytest.raises(ConfigError, match=f"the system allows {files}"):
        fitted(Limits(max_streams=stated), lambda line: None)


def test_idle_connections_are_closed_and_clients_do_not_notice() -> None:
    with ServerProcess(*SIMULATED, "--idle-seconds", 0.3) as server, Client(server.address) as client:
        assert client.load().accepting
        files = Path(f"/proc/{server.process.pid}/fd")
        sockets = lambda: sum(str(one.readlink()).startswith("socket:") for one in files.iterdir())  # noqa: E731
        connected = sockets()
        wait_until(lambda: sockets() < connected, 10)
        assert client.load().accepting


def test_a_connection_that_is_old_ends_its_calls_well() -> None:
    options = ("--connection-seconds", 0.3, "--access-log", "json")
    with ServerProcess(*SIMULATED, *options) as server, Client(server.address) as client:
        began = time.monotonic()
        *_, last = client.generate([5, 6, 7], max_tokens=200, ignore_eos=True)
        assert last.usage.output_tokens == 200 and time.monotonic() - began > 0.5
        assert client.load().accepting
        wait_until(lambda: "GetLoad" in server.errors)
        peers = {json.loads(line)["peer"] for line in server.errors.splitlines() if line.startswith("{")}
        assert len(peers) == 2, "the second call came on another connection"
