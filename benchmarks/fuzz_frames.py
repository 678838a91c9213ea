"""Broken HTTP/2: connections that send damaged frames, half a frame, or no HTTP at all; reproducible from a seed."""

from __future__ import annotations

import contextlib
import random
import socket

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
# DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION, and none
KINDS = (*range(10), 11, 255)
LENGTHS = (0, 1, 4, 5, 6, 8, 9, 40, 16_384)
CONNECT_SECONDS = 10.0
READ_SECONDS = 0.02


def framed(kind: int, flags: int, stream: int, payload: bytes = b"", stated: int | None = None) -> bytes:
    """A frame; its header states the payload's length, or another one."""
    length = len(payload) if stated is None else stated
    return length.to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def frame(draw: random.Random) -> bytes:
    """One frame with a random header, whose stated length is sometimes wrong."""
    payload = draw.randbytes(draw.choice(LENGTHS))
    stated = len(payload) if draw.random() < 0.8 else draw.choice((0, 2**24 - 1, len(payload) + 1))
    kind, flags = draw.choice(KINDS), draw.choice((0, 1, 4, 5, 8, 255))
    stream = draw.choice((0, 1, 2, 3, 2**31 - 1, 2**32 - 1))
    return framed(kind, flags, stream, payload, stated)


def conversation(draw: random.Random) -> bytes:
    """All that one connection sends."""
    begin = draw.choices((PREFACE + frame(random.Random(0)), PREFACE, draw.randbytes(40), b""), (70, 20, 5, 5))[0]
    sent = begin + b"".join(frame(draw) for _ in range(draw.randrange(12)))
    return sent[: draw.randrange(len(sent) + 1)] if draw.random() < 0.3 else sent


def attack_frames(address: str, connections: int, seed: int) -> int:
    """Open connections one after the other and send to each; returns the bytes that were sent."""
    host, port = address.rsplit(":", 1)
    draw, total = random.Random(seed), 0
    for _ in range(connections):
        sent = conversation(draw)
        may_close = contextlib.suppress(ConnectionError, TimeoutError)  # the server, at any byte
        with may_close, socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS) as connected:
            connected.sendall(sent)
            total += len(sent)
            connected.settimeout(READ_SECONDS)
            while connected.recv(65_536):
                pass
    return total
