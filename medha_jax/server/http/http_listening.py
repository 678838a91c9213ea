"""The HTTP server: its socket, how many connections it has, and how long one may be silent."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from medha_jax.net import listening_sockets
from medha_jax.server.http.errors import error_of, json_answer
from medha_jax.server.security import Secrets, server_context
from medha_jax.server.settings import ServerSettings

MOST_HEADER = 16384  # bytes of a request's first line, and of each header
CONTINUE = "100-continue"
MOST_SHOWN = 120  # characters of what the HTTP reader says
LAST_SECONDS = 1.0  # for answers that are being written when the server ends
STREAMS_FIRST_SECONDS = 1.0  # a stream that nobody reads ends before its connection does, and says why


class _Refused(asyncio.Protocol):
    """Closes a connection at once."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Close it."""
        assert isinstance(transport, asyncio.Transport)
        transport.abort()


class _HttpConnection(web.RequestHandler):
    """One connection. Belongs to the event loop.

    It is closed if it has made no request after `silent` seconds, which aiohttp does only after a first request, and
    if its client has taken nothing for `stalled` seconds although bytes wait. What is no HTTP is answered in OpenAI's
    form, and is no error for the log: anybody can send it.
    """

    def __init__(self, server: web.Server, silent: float, stalled: float, **options: Any) -> None:
        super().__init__(server, **options)
        self._silent, self._stalled = silent, stalled
        self._hearing: asyncio.TimerHandle | None = None
        self._taking: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for the first request."""
        super().connection_made(transport)
        assert isinstance(transport, asyncio.Transport)
        self._wire = transport  # `transport` is None while the connection closes, which needs a client that reads, too
        self._hearing = asyncio.get_running_loop().call_later(self._silent, self.force_close)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Let go of the timers, and so of what they hold."""
        self.heard()
        self._taken()
        super().connection_lost(exc)

    def heard(self) -> None:
        """Note that there was a request."""
        if self._hearing is not None:
            self._hearing.cancel()
            self._hearing = None

    def pause_writing(self) -> None:
        """Wait for the client to take what waits."""
        super().pause_writing()
        self._watch()

    def resume_writing(self) -> None:
        """The client has taken it."""
        self._taken()
        super().resume_writing()

    def handle_error(
        self, request: Any, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """The answer to what is no HTTP."""
        if not isinstance(exc, HttpProcessingError):
            answer: web.StreamResponse = super().handle_error(request, status, exc, message)
            return answer
        why = (message or "").partition("\n")[0].rstrip(":")[:MOST_SHOWN]
        answer = json_answer(error_of(f"the request is not HTTP/1.1 as it is read here: {why}", status), status)
        answer.force_close()
        return answer

    def log_exception(self, *args: Any, **kw: Any) -> None:
        """Log an error, but none in what a client sends, nor that it left.

        aiohttp finds the former in the rest of a refused body, too, and the latter where it asks for the body.
        """
        if not isinstance(kw.get("exc_info"), (HttpProcessingError, web.RequestPayloadError, ConnectionError)):
            super().log_exception(*args, **kw)

    def _watch(self) -> None:
        left = self._wire.get_write_buffer_size()
        self._taking = asyncio.get_running_loop().call_later(self._stalled, self._look, left)

    def _look(self, before: int) -> None:
        """Close the connection if its client has taken nothing since more bytes waited than before."""
        if self._wire.get_write_buffer_size() >= before:
            self._wire.abort()
        else:
            self._watch()

    def _taken(self) -> None:
        if self._taking is not None:
            self._taking.cancel()
            self._taking = None


@web.middleware
async def _hear(request: web.Request, handler: Any) -> web.StreamResponse:
    """Tell a connection that it has made a request."""
    connection = request.protocol
    assert isinstance(connection, _HttpConnection)
    connection.heard()
    answer: web.StreamResponse = await handler(request)
    return answer


async def _answered(handler: Any, request: web.Request) -> web.StreamResponse:
    """Refuse an unknown `Expect` in OpenAI's form. aiohttp does it in text, and fails where it is no UTF-8."""
    expected = request.headers.get("Expect", CONTINUE)
    if expected.lower() != CONTINUE:
        return json_answer(error_of(f"Expect is {expected[:MOST_SHOWN]!r}; allowed is {CONTINUE}", 417), 417)
    answer: web.StreamResponse = await handler(request)
    return answer


@contextlib.asynccontextmanager
async def listening(
    app: web.Application, settings: ServerSettings, port: int, secrets: Secrets, most: int | None
) -> AsyncIterator[int]:
    """Answer requests while the block runs; gives the port. Port 0 takes a free one. None is no limit of connections.

    Raises:
        OSError, UnicodeError: the address is in use, not this machine's, or no address.
    """
    listeners = listening_sockets(settings.host, port)
    app.middlewares.insert(0, _hear)
    # who goes away wants no answer
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=LAST_SECONDS)
    await runner.setup()
    made_by = runner.server
    assert made_by is not None
    made_by.request_handler = partial(_answered, made_by.request_handler)
    made = partial(
        _HttpConnection,
        made_by,
        settings.handshake_seconds,
        settings.limits.write_seconds + STREAMS_FIRST_SECONDS,
        loop=asyncio.get_running_loop(),
        access_log=None,
        keepalive_timeout=settings.idle_seconds,
        max_line_size=MOST_HEADER,
        max_field_size=MOST_HEADER,
    )
    context = None if secrets.certificates is None else server_context(secrets.certificates)
    servers = [
        await asyncio.get_running_loop().create_server(
            lambda: _Refused() if most is not None and len(made_by.connections) >= most else made(),
            sock=listener,
            ssl=context,
            ssl_handshake_timeout=None if context is None else settings.handshake_seconds,
        )
        for listener in listeners
    ]
    try:
        yield int(listeners[0].getsockname()[1])
    finally:
        for server in servers:
            server.close()
        await runner.cleanup()
