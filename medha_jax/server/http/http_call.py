"""A call over HTTP, with what `Calls` and `Inference` need of a call."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from grpc import StatusCode

from medha_jax.server.connections import plain_address
from medha_jax.server.http.errors import TooLargeRefusal
from medha_jax.server.refusal import Refusal, invalid, retry_seconds


class HttpCall:
    """Stands where gRPC's context of a call does. Belongs to the event loop.

    Args:
        request: that is answered.
        ends: when the client stops waiting, in seconds of the loop; None for never.

    Attributes:
        refusal: what ended the call; the first one, if it carries several prompts.
    """

    def __init__(self, request: web.Request, ends: float | None = None) -> None:
        self._peer, self._ends = _peer_of(request), ends
        self.refusal: Refusal | None = None

    def peer(self) -> str:
        """Address of the client, written as gRPC does."""
        return self._peer

    def time_remaining(self) -> float | None:
        """Seconds that the client still waits; None without a deadline."""
        return None if self._ends is None else self._ends - asyncio.get_running_loop().time()

    async def abort(self, code: StatusCode, message: str, trailers: Sequence[tuple[str, bytes]] = ()) -> None:
        """End the call with a status."""
        self.refusal = self.refusal or Refusal(code, message, retry_seconds(trailers))


class HttpBody:
    """The body of a request, of at most so many bytes, as the one message of its call.

    It is no generator: one that is not read to its end is closed by the garbage collector, in whatever that interrupts.
    """

    def __init__(self, request: web.Request, most: int) -> None:
        self._request: web.Request | None = request
        self._most = most

    def __aiter__(self) -> HttpBody:
        return self

    async def __anext__(self) -> bytes:
        """The bytes, once.

        Raises:
            Refusal: there are more, or they are not sent as HTTP says.
        """
        request, self._request = self._request, None
        if request is None:
            raise StopAsyncIteration
        try:
            return await _read(request, self._most)
        except (web.RequestPayloadError, HttpProcessingError) as error:
            raise invalid(f"the body cannot be read: {str(error).rpartition('  ')[2]}") from None  # without its status
        except ConnectionError:  # the client is gone
            raise asyncio.CancelledError from None


async def _read(request: web.Request, most: int) -> bytes:
    """The bytes of a body. `request.read()` would keep them as long as the request, and so its answer, lasts."""
    body = bytearray()
    async for chunk in request.content.iter_any():
        body += chunk
        if len(body) > most:
            raise TooLargeRefusal(most)
    return bytes(body)


def _peer_of(request: web.Request) -> str:
    address = None if request.transport is None else request.transport.get_extra_info("peername")
    if not address:
        return "unknown"
    host, port = plain_address(*address[:2])
    return f"ipv6:[{host}]:{port}" if ":" in host else f"ipv4:{host}:{port}"
