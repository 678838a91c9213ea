"""The parent's side of `trial`: a process that can be ended when a grammar takes too long."""

from __future__ import annotations

import dataclasses
import json
import os
import selectors
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from medha_jax.grammar.spec import CostlyGrammarError, GrammarError, GrammarSpec

if TYPE_CHECKING:
    from medha_jax.grammar.guidance import TokenFacts

COMPILE_SECONDS = 2.0  # that one grammar may take
PIPE_BYTES = 65536  # read at once
START_SECONDS = 120.0  # that the process may take to start


class TrialProcess:
    """Owns the process; starts it with the first grammar, and again after it was ended. Any thread may use it."""

    def __init__(self, facts: TokenFacts, seconds: float = COMPILE_SECONDS) -> None:
        self._facts, self._seconds = facts, seconds
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def check(self, spec: GrammarSpec) -> None:
        """Compile a grammar there.

        Raises:
            CostlyGrammarError: not in the time and memory that it may take.
            GrammarError: it cannot be compiled.
        """
        with self._lock:
            answer = self._ask(self._started(), dataclasses.asdict(spec), self._seconds)
        if answer is not None:
            raise GrammarError(answer)

    def close(self) -> None:
        """End the process, if there is one; what it compiles is refused."""
        if (process := self._process) is not None:
            process.kill()
        with self._lock:
            self._end()

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self._end()
            command = [sys.executable, "-m", "medha_jax.grammar.trial"]
            pipe = subprocess.PIPE
            self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL)
            answer = self._ask(self._process, dataclasses.asdict(self._facts), START_SECONDS)
            if answer is not None:
                self._end()
                raise GrammarError(answer)
        return self._process

    def _ask(self, process: subprocess.Popen[bytes], what: Any, seconds: float) -> str | None:
        """Send a line, and read the one that answers it; ends the process if none comes."""
        assert process.stdin is not None and process.stdout is not None
        ends, answer = time.monotonic() + seconds, b""
        try:
            process.stdin.write(json.dumps(what).encode() + b"\n")
            process.stdin.flush()
            with selectors.DefaultSelector() as ready:
                ready.register(process.stdout, selectors.EVENT_READ)
                while not answer.endswith(b"\n"):
                    if not ready.select(max(0.0, ends - time.monotonic())):
                        self._end()
                        raise CostlyGrammarError(f"it was not compiled within {seconds:g} s; give a simpler one")
                    if not (part := os.read(process.stdout.fileno(), PIPE_BYTES)):
                        raise BrokenPipeError
                    answer += part
        except OSError:
            self._end()
            raise CostlyGrammarError("compiling it took too much memory; give a simpler one") from None
        said: str | None = json.loads(answer)
        return said

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    pipe.close()
            self._process = None
