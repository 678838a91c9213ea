"""A client for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any, TypeVar

from google.protobuf.message import Message
from grpc import aio

from medha_jax.client.answers import Event, LoadInfo, ModelInfo, event_from, load_from, model_from
from medha_jax.client.chat_message import Chat, chat_or_prompt
from medha_jax.client.connection import Connection, Settings, generation, part_messages, tokenize_message, unary
from medha_jax.client.errors import ServerError, error_from
from medha_jax.client.message_fields import InvalidSettingError, check_text, seconds_left
from medha_jax.client.whole_answer import Answer, AnswerBuilder
from medha_jax.protos import inference_pb2 as pb

M = TypeVar("M", bound=Message)


class AsyncClient:
    """A client for one event loop. Close it, or use it in an `async with` block.

    >>> async with AsyncClient("127.0.0.1:9320") as client:
    ...     async for event in client.generate("import unittest", max_tokens=40):
    ...         if isinstance(event, Delta):
    ...             print(event.text, end="")

    Args:
        server: HOST:PORT; a `Connection` for TLS or a token.
    """

    def __init__(self, server: str | Connection) -> None:
        self._connection = Connection(server) if isinstance(server, str) else server
        self._channel = self._connection.aio_channel()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End the connection and all calls over it."""
        await self._channel.close()

    def generate(
        self,
        prompt: str | Sequence[int] | Chat | None = None,
        *,
        messages: Sequence[Mapping[str, Any]] | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        timeout: float | None = None,
        **settings: Any,
    ) -> AsyncGenerator[Event, None]:
        """As `Client.generate`; cancelling the reader ends the request, too."""
        return self._events(chat_or_prompt(prompt, messages, tools), Settings(**settings), timeout)

    async def complete(self, prompt: str | Sequence[int] | Chat | None = None, **given: Any) -> Answer:
        """As `Client.complete`; cancelling it ends the request, too."""
        building = AnswerBuilder()
        async with aclosing(self.generate(prompt, **given)) as events:
            async for event in events:
                building.add(event)
        return building.answer()

    async def tokenize(
        self, text: str | Chat, *, add_special_tokens: bool | None = None, timeout: float | None = None
    ) -> tuple[int, ...]:
        """As `Client.tokenize`."""
        asked = tokenize_message(text, add_special_tokens)
        answer = await self._call("Tokenize", asked, pb.TokenizeResponse, timeout)
        return tuple(answer.token_ids)

    async def model(self, *, timeout: float | None = None) -> ModelInfo:
        """As `Client.model`."""
        return model_from(await self._call("GetModelInfo", pb.GetModelInfoRequest(), pb.ModelInfo, timeout))

    async def load(self, *, timeout: float | None = None) -> LoadInfo:
        """As `Client.load`."""
        return load_from(await self._call("GetLoad", pb.GetLoadRequest(), pb.LoadInfo, timeout))

    async def abort(self, request_id: str, *, timeout: float | None = None) -> bool:
        """As `Client.abort`."""
        check_text("request_id", request_id)
        return (await self._call("Abort", pb.AbortRequest(request_id=request_id), pb.AbortResponse, timeout)).found

    async def _events(
        self, prompt: str | Sequence[int] | Chat, settings: Settings, timeout: float | None
    ) -> AsyncGenerator[Event, None]:
        options: dict[str, Any] = dict(timeout=seconds_left(timeout), metadata=self._connection.metadata)
        answered, refused = asyncio.Event(), list[InvalidSettingError]()
        parts = partial(_parts, answered=answered, refused=refused)
        call = generation(self._channel, prompt, settings, parts, **options)
        try:
            # aclosing: grpc.aio's iterator and its call hold each other until the garbage collector runs.
            # Not `call.read()`: it drops messages that came together with the end.
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
            if refused:
                raise refused[0] from None
            # grpc.aio also raises CancelledError when the server ends the call with CANCELLED
            raise ServerError("CANCELLED", await call.details() or "no message") from None
        finally:
            call.cancel()
            answered.set()  # `_parts` waits no longer

    async def _call(self, method: str, message: Message, kind: type[M], timeout: float | None) -> M:
        call = unary(self._channel, method, type(message), kind)
        try:
            answer: M = await call(message, timeout=seconds_left(timeout), metadata=self._connection.metadata)
            return answer
        except aio.AioRpcError as error:
            raise error_from(error) from None


async def _parts(
    prompt: Sequence[int], settings: pb.GenerateSettings, answered: asyncio.Event, refused: list[InvalidSettingError]
) -> AsyncIterator[pb.GeneratePart]:
    """The parts of a prompt. After the first ids it waits for the server's first answer, which may be a refusal.

    If a server ends a call while grpc.aio sends, the caller gets "Internal error from Core" instead of the status. An
    error here cancels the call, and grpc.aio drops it, so it is noted in `refused`.
    """
    try:
        for number, part in enumerate(part_messages(prompt, settings)):
            if number > 1:
                await answered.wait()
            yield part
    except InvalidSettingError as error:
        refused.append(error)
        raise
