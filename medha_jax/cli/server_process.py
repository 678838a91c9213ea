"""A server as a process: how it ends, and with which exit code."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Coroutine
from typing import NoReturn

from medha_jax.cli.exit_codes import ENGINE_ENDED
from medha_jax.cli.opening import tell

LAST_SECONDS = 15.0  # from the loss of the engine to the end of the process, whatever it still does


def dying(fault: str) -> None:
    """Say why the engine cannot go on, and make sure that the process ends soon: for `serve`."""
    tell(f"error: {fault}")
    end = threading.Timer(LAST_SECONDS, os._exit, (ENGINE_ENDED,))
    end.daemon = True
    end.start()


def run_server(serving: Coroutine[object, object, None]) -> NoReturn:
    """Run a server, and end the process at once when it is over.

    An abandoned load, a tick that hangs, or JAX in a mesh of several processes would delay a normal exit.
    """
    from medha_jax.server.server import EngineEndedError

    code = 0
    try:
        asyncio.run(serving)
    except EngineEndedError:
        code = ENGINE_ENDED
    sys.stdout.flush()
    os._exit(code)
