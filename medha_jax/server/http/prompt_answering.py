"""Answers one HTTP request for completions: from its body over the calls of `Inference` to the last byte."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Generic, TypeVar

from aiohttp import web
from grpc import StatusCode

from medha_jax.protos import inference_pb2 as pb
from medha_jax.server.calls import SMALL_TEXT, Calls, Received
from medha_jax.server.http.choices import ChoiceForm
from medha_jax.server.http.completion_request import Asked
from medha_jax.server.http.errors import answer_of
from medha_jax.server.http.http_call import HttpBody, HttpCall
from medha_jax.server.http.json_fields import read_json
from medha_jax.server.http.reply import Head, HttpReply, StreamedReply, WholeReply
from medha_jax.server.http.settings_fields import DEADLINE_HEADER, milliseconds
from medha_jax.server.inference import Inference
from medha_jax.server.refusal import Refusal, unavailable
from medha_jax.server.request_parser import RequestParser, ServedModel

A = TypeVar("A", bound=Asked)


class Answering(Generic[A]):
    """How requests of one path are answered. Belongs to the event loop.

    Args:
        method: name of their calls in the log.
        inference: answers their prompts.
        calls: of the server.
        most: bytes of a body.
        read: makes of a body what it asks, in a thread if the body is long.
        form: makes the form of an answer.
        small: bytes of a body that is read at once, without a thread.
    """

    def __init__(
        self,
        method: str,
        inference: Inference,
        calls: Calls,
        most: int,
        read: Callable[[Any, Mapping[str, str], RequestParser], A],
        form: Callable[[A, ServedModel], ChoiceForm],
        small: int = SMALL_TEXT,
    ) -> None:
        self._method, self._inference, self._calls, self._most = method, inference, calls, most
        self._read, self._form, self._small = read, form, small

    async def answer(self, request: web.Request, tenant: str) -> web.StreamResponse:
        """The answer to a tenant's request. If its client goes away, the request ends."""
        call, reply, tasks = HttpCall(request), None, list[asyncio.Task[None]]()
        try:
            patience = milliseconds(request.headers, DEADLINE_HEADER)
            ends = None if patience is None else asyncio.get_running_loop().time() + patience / 1000
            call = HttpCall(request, ends)
            _, requests = self._inference.ready()
            understand = partial(self._understood, request.headers, requests)
            async with asyncio.timeout_at(ends):
                body = HttpBody(request, self._most)
                async with self._calls.read(understand, body, "send JSON", self._small) as received:
                    reply = self._reply(received.message, request, requests)
                    self._begin(received, call, tenant, reply, tasks)
                    del received
                    await _until(reply.begun, tasks, call)
                async with reply.living():
                    await _until(None, tasks, call)
                if call.refusal is None and not any(task.cancelled() for task in tasks):
                    return await reply.finished()
        except TimeoutError:
            call.refusal = Refusal(StatusCode.DEADLINE_EXCEEDED, f"the {patience:g} ms of the request have passed")
        except Refusal as refusal:  # before there was a prompt
            await self._calls.refuse(self._method, call, tenant, refusal)
            call.refusal = refusal
        finally:
            await _ended(tasks)
        ended = call.refusal or unavailable("the connection takes no more calls")
        return answer_of(ended) if reply is None else await reply.refused(ended)

    def _understood(self, headers: Mapping[str, str], requests: RequestParser, data: bytes) -> A:
        return self._read(read_json(data), headers, requests)

    def _reply(self, asked: A, request: web.Request, requests: RequestParser) -> HttpReply:
        form = self._form(asked, requests.model)
        head = Head(asked.id, int(time.time()), requests.model.name, asked.ignored)
        if asked.streaming.streamed:
            return StreamedReply(asked, form, head, request)
        return WholeReply(asked, form, head)

    def _begin(
        self, received: Received[A], call: HttpCall, tenant: str, reply: HttpReply, tasks: list[asyncio.Task[None]]
    ) -> None:
        """Begin the call of each prompt; its task holds the prompt until the engine has it."""
        waiting = received.message.requests
        size = received.size // len(waiting)
        begun = reply.begun if received.message.streaming.streamed else None  # a whole answer takes events at any time
        for number in range(len(waiting)):
            one: list[Received[pb.GenerateRequest]] = [Received(waiting.pop(0), size, received.came)]
            write = partial(reply.write, number)
            answering = self._inference.answer(self._method, one, call, tenant, write, begun)
            tasks.append(asyncio.create_task(answering))


async def _until(event: asyncio.Event | None, tasks: list[asyncio.Task[None]], call: HttpCall) -> None:
    """Wait for an event, if there is one, or until all tasks are done, or the call was refused."""
    pending = set(tasks)
    waiting = None if event is None else asyncio.create_task(event.wait())
    try:
        while pending and call.refusal is None and not (waiting is not None and waiting.done()):
            awaited = pending if waiting is None else {*pending, waiting}
            done, _ = await asyncio.wait(awaited, return_when=asyncio.FIRST_COMPLETED)
            pending -= done
    finally:
        if waiting is not None:
            waiting.cancel()


async def _ended(tasks: list[asyncio.Task[None]]) -> None:
    """Cancel what still runs, and wait for its end."""
    for task in tasks:
        task.cancel()
    if tasks:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait(tasks)
