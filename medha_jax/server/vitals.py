"""Health of a server, as `grpc.health.v1` tells it under three names."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
from grpc import StatusCode, aio
from grpc_health.v1 import health
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from medha_jax.server.connections import Connections, Context
from medha_jax.server.receiving import NoMessageError, Receiving, no_message
from medha_jax.server.refusal import Refusal, invalid, too_busy
from medha_jax.server.request_parser import parse

LIVENESS = "liveness"
SECONDS = 5.0  # that a message may take
MOST_RECEIVED = 64  # messages at once
MOST_BYTES = 2**28  # of them, about


@dataclass(eq=False)
class _Watcher:
    """Who watches; told when something has changed, or when it is to end."""

    peer: str
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    ended: bool = False


class Vitals:
    """Answers health checks, apart from all other calls: no token, no limit of theirs. Belongs to the event loop.

    Args:
        service: name of the service. It and the empty name are SERVING while new requests are taken. `LIVENESS` is
            SERVING as long as the process can do its work, also while it loads or drains.
        most_watches: at once.
        message_bytes: the size of the largest message.
        connections: are told each call.
    """

    def __init__(self, service: str, most_watches: int, message_bytes: int, connections: Connections) -> None:
        self._ready_names, self._most_watches, self._connections = ("", service), most_watches, connections
        self._receiving = Receiving(max(4, min(MOST_RECEIVED, MOST_BYTES // message_bytes)))
        self._states: dict[str, HealthCheckResponse.ServingStatus] = {}
        self._watchers: dict[_Watcher, None] = {}  # oldest first

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
        for watcher in self._watchers:
            watcher.changed.set()

    async def _check(self, messages: AsyncIterator[bytes], context: Context) -> HealthCheckResponse:
        with self._connections.call(context):
            state = self._states.get(await self._name(messages, context))
            if state is None:
                await context.abort(
                    StatusCode.NOT_FOUND, f"no such service; known are {', '.join(map(repr, self._states))}"
                )
            return HealthCheckResponse(status=state)

    async def _watch(self, messages: AsyncIterator[bytes], context: Context) -> None:
        with self._connections.call(context):
            name = await self._name(messages, context)
            watcher = _Watcher(context.peer())
            if len(self._watchers) >= self._most_watches:
                other = one_too_many(watcher.peer, [other.peer for other in self._watchers])
                if other is None:
                    await self._too_many().abort(context)
                ending = next(one for one in reversed(self._watchers) if one.peer == other)
                del self._watchers[ending]
                ending.ended = True
                ending.changed.set()
            self._watchers[watcher] = None
            try:
                await self._watched(name, watcher, context)
            finally:
                self._watchers.pop(watcher, None)

    async def _watched(self, name: str, watcher: _Watcher, context: Context) -> None:
        told = None
        while not watcher.ended:
            watcher.changed.clear()
            state = self._states.get(name, HealthCheckResponse.SERVICE_UNKNOWN)
            if state != told:
                await context.write(HealthCheckResponse(status=state))
            told = state
            await watcher.changed.wait()
        await self._too_many().abort(context)

    def _too_many(self) -> Refusal:
        return too_busy(f"{self._most_watches} calls watch; allowed are {self._most_watches}; use Check")

    async def _name(self, messages: AsyncIterator[bytes], context: Context) -> str:
        """The service that is asked for; the call ends if no message says that in time."""
        try:
            async with self._receiving.message(messages, asyncio.get_running_loop().time() + SECONDS) as data:
                if data is None:
                    raise invalid("the call has no message; send a HealthCheckRequest")
                return str(parse(HealthCheckRequest, data).service)
        except NoMessageError:
            await no_message(SECONDS).abort(context)
        except Refusal as refusal:
            await refusal.abort(context)
        raise AssertionError("abort raises")


def one_too_many(peer: str, watching: Sequence[str]) -> str | None:
    """The peer, of those that watch, of which one gives way to a new one; None if the new one is to be refused.

    A host with fewer calls takes a place from the one with the most, and a connection does so among those of its host.
    So each has its share, and who gave way gains nothing by coming again.
    """
    hosts, own = Counter(map(_host, watching)), _host(peer)
    host, most = hosts.most_common(1)[0]
    elsewhere = most > hosts[own] + 1
    peers = Counter(other for other in watching if _host(other) == (host if elsewhere else own))
    if not peers:
        return None
    largest, calls = peers.most_common(1)[0]
    return largest if elsewhere or calls > peers[peer] + 1 else None


def _host(peer: str) -> str:
    """A peer without its port."""
    return peer.rpartition(":")[0]


def _status(good: bool) -> HealthCheckResponse.ServingStatus:
    return HealthCheckResponse.SERVING if good else HealthCheckResponse.NOT_SERVING
