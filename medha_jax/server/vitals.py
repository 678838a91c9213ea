"""Health of a server, as `grpc.health.v1` tells it under three names."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
from grpc import StatusCode, aio
from grpc_health.v1 import health
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from medha_jax.server.calls import Context
from medha_jax.server.receiving import NoMessageError, Receiving
from medha_jax.server.refusal import Refusal, invalid, too_busy
from medha_jax.server.request_parser import parse

LIVENESS = "liveness"
SECONDS = 5.0  # that a message may take
MOST_RECEIVED = 64  # messages at once
MOST_BYTES = 2**28  # of them, about


class Vitals:
    """Answers health checks, apart from all other calls: no token, no limit of theirs. Belongs to the event loop.

    Args:
        service: name of the service. It and the empty name are SERVING while new requests are taken. `LIVENESS` is
            SERVING as long as the process can do its work, also while it loads or drains.
        most_watches: at once.
        message_bytes: the size of the largest message.
    """

    def __init__(self, service: str, most_watches: int, message_bytes: int) -> None:
        self._ready_names, self._most_watches = ("", service), most_watches
        self._receiving = Receiving(max(4, min(MOST_RECEIVED, MOST_BYTES // message_bytes)))
        self._states: dict[str, HealthCheckResponse.ServingStatus] = {}
        self._watchers: set[asyncio.Event] = set()

    def add_to(self, server: aio.Server) -> None:
        """Answer the calls of a server."""
        answer = HealthCheckResponse.SerializeToString
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "Check": grpc.stream_unary_rpc_method_handler(self._check, response_serializer=answer),
            "Watch": grpc.stream_stream_rpc_method_handler(self._watch, response_serializer=answer),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(health.SERVICE_NAME, handlers),))

    def tell(self, ready: bool, alive: bool = True) -> None:
        """Answer so from now on, also who watches."""
        for name in self._ready_names:
            self._states[name] = _status(ready)
        self._states[LIVENESS] = _status(alive)
        for changed in self._watchers:
            changed.set()

    async def _check(self, messages: AsyncIterator[bytes], context: Context) -> HealthCheckResponse:
        state = self._states.get(await self._name(messages, context))
        if state is None:
            await context.abort(
                StatusCode.NOT_FOUND, f"no such service; known are {', '.join(map(repr, self._states))}"
            )
        return HealthCheckResponse(status=state)

    async def _watch(self, messages: AsyncIterator[bytes], context: Context) -> None:
        name = await self._name(messages, context)
        if len(self._watchers) >= self._most_watches:
            await _refused(
                context, too_busy(f"{self._most_watches} calls watch; allowed are {self._most_watches}; use Check")
            )
        changed, told = asyncio.Event(), None
        self._watchers.add(changed)
        try:
            while True:
                changed.clear()
                state = self._states.get(name, HealthCheckResponse.SERVICE_UNKNOWN)
                if state != told:
                    await context.write(HealthCheckResponse(status=state))
                told = state
                await changed.wait()
        finally:
            self._watchers.discard(changed)

    async def _name(self, messages: AsyncIterator[bytes], context: Context) -> str:
        """The service that is asked for; the call ends if no message says that in time."""
        try:
            async with self._receiving.message(messages, asyncio.get_running_loop().time() + SECONDS) as data:
                if data is None:
                    raise invalid("the call has no message; send a HealthCheckRequest")
                return str(parse(HealthCheckRequest, data).service)
        except NoMessageError:
            await _refused(context, Refusal(StatusCode.DEADLINE_EXCEEDED, f"no message came within {SECONDS:g} s"))
        except Refusal as refusal:
            await _refused(context, refusal)
        raise AssertionError("abort raises")


async def _refused(context: Context, refusal: Refusal) -> None:
    await context.abort(refusal.code, refusal.message, refusal.trailers())


def _status(good: bool) -> HealthCheckResponse.ServingStatus:
    return HealthCheckResponse.SERVING if good else HealthCheckResponse.NOT_SERVING
