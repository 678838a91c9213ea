"""`medha.v1.Inference`: the calls, each a coroutine of the event loop."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial

from grpc import StatusCode

import medha_jax
from medha_jax.engine import (
    Completed,
    EngineService,
    Failed,
    GenerationRequest,
    NotServingError,
    Prefilled,
    PromptScored,
    Queued,
    QueueFullError,
)
from medha_jax.plan import InvalidRequestError
from medha_jax.protos import inference_pb2 as pb
from medha_jax.server import replies
from medha_jax.server.access_log import Record
from medha_jax.server.calls import SMALL, SMALL_TEXT, Calls, Received
from medha_jax.server.connections import Context
from medha_jax.server.prompt_parts import PromptParts
from medha_jax.server.refusal import Refusal, internal, invalid, too_busy, unavailable
from medha_jax.server.request_parser import LONGEST_ID, RequestParser, ServedModel, request_id
from medha_jax.server.settings import Limits
from medha_jax.server.streams import Item, Stream, Streams
from medha_jax.server.structured_outputs import StructuredOutputs
from medha_jax.token_ids import GrowingIds, IdArray

ID_BYTES = 4
logger = logging.getLogger(__name__)
Write = Callable[[pb.GenerateEvent, bool], Awaitable[None]]  # with whether more events are there already


class Inference:
    """The calls of the service. Belongs to the event loop.

    Messages come as bytes, so that errors in them are answered here. Clients are told `message_bytes`, the size of the
    largest message.
    """

    def __init__(self, calls: Calls, streams: Streams, limits: Limits, message_bytes: int) -> None:
        self._calls, self._streams, self._limits, self._message_bytes = calls, streams, limits, message_bytes
        self._service: EngineService | None = None
        self._requests: RequestParser | None = None
        self._structured: StructuredOutputs | None = None
        self._closed = "the server is starting"

    def open(self, service: EngineService, model: ServedModel) -> None:
        """Take requests for a loaded model; its engine must send events to `Streams.listen`."""
        self._service, self._requests = service, RequestParser(model, self._limits)
        self._structured = StructuredOutputs(model)
        self._closed = ""

    def close(self, reason: str) -> None:
        """Take no more requests; running ones go on."""
        self._closed = reason

    def end(self) -> None:
        """Compile no more grammars. Call it once, after the last call has ended."""
        if self._structured is not None:
            self._structured.close()

    async def generate(self, messages: AsyncIterator[bytes], context: Context, tenant: str) -> None:
        """Answer one prompt with a stream of events."""
        async with self._calls.answered("Generate", context, tenant, request=True) as record:
            service, requests = self.ready()
            async with self._calls.received(pb.GenerateRequest, messages) as received:
                stream = self._opened(received.message.settings, record)
                await self._begin(service, requests, stream, received, context, record)
            del received  # a prompt may be large, and its answer long
            await self._finish(service, stream, lambda event, _: context.write(event), record)

    async def answer(
        self,
        method: str,
        waiting: list[Received[pb.GenerateRequest]],
        context: Context,
        tenant: str,
        write: Write,
        begun: asyncio.Event | None = None,
    ) -> None:
        """Answer one prompt that came over another protocol, and is taken out of `waiting`, as `generate` does.

        What follows its first event waits until `begun` is set, if it is given.
        """
        came = waiting[0].came  # before its text was read, so that no first token is later than the end
        async with self._calls.answered(method, context, tenant, request=True, began=came) as record:
            service, requests = self.ready()
            received = waiting.pop()
            stream = self._opened(received.message.settings, record)
            await self._begin(service, requests, stream, received, context, record)
            del received
            await self._finish(service, stream, write, record, begun)

    async def generate_stream(self, parts: AsyncIterator[bytes], context: Context, tenant: str) -> None:
        """Answer a prompt in parts with a stream of events."""
        async with self._calls.answered("GenerateStream", context, tenant, request=True) as record:
            service, requests = self.ready()
            prompt = PromptParts(parts, self._calls, self._limits)
            start = await prompt.start()
            stream = self._opened(start.settings, record)
            reading: asyncio.Task[None] | None = None
            try:
                ids = await prompt.ids()
                if ids is None:
                    raise invalid("the prompt is empty; give token_ids after start")
                record.prompt_tokens = len(ids)
                deadline = self._calls.deadline(context)
                size = start.ByteSize() + ID_BYTES * len(ids)
                request = await self._calls.aside(size, lambda: requests.started(start, deadline, ids, tenant))
                request = await self._with_grammar(request, start.settings)
                echo = partial(requests.text_of, sampling=request.sampling) if start.settings.echo else None
                number = await self._submit(service, stream, request, prompt.came, record)
                reading = asyncio.create_task(self._extend(service, stream, number, prompt, record, ids, echo))
                await self._write(stream, lambda event, _: context.write(event), record)
            finally:
                if reading is not None:
                    reading.cancel()
                self._end(service, stream)

    async def tokenize(self, messages: AsyncIterator[bytes], context: Context, tenant: str) -> bytes:
        """Token ids of a text: the bytes of a `TokenizeResponse`."""
        async with self._calls.answered("Tokenize", context, tenant) as record:
            _, requests = self.ready()
            async with self._calls.received(pb.TokenizeRequest, messages) as received:

                def answered() -> tuple[int, bytes]:
                    ids = requests.tokenized(received.message)
                    return len(ids), pb.TokenizeResponse(token_ids=ids).SerializeToString()

                small = 0 if received.message.HasField("chat") else SMALL_TEXT
                record.prompt_tokens, answer = await self._calls.aside(received.size, answered, small)
            return answer

    async def get_model_info(self, messages: AsyncIterator[bytes], context: Context, tenant: str) -> pb.ModelInfo:
        """The model's vocabulary and limits."""
        async with (
            self._calls.answered("GetModelInfo", context, tenant),
            self._calls.received(pb.GetModelInfoRequest, messages),
        ):
            _, requests = self.ready()
            model = requests.model
            return pb.ModelInfo(
                name=model.name,
                vocab=model.vocab,
                context_tokens=model.context,
                max_output_tokens=requests.max_output,
                eos_token_ids=model.eos_ids,
                max_message_bytes=self._message_bytes,
                version=medha_jax.__version__,
            )

    async def get_load(self, messages: AsyncIterator[bytes], context: Context, tenant: str) -> pb.LoadInfo:
        """The engine's load; answered while the server starts and ends, too."""
        async with self._calls.answered("GetLoad", context, tenant), self._calls.received(pb.GetLoadRequest, messages):
            return self.load()

    def load(self) -> pb.LoadInfo:
        """The engine's load now."""
        if self._service is None:
            return pb.LoadInfo(accepting=False)
        load = self._service.load()
        return pb.LoadInfo(
            running=load.running,
            waiting=load.waiting,
            waiting_tokens=load.waiting_tokens,
            slots=load.slots,
            used_slots=load.used_slots,
            pools=[pb.PagePool(total_pages=load.total_pages, free_pages=free) for free in load.free_pages],
            accepting=not self._closed and load.healthy,
        )

    async def abort(self, messages: AsyncIterator[bytes], context: Context, tenant: str) -> pb.AbortResponse:
        """End a request of the tenant by its id."""
        async with (
            self._calls.answered("Abort", context, tenant) as record,
            self._calls.received(pb.AbortRequest, messages) as received,
        ):
            wanted = received.message.request_id
            stream = self._streams.find(tenant, wanted) if len(wanted) <= LONGEST_ID else None
            if stream is None:
                return pb.AbortResponse(found=False)
            record.request_id = stream.request_id
            if stream.number is not None and self._service is not None:
                self._service.cancel(stream.number)  # at once, even if its client reads slowly
            stream.end(Refusal(StatusCode.CANCELLED, "the request was aborted"))
            return pb.AbortResponse(found=True)

    def ready(self) -> tuple[EngineService, RequestParser]:
        """The engine, and what makes its requests.

        Raises:
            Refusal: no requests are taken.
        """
        if self._service is None or self._requests is None or self._closed:
            raise unavailable(f"{self._closed}; no requests are taken")
        return self._service, self._requests

    async def _with_grammar(self, request: GenerationRequest, settings: pb.GenerateSettings) -> GenerationRequest:
        if self._structured is None or not settings.HasField("structured"):
            return request
        return dataclasses.replace(request, grammar=await self._structured.grammar(settings.structured))

    async def _begin(
        self,
        service: EngineService,
        requests: RequestParser,
        stream: Stream,
        received: Received[pb.GenerateRequest],
        context: Context,
        record: Record,
    ) -> None:
        """Hand a prompt to the engine; the stream ends if that fails."""
        message, size = received.message, received.size
        try:
            deadline = self._calls.deadline(context)
            if message.WhichOneof("prompt") == "chat":  # however short: what a template does with it is not known
                chat = message
                message = await self._calls.aside(size, lambda: requests.as_text(chat), small=0)
                size = max(size, len(message.text))
            small = SMALL_TEXT if message.WhichOneof("prompt") == "text" else SMALL
            request = await self._calls.aside(size, lambda: requests.whole(message, deadline, record.tenant), small)
            record.prompt_tokens = len(request.prompt_ids)
            request = await self._with_grammar(request, message.settings)
            if message.settings.echo:
                stream.echo(await self._calls.aside(size, lambda: requests.text(message, request.sampling)))
            await self._submit(service, stream, request, received.came, record)
        except BaseException:
            self._end(service, stream)
            raise

    def _opened(self, settings: pb.GenerateSettings, record: Record) -> Stream:
        wanted = request_id(settings) or uuid.uuid4().hex
        if self._streams.full(self._calls.unsent):
            self._calls.give_up_unsent(self._limits.write_seconds)
        stream = self._streams.open(record.tenant, wanted, self._calls.unsent, settings.progress)
        record.request_id = stream.request_id
        record.priority = settings.priority if settings.HasField("priority") else None
        return stream

    async def _submit(
        self, service: EngineService, stream: Stream, request: GenerationRequest, arrival: float, record: Record
    ) -> int:
        """Hand a request that came at `arrival` seconds to the engine; returns its number.

        Events of the request may come before this coroutine knows its number, so `expect` keeps them until `bind`. The
        call may be cancelled while a thread hands the request over. The thread cannot be stopped, so the hand-over is
        shielded and the request is cancelled as soon as it has a number.
        """

        def forget(done: asyncio.Future[int]) -> None:
            if done.exception() is None:
                self._calls.accepted(record)
                service.cancel(done.result())
            else:
                self._calls.refused(StatusCode.CANCELLED.name, record.tenant)

        self._streams.expect()
        size, number = ID_BYTES * len(request.prompt_ids), None
        submitting = asyncio.ensure_future(self._calls.aside(size, lambda: service.submit(request, arrival)))
        try:
            number = await asyncio.shield(submitting)
            self._calls.accepted(record)
            return number
        except asyncio.CancelledError:
            record.accepted = None  # the thread will tell
            submitting.add_done_callback(forget)
            raise
        except InvalidRequestError as error:
            raise invalid(str(error)) from None
        except QueueFullError as error:
            raise too_busy(str(error)) from None
        except NotServingError as error:
            raise unavailable(str(error)) from None
        finally:
            self._streams.bind(stream, number, request.n)

    async def _finish(
        self, service: EngineService, stream: Stream, write: Write, record: Record, begun: asyncio.Event | None = None
    ) -> None:
        """Write all events of a stream, and close it."""
        try:
            await self._write(stream, write, record, begun)
        finally:
            self._end(service, stream)

    async def _write(self, stream: Stream, write: Write, record: Record, begun: asyncio.Event | None = None) -> None:
        """Write a stream's events until its end; no event is kept beyond its write.

        To wait for `begun` is no write, whose time has a limit: what others have to do is no fault of the client.
        """
        while not stream.over:
            await stream.written(write(self._message(stream, await stream.take(), record), stream.more))
            if begun is not None:
                await begun.wait()

    def _message(self, stream: Stream, item: Item, record: Record) -> pb.GenerateEvent:
        match item:
            case list() as deltas:
                record.output_tokens += sum(len(delta.token_ids) for delta in deltas)
                if (first := deltas[0].first) is not None:
                    record.began(first)
                return replies.delta(deltas, stream.index)
            case Queued() as event:
                return replies.accepted(stream.request_id, event, record.prompt_tokens)
            case Prefilled() as event:
                return replies.progress(event)
            case PromptScored() as event:
                return replies.prompt_logprobs(event)
            case Completed(request=totals) as event:
                if totals is not None:
                    stream.over = True
                    record.finished(totals)
                return replies.finished(event, stream.index)
            case Failed() as event:
                stream.over = True
                raise replies.failed(event)

    async def _extend(
        self,
        service: EngineService,
        stream: Stream,
        number: int,
        prompt: PromptParts,
        record: Record,
        first: IdArray,
        text_of: Callable[[Sequence[int]], str] | None,
    ) -> None:
        """Read the rest of a prompt; an error in it ends the stream. `text_of` makes the text to echo, if one is."""
        whole = None if text_of is None else GrowingIds(first)
        try:
            while (ids := await prompt.ids()) is not None:
                record.prompt_tokens += len(ids)
                await self._calls.aside(ID_BYTES * len(ids), partial(service.extend, number, ids, False))
                if whole is not None:
                    whole.extend(ids)
            if text_of is not None and whole is not None:  # before the end of the prompt, so before its first token
                stream.echo(await self._calls.aside(ID_BYTES * len(whole), partial(text_of, whole)))
            service.extend(number, (), True)
        except InvalidRequestError as error:
            stream.end(invalid(str(error)))
        except Refusal as refusal:
            stream.end(refusal)
        except Exception:  # else nobody would hear of it, and the stream would wait for its prompt
            logger.exception("an error in the parts of %s", stream.request_id)
            stream.end(internal())

    def _end(self, service: EngineService, stream: Stream) -> None:
        """Close a stream, and cancel its request if it has not ended."""
        if stream.number is not None and not stream.over:
            service.cancel(stream.number)
        self._streams.close(stream)
