import asyncio
import contextlib
import threading

import pytest

from benchmarks.completions_server import Server
from medha_jax.bench import load_generator
from tests.server.processes import SIMULATED, ServerProcess


class Completions:
    """The small HTTP server, in a thread of its own."""

    def __init__(self, tick_s=0.002):
        self.server = Server(tick_s)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        serving = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self.server.connected, "127.0.0.1", 0), self._loop
        )
        self._serving = serving.result(10)
        self.address = "{}:{}".format(*self._serving.sockets[0].getsockname())

    def url(self, fault=""):
        return f"http://{self.address}/{fault}/v1" if fault else f"http://{self.address}"

    def close(self):
        self._loop.call_soon_threadsafe(self._serving.close)
        asyncio.run_coroutine_threadsafe(cancel_all(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


async def cancel_all():
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.fixture(autouse=True)
def _hurried(monkeypatch):
    """Runs begin a moment after they are asked for, so that many of them do not take half a second each."""
    monkeypatch.setattr(load_generator, "LEAD_S", 0.05)


@pytest.fixture(scope="session")
def completions():
    server = Completions()
    yield server
    server.close()


@pytest.fixture(scope="session")
def simulated():
    """A medha-jax server whose ticks take 2 ms and compute nothing."""
    options = ["--tick-ms", 2, "--slots", 64, "--max-queue", 128, "--context", 200_000]
    with ServerProcess(*SIMULATED, *options) as started:
        yield started
