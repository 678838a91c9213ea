from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import threading
import time

from medha_jax.server.log_sink import LogSink, SinkHandler


def test_lines_come_whole_and_in_order() -> None:
    reading, writing = os.pipe()
    sink = LogSink(writing)

    def write(own: int) -> None:
        for count in range(500):
            sink.write(f"{own} {count} \u00e9\ud800")

    threads = [threading.Thread(target=write, args=(own,)) for own in range(4)]
    got: list[str] = []

    def read() -> None:
        with os.fdopen(reading, encoding="utf-8") as lines:
            got.extend(lines)

    reader = threading.Thread(target=read)
    for thread in (reader, *threads):
        thread.start()
    for thread in threads:
        thread.join()
    assert sink.flush(10)
    os.close(writing)
    reader.join(10)
    assert sink.dropped == 0
    for own in range(4):
        assert [line for line in got if line.startswith(f"{own} ")] == [
            f"{own} {count} \u00e9\\ud800\n" for count in range(500)
        ]


def test_nobody_waits_for_a_reader_that_stands_still() -> None:
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    sink = LogSink(writing, most_waiting=100)
    began = time.monotonic()
    for _ in range(10_000):
        sink.write("a line of the log " * 10)
    assert time.monotonic() - began < 2
    assert not sink.flush(0.05)
    dropped = sink.dropped
    assert 9_000 < dropped < 10_000
    os.set_blocking(reading, False)  # between a last write and the end of it, there is nothing to read
    got, done = 0, False
    while not done:
        done = sink.flush(0.001)  # it goes on where the reader does; the pipe is read once more after that
        with contextlib.suppress(BlockingIOError):
            while more := len(os.read(reading, 2**16)):
                got += more
    assert got == (10_000 - dropped) * len("a line of the log " * 10 + "\n") and sink.dropped == dropped
    os.close(reading)
    os.close(writing)


def test_what_cannot_be_written_is_counted_and_raises_nothing() -> None:
    reading, broken = os.pipe()
    os.close(reading)
    full = os.open("/dev/full", os.O_WRONLY)
    for descriptor in (broken, full, None):
        sink = LogSink(descriptor)
        for _ in range(300):
            sink.write("a line")
        assert sink.flush(10)
        assert sink.dropped == 300
    os.close(broken)
    os.close(full)


def test_a_descriptor_that_does_not_block_loses_nothing() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    sink = LogSink(writing)
    for _ in range(2000):
        sink.write("x" * 99)
    got = 0
    while got < 200_000:
        got += len(os.read(reading, 2**16))
    assert sink.flush(10) and (got, sink.dropped) == (200_000, 0)
    os.close(reading)
    os.close(writing)


def test_records_of_logging_go_the_same_way() -> None:
    reading, writing = os.pipe()
    sink = LogSink(writing)
    logger = logging.Logger("a part")
    logger.addHandler(SinkHandler(sink))
    logger.error("a defect in %s", "plan()")
    logger.error("no such argument: %d", "x")
    assert sink.flush(10)
    text = os.read(reading, 2**16).decode()
    assert text == "a defect in plan()\na record of a part cannot be formatted: 'no such argument: %d'\n"
    os.close(reading)
    os.close(writing)
