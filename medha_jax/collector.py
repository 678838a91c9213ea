"""Python's garbage collector, kept away from what lives as long as the process. No JAX.

A full collection walks through every object that it knows, and stops all threads meanwhile: 0.1 to 0.3 s with a model
loaded, in the middle of a tick.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


def exempt_live_objects() -> None:
    """Collect once, and leave out of later collections whatever is alive now. It is freed by its last reference only.

    Call it when something large is complete: a server that is loaded, the last program that is compiled.
    """
    gc.collect()
    gc.freeze()


@contextmanager
def calm_collector() -> Iterator[None]:
    """Within the block, collections are rare and short: objects that are alive at its start are left out of them."""
    before = gc.get_threshold()
    exempt_live_objects()
    gc.set_threshold(10_000, 20, 50)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()
