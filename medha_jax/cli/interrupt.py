"""Ctrl-C without exceptions at arbitrary places, and hangups that end no server.

A KeyboardInterrupt may be dropped or turned into another error if Python raises it during JAX's import or in its
garbage collection callback. So a signal either ends the process or is only noted.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType

from medha_jax.cli.exit_codes import FAILED, INTERRUPTED


def leave(number: int, frame: FrameType | None) -> None:
    """End the process at once with 130: a handler of signals."""
    if sys.stderr.isatty():
        os.write(sys.stderr.fileno(), b"\x1b[?25h")  # show the cursor again, which a progress bar hides
    os._exit(INTERRUPTED)


def leave_on_interrupt() -> None:
    """Make Ctrl-C end the process at once with 130: for work that leaves nothing behind."""
    # A shell starts background jobs with SIGINT ignored; keep that.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, leave)


def outlive_hangups() -> None:
    """Make SIGHUP end nothing: for servers, whose streams it must not cut. A running server reads files again."""
    # a handler, because programs that are started would inherit that it is ignored
    signal.signal(signal.SIGHUP, lambda number, frame: None)


def asked_to_stop() -> threading.Event:
    """An event that SIGTERM or Ctrl-C sets; a second one of either ends the process at once. For the main thread.

    Another thread hears of them, because the main thread may be in native code that waits for other processes.
    """
    asked, heard = threading.Event(), os.pipe()
    os.set_blocking(heard[1], False)
    signal.set_wakeup_fd(heard[1], warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT):
        if signal.getsignal(number) is not signal.SIG_IGN:  # a shell's background jobs ignore Ctrl-C
            signal.signal(number, lambda number, frame: None)

    def listen() -> None:
        while True:
            (number,) = os.read(heard[0], 1)
            if number in (signal.SIGTERM, signal.SIGINT):
                if asked.is_set():
                    os._exit(INTERRUPTED if number == signal.SIGINT else FAILED)
                asked.set()

    threading.Thread(target=listen, daemon=True).start()
    return asked


@contextmanager
def handled(numbers: Iterable[int], handler: Callable[[int, FrameType | None], None] | None) -> Iterator[list[int]]:
    """Handle signals in the block, and as before after it, except those that this process ignores.

    Yields:
        The signals that are not ignored; without a handler, the block handles them itself.
    """
    before = {number: signal.getsignal(number) for number in numbers}
    before = {number: old for number, old in before.items() if old is not signal.SIG_IGN}
    for number in before:
        if handler is not None:
            signal.signal(number, handler)
    try:
        yield list(before)
    finally:
        for number, old in before.items():
            signal.signal(number, old)


@contextmanager
def noted_interrupts() -> Iterator[Callable[[], None]]:
    """Note Ctrl-C in the block; a second one ends the process at once.

    Yields:
        A function to call wherever the work can stop.

    Raises:
        KeyboardInterrupt: from that function, after a Ctrl-C.
    """
    noted = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal noted
        if noted:
            leave(number, frame)
        noted = True

    def check() -> None:
        if noted:
            raise KeyboardInterrupt

    with handled([signal.SIGINT], note):
        yield check
