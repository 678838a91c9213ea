"""A client for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import Any, TypeVar

from google.protobuf.message import Message
from grpc import aio

from medha_jax.client.answers import Event, LoadInfo, ModelInfo, event_from, load_from, model_from
from medha_jax.client.connection import SERVICE, Connection, Settings, part_messages, request_message
from medha_jax.client.errors import ServerError, error_from
from medha_jax.client.sync import LONG_PROMPT
from medha_jax.protos import inference_pb2 as pb

M = TypeVar("M", bound=Message)


class AsyncClient:
    """Talks to a server from one event loop. Close it, or use it in an `async with` block.

    >>> async with AsyncClient("127.0.0.1:9320") as client:
    ...     async for event in client.generate("import unittest", max_tokens=40):
    ...         if isinstance(event, Delta):
    ...             print(event.text, end="")

    Args:
        server: HOST:PORT, or a `Connection` where TLS or a token is needed.
    """

    def __init__(self, server: str | Connection) -> None:
        self._connection = Connection(server) if isinstance(server, str) else server
        self._channel = self._connection.aio_channel()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End the connection, and what still runs over it."""
        await self._channel.close()

    def generate(
        self, prompt: str | Sequence[int], *, timeout: float | None = None, **settings: Any
    ) -> AsyncGenerator[Event, None]:
        """As `Client.generate`; what is not read to its end is cancelled when it is closed, dropped or cancelled.

        Args:
            prompt: text, or token ids.
            timeout: seconds after which the caller stops waiting; the server's scheduler knows of it.
            settings: fields of `Settings`.

        Raises:
            ServerError: the server refused the request, or ended it.
        """
        return self._events(prompt, Settings(**settings), timeout)

    async def tokenize(self, text: str, *, timeout: float | None = None) -> tuple[int, ...]:
        """As `Client.tokenize`."""
        answer = await self._call("Tokenize", pb.TokenizeRequest(text=text), pb.TokenizeResponse, timeout)
        return tuple(answer.token_ids)

    async def model(self, *, timeout: float | None = None) -> ModelInfo:
        """As `Client.model`."""
        return model_from(await self._call("GetModelInfo", pb.GetModelInfoRequest(), pb.ModelInfo, timeout))

    async def load(self, *, timeout: float | None = None) -> LoadInfo:
        """As `Client.load`."""
        return load_from(await self._call("GetLoad", pb.GetLoadRequest(), pb.LoadInfo, timeout))

    async def abort(self, request_id: str, *, timeout: float | None = None) -> bool:
        """As `Client.abort`."""
        return (await self._call("Abort", pb.AbortRequest(request_id=request_id), pb.AbortResponse, timeout)).found

    async def _events(
        self, prompt: str | Sequence[int], settings: Settings, timeout: float | None
    ) -> AsyncGenerator[Event, None]:
        called: dict[str, Any] = dict(timeout=timeout, metadata=self._connection.metadata)
        answered = asyncio.Event()
        if isinstance(prompt, str) or len(prompt) < LONG_PROMPT:
            method: Any = self._channel.unary_stream(
                SERVICE + "Generate",
                request_serializer=pb.GenerateRequest.SerializeToString,
                response_deserializer=pb.GenerateEvent.FromString,
            )
            call = method(request_message(prompt, settings), **called)
        else:
            method = self._channel.stream_stream(
                SERVICE + "GenerateStream",
                request_serializer=pb.GeneratePart.SerializeToString,
                response_deserializer=pb.GenerateEvent.FromString,
            )
            call = method(_async(prompt, settings, answered), **called)
        try:
            # closed, because what grpc.aio makes to read a call holds it, and is held by it, until the collector comes;
            # and not `call.read()`, which drops messages that came together with the end
            async with aclosing(aiter(call)) as messages:
                async for message in messages:
                    answered.set()
                    yield event_from(message)
        except aio.AioRpcError as error:
            raise error_from(error) from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # grpc.aio raises the same where the server ended the call with CANCELLED
            raise ServerError("CANCELLED", await call.details() or "no message") from None
        finally:
            call.cancel()
            answered.set()  # who waits to send more finds that the call is over

    async def _call(self, method: str, message: Message, kind: type[M], timeout: float | None) -> M:
        call: Any = self._channel.unary_unary(
            SERVICE + method,
            request_serializer=type(message).SerializeToString,
            response_deserializer=kind.FromString,
        )
        try:
            return await call(message, timeout=timeout, metadata=self._connection.metadata)
        except aio.AioRpcError as error:
            raise error_from(error) from None


async def _async(prompt: Sequence[int], settings: Settings, answered: asyncio.Event) -> AsyncIterator[pb.GeneratePart]:
    """Parts of a prompt. Those after the first ids wait for the server's first answer, which may be a refusal.

    Where a server ends a call while grpc.aio sends, the caller is told "Internal error from Core", not the status.
    """
    for number, part in enumerate(part_messages(prompt, settings)):
        if number > 1:
            await answered.wait()
        yield part
