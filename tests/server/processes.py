"""Servers in processes of their own."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import medha_jax
from medha_jax.client import ServerError

ROOT = Path(medha_jax.__file__).parents[1]
SERVE = ["-m", "medha_jax.cli", "serve"]
SIMULATED = ["-m", "benchmarks.simulated_server"]
ON_CPU = {"JAX_PLATFORMS": "cpu"}
SEARCHED = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
START_SECONDS, STOP_SECONDS = 120, 60


class ServerProcess:
    """A server that is started and stopped; `address` is where it listens once it is `ready`."""

    def __init__(self, *arguments, environment=None, ready=True):
        self._errors = tempfile.NamedTemporaryFile("w+", suffix=".log")  # noqa: SIM115  # closed at the end
        self.process = subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            env=os.environ | ON_CPU | {"PYTHONPATH": SEARCHED} | (environment or {}),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        self.line = ""
        if ready:
            self.wait_ready()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(STOP_SECONDS)
        self.process.stdout.close()
        self._errors.close()

    def wait_ready(self):
        self.line = self.process.stdout.readline()
        assert self.line.startswith("serving "), self.errors

    @property
    def errors(self):
        return Path(self._errors.name).read_text()

    @property
    def address(self):
        return self.line.split()[-1]

    @property
    def url(self):
        """Where the OpenAI API is, without /v1; the server must have an --http-port."""
        wait_until(lambda: re.search("^OpenAI API on .*\n", self.errors, re.MULTILINE))  # a thread writes the log
        (url,) = re.findall("^OpenAI API on (.*)/v1\n", self.errors, re.MULTILINE)
        return url

    @property
    def resident_bytes(self):
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def stop(self):
        """Ask it to end; returns its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(STOP_SECONDS)


def wait_until(condition, seconds=10.0):
    """Wait for a condition; returns the seconds that it took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, "it did not come true"
        time.sleep(0.002)
    return time.monotonic() - began


def idle(client):
    """Whether a server has nothing to do and holds nothing."""
    load = client.load()
    free = all(pool.free_pages == pool.total_pages for pool in load.pools)
    return (load.running, load.waiting, load.waiting_tokens) == (0, 0, 0) and free


def refusal(events):
    """The error that ends a stream."""
    try:
        for _ in events:
            pass
    except ServerError as error:
        return error
    raise AssertionError("the stream ended well")
