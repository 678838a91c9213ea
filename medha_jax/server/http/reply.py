"""Answers of completions: the events of one or more prompts, as server-sent events or as one JSON object."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from aiohttp import web

from medha_jax.protos import inference_pb2 as pb
from medha_jax.server.http.choices import ChoiceForm, News
from medha_jax.server.http.completion_request import Asked
from medha_jax.server.http.errors import answer_of, body_of, encoded, json_answer
from medha_jax.server.http.told import AnswerUsage, Joined
from medha_jax.server.refusal import Refusal

KEEP_ALIVE_SECONDS = 10.0  # of silence, before a comment tells proxies and clients that the stream lives
LAST_SECONDS = 0.25  # for a client to take the error that ends its stream
DONE = b"data: [DONE]\n\n"
# Before what follows a comment: `vllm bench serve` cuts blank lines off the ends of what it reads at once, and takes a
# comment that came alone and the next line for one. So that line is a comment, too.
AFTER_COMMENT = b":\n\n"


@dataclass(frozen=True)
class Head:
    """What every object of an answer says.

    Args:
        id: without the form's prefix.
        created: seconds since 1970.
        model: its name.
        ignored: fields of the request that change nothing.
    """

    id: str
    created: int
    model: str
    ignored: tuple[str, ...] = ()

    def fields(self, form: ChoiceForm, kind: str) -> dict[str, Any]:
        """The first fields of an object of this kind."""
        return {"id": form.id_prefix + self.id, "object": kind, "created": self.created, "model": self.model}

    def headers(self) -> dict[str, str]:
        """Headers of the answer."""
        named = {"x-ignored-fields": ", ".join(self.ignored)} if self.ignored else {}
        return {"x-request-id": self.id} | named


class HttpReply(Protocol):
    """Takes the events of an answer's prompts. Belongs to the event loop.

    Attributes:
        begun: set once every prompt is accepted.
    """

    begun: asyncio.Event

    async def write(self, prompt: int, event: pb.GenerateEvent, more: bool) -> None:
        """Take an event of a prompt; `more` says whether its next one is there already.

        Of a streamed answer, only the first event of each prompt comes before `begun` is set.
        """

    def living(self) -> contextlib.AbstractAsyncContextManager[None]:
        """While the block runs, the client is told now and then that the answer lives."""

    async def finished(self) -> web.StreamResponse:
        """The answer, after all prompts ended."""

    async def refused(self, refusal: Refusal) -> web.StreamResponse:
        """The answer, if a refusal ends it."""


class WholeReply:
    """An answer in one JSON object."""

    def __init__(self, asked: Asked, form: ChoiceForm, head: Head) -> None:
        self.begun = asyncio.Event()
        self._asked, self._form, self._head = asked, form, head
        self._joined, self._usage = Joined(asked), AnswerUsage()
        self._choices: defaultdict[int, News] = defaultdict(News)  # `n` may be absurd until the engine has judged it

    async def write(self, prompt: int, event: pb.GenerateEvent, more: bool) -> None:
        """Keep what an event says."""
        match event.WhichOneof("event"):
            case "accepted":
                if self._usage.accepted(prompt, event.accepted) == self._asked.prompts:
                    self.begun.set()
            case "prompt_logprobs":
                self._joined.scored(prompt, event.prompt_logprobs)
            case "delta":
                news = self._joined.news(prompt, event.delta)
                self._usage.took(len(news.ids))
                kept = self._choices[self._joined.choice(prompt, event.delta.index)]
                kept.text += news.text
                kept.ids += news.ids
                kept.scored += news.scored
            case "finished":
                self._usage.ended(event.finished)
                self._choices[self._joined.choice(prompt, event.finished.index)].finished = event.finished

    @contextlib.asynccontextmanager
    async def living(self) -> AsyncIterator[None]:
        """Nothing is said before the answer is whole."""
        yield

    async def finished(self) -> web.StreamResponse:
        """The object."""
        told = [self._choices[index] for index in range(self._asked.prompts * self._asked.n)]
        choices = [self._form.whole(index, news) for index, news in enumerate(told)]
        if self._asked.streaming.ids:
            choices = [choice | {"token_ids": news.ids} for choice, news in zip(choices, told, strict=True)]
        body = self._head.fields(self._form, self._form.object) | {"choices": choices, "usage": self._usage.body()}
        return json_answer(body, headers=self._head.headers())

    async def refused(self, refusal: Refusal) -> web.StreamResponse:
        """An error."""
        return answer_of(refusal)


class StreamedReply:
    """An answer as server-sent events. Its head is sent once every prompt is accepted, so refusals have a status.

    While the prompts are computed, comments tell how far they are.
    """

    def __init__(self, asked: Asked, form: ChoiceForm, head: Head, request: web.Request) -> None:
        self.begun = asyncio.Event()
        self._asked, self._form, self._head, self._request = asked, form, head, request
        self._joined, self._usage = Joined(asked), AnswerUsage()
        self._held: tuple[int, News] | None = None  # may end in the same chunk
        self._response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
            | head.headers()
        )
        start = encoded(head.fields(form, form.chunk_object))[:-1]
        self._start = b"data: " + start + b',"choices":['
        self._silent, self._commented = True, False  # the latter: what was written last is a comment
        self._skipped: dict[int, list[int]] = {}  # ids of choices since their last chunk

    async def write(self, prompt: int, event: pb.GenerateEvent, more: bool) -> None:
        """Write an event; a delta that is followed at once by the end of its output waits for it."""
        kind = event.WhichOneof("event")
        if kind == "accepted":
            if self._usage.accepted(prompt, event.accepted) == self._asked.prompts:
                with _given_up():
                    await self._response.prepare(self._request)
                self.begun.set()
            return
        match kind:
            case "progress":
                done, total = event.progress.done_tokens, event.progress.prompt_tokens
                await self._send(b": %d of %d prompt tokens are computed\n\n" % (done, total), comment=True)
            case "prompt_logprobs":
                self._joined.scored(prompt, event.prompt_logprobs)
            case "delta":
                data = self._released()
                self._held = self._joined.choice(prompt, event.delta.index), self._joined.news(prompt, event.delta)
                await self._send(data if more else data + self._released())
            case "finished":
                choice = self._joined.choice(prompt, event.finished.index)
                if self._held is None or self._held[0] != choice:
                    data, self._held = self._released(), (choice, News())
                else:
                    data = b""
                self._held[1].finished = event.finished
                self._usage.ended(event.finished)
                await self._send(data + self._released())

    @contextlib.asynccontextmanager
    async def living(self) -> AsyncIterator[None]:
        """Write a comment after each while of silence."""
        speaking = asyncio.create_task(self._keep_alive())
        try:
            yield
        finally:
            speaking.cancel()

    async def finished(self) -> web.StreamResponse:
        """End the stream, after its usage."""
        usage = b""
        if self._asked.streaming.usage:
            usage = self._start + b'],"usage":' + encoded(self._usage.body()) + b"}\n\n"
        with contextlib.suppress(ConnectionError):  # the client left with the last token
            await self._response.write(self._next(usage + DONE))
            await self._response.write_eof()
        return self._response

    async def refused(self, refusal: Refusal) -> web.StreamResponse:
        """An error with its status, or the last event of a stream that has begun."""
        if not self._response.prepared:
            return answer_of(refusal)
        task = asyncio.current_task()
        assert task is not None
        try:
            async with asyncio.timeout(LAST_SECONDS):
                error = b"data: " + encoded(body_of(refusal)) + b"\n\n" + DONE
                await self._response.write(self._next(error))
                await self._response.write_eof()
                return self._response
        except (ConnectionError, TimeoutError):
            pass
        except asyncio.CancelledError:  # aiohttp's writers wait for one future, which a write that was cut has ended
            if task.cancelling():
                raise
        if self._request.transport is not None:
            self._request.transport.abort()  # its client does not read
        return self._response

    def _released(self) -> bytes:
        """The chunk of what was held."""
        if self._held is None:
            return b""
        (choice, news), self._held = self._held, None
        self._usage.took(len(news.ids))
        streaming = self._asked.streaming
        usage = b"]}\n\n"
        if streaming.continuous:
            usage = b'],"usage":' + encoded(self._usage.body()) + b"}\n\n"
        elif streaming.usage:
            usage = b'],"usage":null}\n\n'
        body, ids = self._form.chunk(choice, news), [*self._skipped.pop(choice, ()), *news.ids]
        if body is None:
            self._skipped[choice] = ids
            return b""
        if streaming.ids:
            body["token_ids"] = ids
        return self._start + encoded(body) + usage

    async def _send(self, data: bytes, comment: bool = False) -> None:
        if not data:
            return
        self._silent = False
        with _given_up():
            await self._response.write(self._next(data, comment))

    def _next(self, data: bytes, comment: bool = False) -> bytes:
        """What to write for data that may follow a comment, and may be one."""
        data, self._commented = AFTER_COMMENT * self._commented + data, comment
        return data

    async def _keep_alive(self) -> None:
        await self.begun.wait()
        while True:
            self._silent = True
            await asyncio.sleep(KEEP_ALIVE_SECONDS)
            if self._silent:
                await self._send(b": the stream lives\n\n", comment=True)


@contextlib.contextmanager
def _given_up() -> Iterator[None]:
    """A client that is gone is, for `Calls`, a call given up."""
    try:
        yield
    except ConnectionError:
        raise asyncio.CancelledError from None
