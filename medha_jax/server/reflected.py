"""gRPC's reflection: what the server's services and messages are."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
from grpc import aio
from grpc_reflection.v1alpha import reflection, reflection_pb2

from medha_jax.server.connections import Connections, Context
from medha_jax.server.receiving import NoMessageError, Receiving, no_message
from medha_jax.server.refusal import Refusal
from medha_jax.server.request_parser import parse


def add_reflection(
    server: aio.Server, services: Sequence[str], receiving: Receiving, seconds: float, connections: Connections
) -> None:
    """Tell a server's callers about services. Each of their messages has a turn, and must come within `seconds`.

    `connections` are told each call.
    """
    servicer = reflection.aio.ReflectionServicer(services)

    async def asked(messages: AsyncIterator[bytes]) -> AsyncIterator[reflection_pb2.ServerReflectionRequest]:
        while True:
            async with receiving.message(messages, asyncio.get_running_loop().time() + seconds) as data:
                if data is None:
                    return
                request = parse(reflection_pb2.ServerReflectionRequest, data)
            yield request

    async def answer(messages: AsyncIterator[bytes], context: Context) -> None:
        try:
            with connections.call(context):
                async for answered in servicer.ServerReflectionInfo(asked(messages), context):
                    await context.write(answered)
        except NoMessageError:
            await no_message(seconds).abort(context)
        except Refusal as refusal:
            await refusal.abort(context)

    method: grpc.RpcMethodHandler[Any, Any] = grpc.stream_stream_rpc_method_handler(
        answer, response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString
    )
    handler = grpc.method_handlers_generic_handler(reflection.SERVICE_NAME, {"ServerReflectionInfo": method})
    server.add_generic_rpc_handlers((handler,))
