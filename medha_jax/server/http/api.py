"""The paths of the OpenAI API beside gRPC, for `Inference` answers both."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from aiohttp import web
from grpc import StatusCode

import medha_jax
from medha_jax.protos import inference_pb2 as pb
from medha_jax.server.calls import SMALL_TEXT, Calls
from medha_jax.server.http.chat_form import ChatForm
from medha_jax.server.http.chat_request import read_chat, read_conversation
from medha_jax.server.http.choices import CompletionForm, token_text
from medha_jax.server.http.completion_request import check_model, read_completion
from medha_jax.server.http.errors import FieldRefusal, answer_of, error_of, json_answer
from medha_jax.server.http.http_call import HttpBody, HttpCall
from medha_jax.server.http.json_fields import Fields, checked_text, read_json
from medha_jax.server.http.origins import Origins
from medha_jax.server.http.prompt_answering import Answering
from medha_jax.server.inference import Inference
from medha_jax.server.refusal import Refusal
from medha_jax.server.renewal import Renewable
from medha_jax.server.request_parser import RequestParser
from medha_jax.server.security import tenant_of
from medha_jax.server.token_file import Tokens

Handler = Callable[[web.Request, str], Awaitable[web.StreamResponse]]
logger = logging.getLogger(__name__)


class OpenAiApi:
    """Answers the paths of the OpenAI API. Belongs to the event loop.

    Args:
        inference: answers prompts, as it does for gRPC.
        calls: of the server.
        tokens: that requests need, except for health; None for none.
        message_bytes: the size of the largest body.
        origins: of web pages that may ask.
    """

    def __init__(
        self,
        inference: Inference,
        calls: Calls,
        tokens: Renewable[Tokens] | None,
        message_bytes: int,
        origins: Sequence[str] = (),
    ) -> None:
        self._inference, self._calls, self._tokens, self._bytes = inference, calls, tokens, message_bytes
        self._created = int(time.time())
        self._origins = Origins(origins)
        self._completions = Answering(
            "Completions",
            inference,
            calls,
            message_bytes,
            read_completion,
            lambda asked, model: CompletionForm(asked.logprobs, token_text(model)),
        )
        # however short a chat is, nobody knows what the template does with it
        self._chats = Answering("ChatCompletions", inference, calls, message_bytes, read_chat, ChatForm, small=0)

    def app(self) -> web.Application:
        """The paths and who answers them."""
        app = web.Application(middlewares=[_in_openai_form, self._origins.check])
        app.on_response_prepare.append(self._origins.sign)
        app.router.add_post("/v1/completions", self._for_tenants(self._completions.answer))
        app.router.add_post("/v1/chat/completions", self._for_tenants(self._chats.answer))
        app.router.add_get("/v1/models", self._for_tenants(self._models))
        app.router.add_get("/v1/models/{name:.+}", self._for_tenants(self._model))
        app.router.add_post("/tokenize", self._for_tenants(self._tokenize))
        app.router.add_post("/detokenize", self._for_tenants(self._detokenize))
        app.router.add_get("/load", self._for_tenants(self._load))
        app.router.add_get("/version", self._for_tenants(self._version))
        app.router.add_get("/health", self._health)
        return app

    def _for_tenants(self, handler: Handler) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        """A handler that is told whose the request is; who has no token is refused."""

        async def checked(request: web.Request) -> web.StreamResponse:
            tenant = tenant_of(self._tokens, request.headers.getall("Authorization", []))
            if tenant is None:
                raise Refusal(
                    StatusCode.UNAUTHENTICATED, "this server needs a token; send the header Authorization: Bearer TOKEN"
                )
            return await handler(request, tenant)

        return checked

    async def _models(self, request: web.Request, tenant: str) -> web.Response:
        _, requests = self._inference.ready()
        return json_answer({"object": "list", "data": [self._card(requests)]})

    async def _model(self, request: web.Request, tenant: str) -> web.Response:
        _, requests = self._inference.ready()
        check_model(Fields({"model": request.match_info["name"]}), requests.model.name)
        return json_answer(self._card(requests))

    def _card(self, requests: RequestParser) -> dict[str, Any]:
        model = requests.model
        return {
            "id": model.name,
            "object": "model",
            "created": self._created,
            "owned_by": "medha-jax",
            "root": model.name,
            "parent": None,
            "max_model_len": model.context,
        }

    async def _tokenize(self, request: web.Request, tenant: str) -> web.Response:
        def read(data: bytes, requests: RequestParser) -> dict[str, Any]:
            fields = Fields(read_json(data))
            check_model(fields, requests.model.name)
            wanted, shown = pb.TokenizeRequest(), fields.switch("return_token_strs")
            if (prompt := fields.text("prompt")) is not None:
                wanted.text = checked_text("prompt", prompt)
                if (add_special := fields.switch("add_special_tokens")) is not None:
                    wanted.add_special_tokens = add_special
            elif fields.has("messages"):
                wanted.chat.CopyFrom(read_conversation(fields))
            else:
                raise FieldRefusal("prompt", "the request has no prompt; give a text, or messages")
            fields.end()
            ids = list(requests.tokenized(wanted))
            texts = requests.model.tokenizer.texts(ids) if shown else None
            return {"count": len(ids), "max_model_len": requests.model.context, "tokens": ids, "token_strs": texts}

        return await self._worked("Tokenize", request, tenant, read, small=0)

    async def _detokenize(self, request: web.Request, tenant: str) -> web.Response:
        def read(data: bytes, requests: RequestParser) -> dict[str, Any]:
            fields = Fields(read_json(data))
            check_model(fields, requests.model.name)
            ids = fields.integers("tokens")
            fields.end()
            vocab = requests.model.vocab
            if ids is None or not all(0 <= one < vocab for one in ids):
                raise FieldRefusal("tokens", f"tokens are no list of ids of the vocabulary, 0 to {vocab - 1}")
            return {"prompt": requests.model.tokenizer.decode(ids, skip_special=False)}

        return await self._worked("Detokenize", request, tenant, read)

    async def _worked(
        self,
        method: str,
        request: web.Request,
        tenant: str,
        read: Callable[[bytes, RequestParser], dict[str, Any]],
        small: int = SMALL_TEXT,
    ) -> web.Response:
        """The answer that `read` makes of a body, in a thread if it has more than `small` bytes."""
        call = HttpCall(request)

        async def work() -> dict[str, Any]:
            async with self._calls.answered(method, call, tenant):
                _, requests = self._inference.ready()
                body = HttpBody(request, self._bytes)
                try:
                    async with self._calls.read(
                        lambda data: read(data, requests), body, "send JSON", small
                    ) as received:
                        return received.message
                except Refusal as refusal:
                    call.refusal = refusal  # with the name of its field, which `abort` does not get
                    raise
            raise AssertionError("a refused call raises")

        task = asyncio.create_task(work())
        try:
            await asyncio.wait((task,))
        finally:
            task.cancel()
        if call.refusal is not None:
            raise call.refusal
        return json_answer(task.result())

    async def _load(self, request: web.Request, tenant: str) -> web.Response:
        load = self._inference.load()
        body = {field.name: getattr(load, field.name) for field in load.DESCRIPTOR.fields if field.name != "pools"}
        pools = [{"total_pages": pool.total_pages, "free_pages": pool.free_pages} for pool in load.pools]
        return json_answer(body | {"pools": pools, "server_load": load.running + load.waiting})

    async def _version(self, request: web.Request, tenant: str) -> web.Response:
        return json_answer({"version": medha_jax.__version__})

    async def _health(self, request: web.Request) -> web.Response:
        load = self._inference.load()
        return json_answer({"status": "ready" if load.accepting else "not ready"}, 200 if load.accepting else 503)


@web.middleware
async def _in_openai_form(request: web.Request, handler: Any) -> web.StreamResponse:
    """Give errors the form of OpenAI's, those of unknown paths included."""
    try:
        answer: web.StreamResponse = await handler(request)
        return answer
    except Refusal as refusal:
        return answer_of(refusal)
    except web.HTTPException as error:
        what = {
            404: f"there is no path {request.path[:128]}",
            405: f"{request.path[:128]} does not take {request.method}",
        }
        return json_answer(error_of(what.get(error.status, error.reason), error.status), error.status)
    except Exception:
        logger.exception("an error in %s", request.path)
        return json_answer(error_of("an error in the server; its log says more", 500), 500)
