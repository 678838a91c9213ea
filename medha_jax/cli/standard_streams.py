"""Standard input, output and error: closed ones at the start, results, and readers that leave."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO


def open_closed_streams() -> None:
    """Give closed standard streams a file, so that nothing else gets their numbers and words.

    Without it, what is said on a closed standard error appears between the words on standard output, and the next
    file that is opened may get what libraries write to number 2. Reading finds the end of the file. Writing to
    standard output fails, because an answer must not get lost; what is said on standard error is dropped.
    """
    for number, name, flags in ((0, "stdin", os.O_RDONLY), (1, "stdout", os.O_RDONLY), (2, "stderr", os.O_WRONLY)):
        if getattr(sys, name) is not None:
            continue
        opened = os.open(os.devnull, flags)  # the lowest free number
        if opened != number:
            os.dup2(opened, number)
            os.close(opened)
        setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w", encoding="utf-8", closefd=False))


def written_out() -> OSError | None:
    """Write what is still buffered for standard output; returns why that is impossible, None if its reader has left."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        drop_output()
    except OSError as error:
        drop_output(sys.stdout)
        return error
    return None


@contextmanager
def reader_may_leave() -> Iterator[None]:
    """Stop quietly when the reader of a pipe is gone (`medha-jax … | head`)."""
    try:
        yield
    except BrokenPipeError:
        drop_output()


def print_result(json: bool, stated: Callable[[], str], print_tables: Callable[[], None]) -> None:
    """Print a command's result, `stated` as one line of JSON, or as tables. Its reader may leave."""
    with reader_may_leave():
        if json:
            print(stated(), flush=True)
        else:
            print_tables()


def drop_output(*streams: TextIO) -> None:
    """Drop what is still buffered in streams, both if none is named.

    Python flushes them again at exit, and that would fail the same way.
    """
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in streams or (sys.stdout, sys.stderr):
        os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
