"""A server inside the test's process, with a simulated mesh, on a real socket."""

import asyncio
import threading
from contextlib import contextmanager

from benchmarks.simulated_server import VOCAB, RealClock, SimulatedLoader, parsed
from medha_jax.config import BUNDLED_MODEL
from medha_jax.plan import SamplingParams
from medha_jax.server.request_parser import ServedModel
from medha_jax.server.server import serve
from medha_jax.text import Tokenizer


class CountingLoader(SimulatedLoader):
    """Counts what it is asked for; has the loop of its server, and the engine's service once it is loaded."""

    loads = closes = 0
    loop = service = None

    def load(self, listener, on_tick, ask_to_stop):
        self.loads += 1
        self.service = super().load(listener, on_tick, ask_to_stop)
        return self.service

    def close(self):
        self.closes += 1


def embedded(context=512):
    """A model and its loader, as a program that embeds a server makes them."""
    given = parsed(["--tick-ms", "1", "--slots", "4", "--context", str(context)])
    tokenizer = Tokenizer.from_directory(BUNDLED_MODEL)
    model = ServedModel("simulated", tokenizer, VOCAB, given.context, SamplingParams(temperature=0))
    return model, CountingLoader(given, tokenizer, RealClock())


@contextmanager
def running(settings, context=512):
    """Serve in a thread; gives the lines that are told, the loader, and the announced address."""
    model, loader = embedded(context)
    ready, ended, lines = threading.Event(), [], []
    loop, stopping = asyncio.new_event_loop(), asyncio.Event()
    loader.loop = loop

    def announce(line):
        lines.append(line)
        ready.set()

    def run():
        try:
            loop.run_until_complete(
                serve(settings, model, loader, announce=announce, tell=lines.append, stopping=stopping)
            )
        except Exception as error:
            ended.append(error)
        finally:
            ready.set()

    thread = threading.Thread(target=run)
    thread.start()
    assert ready.wait(60) and not ended, ended
    try:
        yield lines, loader
    finally:
        loop.call_soon_threadsafe(stopping.set)
        thread.join(30)
        loop.close()
    assert not thread.is_alive() and not ended
