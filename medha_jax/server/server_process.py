"""A server as a process: its log, how it ends, and with which exit code."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import NoReturn

from medha_jax.server.log_sink import LogSink, SinkHandler

ENGINE_ENDED = 70  # exit code
LAST_SECONDS = 15.0  # from the loss of the engine to the end of the process, whatever it still does
FLUSH_SECONDS = 1.0  # that the end waits for a reader of the log


@contextmanager
def server_log() -> Iterator[LogSink]:
    """Standard error as the log of a server, of `logging` and of Python's warnings, too; flushed at the end."""
    log = LogSink(None if sys.stderr is None else sys.stderr.fileno())
    logging.basicConfig(handlers=[SinkHandler(log)], format="%(message)s")
    logging.captureWarnings(True)
    try:
        yield log
    finally:
        log.flush(FLUSH_SECONDS)


def run_server(serving: Coroutine[object, object, None], log: LogSink) -> NoReturn:
    """Run a server, and end the process at once when it is over.

    An abandoned load, a tick that hangs, or JAX in a mesh of several processes would delay a normal exit.
    """
    from medha_jax.server.server import EngineEndedError  # loads gRPC; not for an exit code

    code = 0
    try:
        asyncio.run(serving)
    except EngineEndedError:
        code = ENGINE_ENDED
    with contextlib.suppress(OSError):  # who reads standard output may be gone
        sys.stdout.flush()
    log.flush(FLUSH_SECONDS)
    os._exit(code)


def dying(log: LogSink, fault: str) -> None:
    """Say why the engine cannot go on, and make sure that the process ends soon: for `serve`."""
    log.write(f"error: {fault}")
    end = threading.Timer(LAST_SECONDS, os._exit, (ENGINE_ENDED,))
    end.daemon = True
    end.start()
