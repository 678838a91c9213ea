"""The simulated server with a defect, which begins when a request with the seed `POISON` is admitted.

python -m tests.server.broken_server DEFECT [options of benchmarks.simulated_server]
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from typing import Any

from benchmarks import simulated_server
from medha_jax.server import stopping

POISON = 99
LAST_SECONDS = 4  # as `stopping.LAST_SECONDS`, which is too long for a test


class Panic(BaseException):
    """As a panic of Rust is in Python: no Exception."""


class BrokenLoader(simulated_server.SimulatedLoader):
    """Loads an engine with a defect."""

    defect: str
    loop: asyncio.AbstractEventLoop

    def load(self, listener: Any, on_tick: Any, ask_to_stop: Any) -> Any:
        began = threading.Event()

        def listen(events: Any) -> None:
            if self.defect == "listener" and began.is_set():
                raise ValueError("nobody is there")
            listener(events)

        service = super().load(listen, on_tick, ask_to_stop)
        engine = service._engine
        executor, scheduler = engine._executor, engine._scheduler
        admit, collect, plan = executor.admit, executor.collect, scheduler.plan

        def admitting(admission: Any) -> None:
            if admission.sampling.seed == POISON:
                began.set()
                if self.defect == "loop":
                    self.loop.call_soon_threadsafe(time.sleep, 600)
            admit(admission)

        def collecting(handle: Any) -> Any:
            if began.is_set():
                if self.defect == "hang":
                    threading.Event().wait()
                if self.defect == "panic":
                    raise Panic("called `Option::unwrap()` on a `None` value")
                if self.defect == "collect":
                    raise ZeroDivisionError("a tick fails")
            return collect(handle)

        def planning(now: float) -> Any:
            if began.is_set() and self.defect == "plan":
                raise KeyError("a defect in plan()")
            return plan(now)

        executor.admit, executor.collect, scheduler.plan = admitting, collecting, planning
        return service


def main() -> None:
    BrokenLoader.defect = sys.argv.pop(1)
    stopping.LAST_SECONDS = LAST_SECONDS
    listen = stopping.Stopping.listen

    def listening(self: stopping.Stopping) -> None:
        BrokenLoader.loop = self._loop
        listen(self)

    stopping.Stopping.listen = listening
    simulated_server.main(BrokenLoader)


if __name__ == "__main__":
    main()
