"""Connections of clients: which of them only waste the server's time, and how to close one.

gRPC for Python can neither close a connection nor reset a call, but a connection is a socket of this process.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from ipaddress import IPv6Address, ip_address
from typing import Any
from urllib.parse import unquote

from grpc import aio

WINDOW_SECONDS = 10.0  # in which calls are counted
MOST_FRUITLESS = 500  # of a connection in that time, if they are half of its calls
SOON_SECONDS = 1.0  # a call that is given up later was meant
MOST_KNOWN = 4096  # connections that are remembered; more cannot be open with few files
NO_DEADLINE = 10 * 365 * 86400.0  # seconds; gRPC reports centuries for a call without a deadline
FILES = "/dev/fd"
Context = Any  # aio.ServicerContext, whose methods have no types


@dataclass(eq=False)
class OpenCall:
    """A call that is being answered; `taken` says whether the server has work for it."""

    began: float
    taken: Callable[[], bool]


@dataclass
class _Counts:
    """A connection's calls: those that are open, and in a window of time all that ended and those without any use."""

    since: float
    ended: int = 0
    fruitless: int = 0
    closed: bool = False
    open: set[OpenCall] = field(default_factory=set)


class Connections:
    """Counts the calls of each connection, and closes one that does nothing but begin calls and give them up.

    A call is *fruitless* if its client gives it up within `SOON_SECONDS` and before the server took it, or if it has no
    token. A connection is closed if `MOST_FRUITLESS` of its calls in `WINDOW_SECONDS`, and half of all, are so. One is
    spared that carries a request which has run for longer: others may share it. Belongs to the event loop.

    Args:
        tell: takes a line for each connection that is closed.
        clock: in seconds.
    """

    def __init__(self, tell: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._tell, self._clock = tell, clock
        self._port = 0
        self._known: OrderedDict[str, _Counts] = OrderedDict()

    def serve_on(self, port: int) -> None:
        """Close only sockets of this port."""
        self._port = port

    @contextlib.contextmanager
    def call(self, context: Context, taken: Callable[[], bool] = lambda: False) -> Iterator[None]:
        """Count a call while it is being answered; `taken` says whether the server has work for it.

        Raises:
            asyncio.CancelledError: its connection was closed, so nobody waits for the answer.
        """
        peer = context.peer()
        counts = self._counts(peer)
        call, fruitless = OpenCall(self._clock(), taken), False
        counts.open.add(call)
        try:
            yield
        except (asyncio.CancelledError, aio.UsageError, aio.InternalError):
            soon = self._clock() < call.began + SOON_SECONDS
            fruitless = soon and not taken() and not expired(context)
            raise
        finally:
            counts.open.discard(call)
            self._note(peer, counts, fruitless)

    def without_token(self, peer: str) -> None:
        """Count a call without a token."""
        self._note(peer, self._counts(peer), True)

    def close(self, peer: str, why: str) -> bool:
        """Close a client's connection, with all its calls; returns whether there is one."""
        wanted = address_of(peer)
        files = list[str]()
        with contextlib.suppress(OSError):  # no descriptor is free to look
            files = os.listdir(FILES)
        if wanted is None or not any(self._close(int(name), wanted) for name in files):
            return False
        self._tell(f"closed the connection of {peer}: {why}")
        return True

    def _counts(self, peer: str) -> _Counts:
        now = self._clock()
        self._forget(now)
        counts = self._known.get(peer)
        if counts is None:
            counts = self._known[peer] = _Counts(now)
            if len(self._known) > MOST_KNOWN:
                self._known.popitem(last=False)
        elif counts.closed:
            raise asyncio.CancelledError
        return counts

    def _forget(self, now: float) -> None:
        """Forget connections whose window is over; one with an open call begins a new window."""
        while self._known:
            peer, counts = next(iter(self._known.items()))  # the oldest window
            if now < counts.since + WINDOW_SECONDS:
                return
            del self._known[peer]
            if counts.open:
                counts.since, counts.ended, counts.fruitless = now, 0, 0
                self._known[peer] = counts

    def _note(self, peer: str, counts: _Counts, fruitless: bool) -> None:
        counts.ended += 1
        counts.fruitless += fruitless
        few = counts.fruitless < MOST_FRUITLESS or 2 * counts.fruitless < counts.ended
        if counts.closed or few or not fruitless or self._useful(counts):
            return
        counts.closed = self.close(peer, f"{counts.fruitless} of its last {counts.ended} calls came to nothing")
        counts.ended = counts.fruitless = 0

    def _useful(self, counts: _Counts) -> bool:
        """Whether a request of a connection has run for a while."""
        soon = self._clock() - SOON_SECONDS
        return any(call.taken() and call.began < soon for call in counts.open)

    def _close(self, number: int, wanted: tuple[str, int]) -> bool:
        """Close the file of a number if it is the socket of a client; returns whether it is."""
        try:
            copy = os.dup(number)  # gRPC may close its own at any moment, and another file get the number
        except OSError:
            return False
        if not stat.S_ISSOCK(os.fstat(copy).st_mode):
            os.close(copy)
            return False
        with contextlib.closing(socket.socket(fileno=copy)) as ours, contextlib.suppress(OSError):
            if ours.family not in (socket.AF_INET, socket.AF_INET6) or ours.getsockname()[1] != self._port:
                return False
            if plain_address(*ours.getpeername()[:2]) == wanted:
                ours.shutdown(socket.SHUT_RDWR)  # gRPC sees the end
                return True
        return False


def address_of(peer: str) -> tuple[str, int] | None:
    """Host and port of a client, as gRPC tells them: `ipv4:127.0.0.1:80` or `ipv6:%5B::1%5D:80`; None for others."""
    family, _, where = unquote(peer).partition(":")
    host, _, port = where.rpartition(":")
    if family not in ("ipv4", "ipv6") or not port.isdecimal():
        return None
    return plain_address(host.strip("[]"), int(port))


def plain_address(host: str, port: int) -> tuple[str, int]:
    """An address in its one form, as gRPC tells it: IPv4 within IPv6 is IPv4."""
    address = ip_address(host.partition("%")[0])
    inner = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return str(inner or address), port


def expired(context: Context) -> bool:
    """Whether the deadline of a call has passed."""
    remaining = time_remaining(context)
    return remaining is not None and remaining <= 0


def time_remaining(context: Context) -> float | None:
    """Seconds that the caller still waits; None without a deadline."""
    remaining: float | None = context.time_remaining()
    return None if remaining is None or remaining > NO_DEADLINE else remaining
