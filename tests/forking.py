"""Processes that need not import JAX again: each is forked from a helper that has imported it and started nothing.

Imports are 1.3 of the 2.9 s that a command of a small model takes. What runs is a process of its own: arguments,
environment, files, signals and exit code are as with `subprocess`; but variables that JAX reads when it is imported
(`JAX_...`) are the helper's.

The helper is `python -m tests.forking FD`. It is asked over the Unix socket FD: one message a process, JSON, with its
stdin, stdout, stderr, and a pipe for its number and, at its end, its exit code. It ends what it started when the socket
is closed.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import select
import selectors
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from medha_jax.collector import exempt_live_objects

ROOT = Path(__file__).parents[1]
PRELOADED = ("jax", "medha_jax.cli", "medha_jax.cli.generate", "medha_jax.engine", "medha_jax.runtime.cluster")
MOST = 2**18  # bytes of a message
FDS = 4


class Forked:
    """A process that the helper started; as `subprocess.Popen`, of which it has what tests need.

    Args:
        status: pipe on which the helper says its number and, at the end, its exit code.
    """

    def __init__(self, status: int) -> None:
        self._status = os.fdopen(status)
        self.pid = int(self._status.readline())
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Its exit code, minus a signal's number where one ended it; None as long as it runs."""
        if self.returncode is None and select.select([self._status], [], [], 0)[0]:
            self.returncode = int(self._status.readline())
            self._status.close()
        return self.returncode

    def wait(self, timeout: float = 60) -> int:
        """Its exit code.

        Raises:
            subprocess.TimeoutExpired: it still runs after `timeout` seconds.
        """
        if self.returncode is None and not select.select([self._status], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired(str(self.pid), timeout)
        code = self.poll()
        assert code is not None
        return code

    def send_signal(self, number: int) -> None:
        """Send it a signal, if it runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it."""
        self.send_signal(signal.SIGKILL)


class Forker:
    """Owner of a helper, which is started now, and of its processes."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = [sys.executable, "-m", "tests.forking", str(theirs.fileno())]
            environment = os.environ | {"JAX_PLATFORMS": "cpu"}
            self._helper = subprocess.Popen(command, cwd=ROOT, env=environment, pass_fds=[theirs.fileno()])

    def start(
        self,
        module: str,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        files: tuple[IO[Any], IO[Any], IO[Any]],
    ) -> Forked:
        """Run `python -m module arguments`.

        Args:
            module: by name.
            arguments: of the command.
            environment: every variable.
            files: stdin, stdout and stderr.
        """
        ours, theirs = os.pipe()
        asked = json.dumps({"module": module, "arguments": list(arguments), "environment": dict(environment)})
        socket.send_fds(self._socket, [asked.encode()], [*(file.fileno() for file in files), theirs])
        os.close(theirs)
        return Forked(ours)

    def close(self) -> None:
        """End the helper and what it started."""
        self._socket.close()
        self._helper.wait(20)


@dataclass(frozen=True)
class Job:
    """What a forked process is to become."""

    asked: Mapping[str, Any]
    files: Sequence[int]


def serve(asking: socket.socket) -> Job | None:
    """Fork a process for each message; returns its job in each of them, and None in the helper at its end."""
    running: dict[int, tuple[int, int]] = {}  # by pidfd: number of the process, and its pipe
    with selectors.DefaultSelector() as ready:
        ready.register(asking, selectors.EVENT_READ)
        while True:
            for key, _ in ready.select():
                if key.fd != asking.fileno():
                    ready.unregister(key.fd)
                    _ended(key.fd, *running.pop(key.fd))
                    continue
                message, files, _, _ = socket.recv_fds(asking, MOST, FDS)
                if not message:
                    for number, _ in running.values():
                        os.kill(number, signal.SIGKILL)
                    return None
                number = os.fork()
                if not number:
                    asking.close()
                    return Job(json.loads(message), files)
                *theirs, status = files
                for file in theirs:
                    os.close(file)
                os.write(status, f"{number}\n".encode())
                watch = os.pidfd_open(number)
                running[watch] = number, status
                ready.register(watch, selectors.EVENT_READ)


def _ended(watch: int, number: int, status: int) -> None:
    _, how = os.waitpid(number, 0)
    os.write(status, f"{os.waitstatus_to_exitcode(how)}\n".encode())
    os.close(status)
    os.close(watch)


def become(job: Job) -> None:
    """Be what was asked for, to the end of this process."""
    *files, status = job.files
    os.close(status)
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w")  # noqa: SIM115 - to the end
    os.environ.clear()
    os.environ.update(job.asked["environment"])
    sys.argv = ["", *job.asked["arguments"]]
    runpy.run_module(job.asked["module"], run_name="__main__", alter_sys=True)


def main() -> None:
    asking = socket.socket(fileno=int(sys.argv[1]))
    for module in PRELOADED:
        importlib.import_module(module)
    exempt_live_objects()  # what was imported is looked through by no process
    job = serve(asking)
    if job is not None:
        become(job)


if __name__ == "__main__":
    main()
