"""`medha-jax serve` in a child process, for the duration of a measurement."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from medha_jax.workload import WorkloadRequest

READY = "serving "
LAST_LINES = 20
STOP_SECONDS = 30.0
SERVE = (sys.executable, "-m", "medha_jax.cli", "serve", "--compile-all-first")
POOL_TOKENS = 2**18  # most KV tokens of a pool by default, unless one request needs more


class ServerStartError(RuntimeError):
    """The server ended before it was ready; the text includes its last line."""


@dataclass(frozen=True)
class Needs:
    """Sizes of a server for given requests.

    Args:
        context: tokens of the longest request.
        pool: KV tokens of all requests that may run at once, at most POOL_TOKENS unless one request needs more.
    """

    context: int
    pool: int


def needs_of(requests: Iterable[WorkloadRequest], slots: int, page: int) -> Needs | None:
    """Sizes of a server for requests; None if the tokens of a prompt are unknown.

    Args:
        requests: requests to send; at least one.
        slots: most requests that run at once.
        page: tokens in a KV page.
    """
    tokens = []
    for request in requests:
        if request.prompt_tokens is None:
            return None
        whole = request.prompt_tokens + request.output_tokens
        tokens.append(-(-whole // page) * page)
    tokens.sort(reverse=True)
    return Needs(context=tokens[0], pool=max(tokens[0], min(sum(tokens[:slots]), POOL_TOKENS)))


class OwnServer:
    """Starts a server, waits until it is ready, and stops it at the end of the `with` block. Owns its process.

    The server listens on a free port of this machine. It has its own process group, so Ctrl-C in a terminal does not
    stop it before the measurements are saved.

    Args:
        options: of `medha-jax serve`, without port and log.
        tell: called with each line that the server writes while it starts.
        command: starts a server that prints `serving NAME on ADDRESS`; None for `medha-jax serve`.
    """

    def __init__(
        self, options: Sequence[str], tell: Callable[[str], None], command: Sequence[str] | None = None
    ) -> None:
        self._tell: Callable[[str], None] | None = tell
        self._last: deque[str] = deque(maxlen=LAST_LINES)
        began = time.monotonic()
        self._process = subprocess.Popen(
            [*(command or (*SERVE, "--port", "0", "--access-log", "off")), *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
            errors="replace",
            process_group=0,
        )
        self._reader = threading.Thread(target=self._read, name="server's stderr", daemon=True)
        self._reader.start()
        try:
            self.address = self._wait()
        except BaseException:
            self.stop()
            raise
        self.start_s = time.monotonic() - began

    def __enter__(self) -> OwnServer:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process.poll() is None

    @property
    def last_line(self) -> str:
        """The last line on the server's standard error."""
        return self._last[-1] if self._last else "it wrote nothing"

    def stop(self) -> int:
        """Terminate the server, kill it after STOP_SECONDS; returns its exit code."""
        self._tell = None
        if self.alive:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
        code = self._process.wait()
        self._reader.join(STOP_SECONDS)
        for stream in (self._process.stdout, self._process.stderr):
            if stream is not None:
                stream.close()
        return code

    def _wait(self) -> str:
        """Wait for the server's first line; returns the address in it."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line.startswith(READY):
            code = self._process.wait()
            self._reader.join(STOP_SECONDS)
            raise ServerStartError(f"the server ended with exit code {code} before it was ready: {self.last_line}")
        return line.split()[-1]

    def _read(self) -> None:
        assert self._process.stderr is not None
        with contextlib.suppress(ValueError):  # closed while it is read
            for line in self._process.stderr:
                self._last.append(line.rstrip())
                tell = self._tell
                if tell is not None:
                    tell(line.rstrip())
