"""The OpenAI completions API as a backend: `POST /v1/completions` with `stream: true`, answered by server-sent events.

A chunk with a choice counts as a message, unless it only has a finish reason. Chunks do not say how many tokens they
have; the usage (`stream_options: include_usage`) has the total, if it comes with the last message or after it. If it
counts one token more than there were messages, the chunk with the finish reason had it: a token without text, such as
half of a character. Objects without choices, such as pings, are no messages. A stream has ended well if it had a finish
reason or `[DONE]`.

aiohttp instead of httpx: httpx scans all its connections whenever it takes or returns one.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from medha_jax.bench.backend import BackendError, Prompt, Reply, RequestFailedError, ServerFacts, Wanted
from medha_jax.bench.sse import EventStream, StreamError

SLICE = 8192  # tokens converted to digits at once, in about a millisecond
CONNECT_SECONDS = 30.0
KEPT_SECONDS = 4.0  # idle connections are closed then; uvicorn closes them after 5 s, and a request would fail
SHOWN = 300  # most characters of a shown error
DONE = b"[DONE]"
MOST_TOKENS = 2**31 - 1  # that a server may count
FAILURES = ("error", "abort")  # finish reasons of a request that the server gave up


@dataclass
class _Stream:
    """State of one stream. Owned by its `send`."""

    heard: Callable[[int], None]
    messages: int = 0
    ended_bare: bool = False  # a chunk had a finish reason only
    finished: bool = False  # a chunk had a finish reason
    done: bool = False
    usage: dict[str, Any] = field(default_factory=dict)
    counted: int = 0  # messages before the newest usage

    def event(self, data: bytes) -> None:
        """Process the data of an event."""
        if self.done or not data.strip():
            return
        if data.strip() == DONE:
            self.done = True
            return
        try:
            chunk = json.loads(data)
        except ValueError:
            raise RequestFailedError(f"an event is not JSON: {_shown(data)}") from None
        if not isinstance(chunk, dict):
            raise RequestFailedError(f"an event is no JSON object: {_shown(data)}")
        if _is_error(chunk):
            raise RequestFailedError(f"error in the stream: {_message(chunk)}")
        choices = [] if chunk.get("choices") is None else chunk["choices"]
        if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
            raise RequestFailedError(f"the choices of an event are no list of objects: {_shown(data)}")
        reasons = [choice["finish_reason"] for choice in choices if choice.get("finish_reason")]
        for reason in reasons:
            if reason in FAILURES:
                raise RequestFailedError(f"the server ended the request with the reason {reason}")
        self.finished = self.finished or bool(reasons)
        if any(choice.get("text") or not choice.get("finish_reason") for choice in choices):
            self._message()
        elif choices:
            self.ended_bare = True
        if isinstance(chunk.get("usage"), dict):
            self.usage |= {name: value for name, value in chunk["usage"].items() if value is not None}
            self.counted = self.messages
        if self.ended_bare and self.output == self.messages + 1:
            self._message()
            self.counted = self.messages

    @property
    def output(self) -> int | None:
        """The server's total of output tokens; None if it told none after the last message."""
        return _count(self.usage, "completion_tokens") if self.counted == self.messages else None

    def _message(self) -> None:
        self.messages += 1
        self.heard(1)


class OpenAiBackend:
    """A server with the OpenAI completions API. Create it inside a running event loop.

    Args:
        url: of the server or its API; a URL without path gets `/v1`.
        model: name of the model; None for the first one that the server lists.
        token: bearer token, if the server asks for one.
        ignore_eos: send `ignore_eos`, which vLLM and SGLang understand.
        temperature: of sampling.
        more: other fields of every request.
    """

    name = "openai"

    def __init__(
        self,
        url: str,
        *,
        model: str | None = None,
        token: str | None = None,
        ignore_eos: bool = True,
        temperature: float = 0.0,
        more: Mapping[str, Any] | None = None,
    ) -> None:
        self._base = api_base(url)
        self._fields: dict[str, Any] = {
            "model": model,
            "temperature": temperature,
            "stream": True,
            "stream_options": {"include_usage": True},
            **({"ignore_eos": True} if ignore_eos else {}),
            **(more or {}),
        }
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEPT_SECONDS),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS),
            headers=None if token is None else {"Authorization": f"Bearer {token}"},
        )

    async def facts(self) -> ServerFacts:
        """The served model from `GET /v1/models`; without that page, the given name."""
        stated = self._fields["model"]
        try:
            async with self._session.get(f"{self._base}/models") as answer:
                body = await answer.read()
                if answer.status != 200:
                    raise BackendError(f"{self._base}/models: HTTP {answer.status}: {_text_of(body)}")
                models = json.loads(body)["data"]
                known: dict[str, Any] = next((model for model in models if stated in (None, model["id"])), {})
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise BackendError(f"no answer from {self._base}: {_reason(error)}") from None
        except (BackendError, ValueError, KeyError, TypeError) as error:
            if stated is not None:
                return ServerFacts(stated)
            why = error if isinstance(error, BackendError) else f"{self._base}/models lists no models"
            raise BackendError(f"{why}; name the model with --served-model") from None
        if stated is None:
            if not known:
                raise BackendError(f"{self._base}/models lists no models; name one with --served-model")
            self._fields["model"] = known["id"]
        context = known.get("max_model_len")
        return ServerFacts(self._fields["model"], context_tokens=context if isinstance(context, int) else None)

    async def prepare(self, prompt: Prompt, wanted: Wanted) -> bytes:
        """The body of a request."""
        fields = self._fields | {"max_tokens": wanted.output_tokens}
        if wanted.priority:  # an extension that vLLM knows
            fields["priority"] = wanted.priority
        if isinstance(prompt, str):
            return json.dumps(fields | {"prompt": prompt}).encode()
        pieces = [json.dumps(fields)[:-1], ', "prompt": [']
        for start in range(0, len(prompt), SLICE):
            pieces.append(("," if start else "") + ",".join(map(str, prompt[start : start + SLICE].tolist())))
            if len(prompt) > SLICE:
                await asyncio.sleep(0)
        return "".join([*pieces, "]}"]).encode()

    async def send(self, prepared: bytes, taken: Callable[[], None], heard: Callable[[int], None]) -> Reply:
        """Stream one completion."""
        stream, events = _Stream(heard), EventStream()
        try:
            async with self._session.post(
                f"{self._base}/completions", data=prepared, headers={"Content-Type": "application/json"}
            ) as answer:
                await _check(answer)
                taken()
                async for received in answer.content.iter_any():
                    for data in events.feed(received):
                        stream.event(data)
                for data in events.end():
                    stream.event(data)
        except StreamError as error:
            raise RequestFailedError(str(error)) from None
        except (aiohttp.ClientError, OSError) as error:
            if not stream.done:
                where = f"after {stream.messages} messages" if stream.messages else "before the first message"
                raise RequestFailedError(f"the connection broke {where}: {_reason(error)}") from None
        if not (stream.done or stream.finished):
            raise RequestFailedError(
                f"the stream ended after {stream.messages} messages without a finish reason and without [DONE]"
            )
        usage, output = stream.usage, stream.output
        details = usage.get("prompt_tokens_details")
        return Reply(
            "chunks" if output is None else "usage",
            prompt_tokens=_count(usage, "prompt_tokens"),
            output_tokens=output,
            cached_tokens=_count(details, "cached_tokens") if isinstance(details, dict) else None,
        )

    async def close(self) -> None:
        """End the connections."""
        await self._session.close()


def api_base(url: str) -> str:
    """The base URL of the API.

    Raises:
        BackendError: `url` is no HTTP address.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise BackendError(f"{url!r} is no address of a server; give one as in http://127.0.0.1:8000")
    base = url.rstrip("/").removesuffix("/completions")
    return base if parts.path.strip("/") else f"{base}/v1"


async def _check(answer: aiohttp.ClientResponse) -> None:
    """Check that an answer is a stream of events."""
    if answer.status != 200:
        raise RequestFailedError(f"HTTP {answer.status}: {_text_of(await answer.content.read(2**16))}")
    if answer.content_type != "text/event-stream":
        raise RequestFailedError(f"the answer is {answer.content_type}, not text/event-stream")


def _is_error(chunk: Mapping[str, Any]) -> bool:
    """Whether an event tells of an error: as OpenAI does, or as the bare object of an error."""
    if chunk.get("error") or chunk.get("object") == "error":
        return True
    bare = chunk.get("choices") is None and chunk.get("usage") is None
    return bare and any(chunk.get(name) for name in ("message", "detail", "code"))


def _count(usage: Mapping[str, Any], name: str) -> int | None:
    """A count of the usage; None if there is none.

    Raises:
        RequestFailedError: it is more than a record can hold.
    """
    value = usage.get(name)
    if not isinstance(value, int) or value < 0:
        return None
    if value > MOST_TOKENS:
        raise RequestFailedError(f"the usage has {value:,} {name}; allowed are up to {MOST_TOKENS:,}")
    return value


def _text_of(body: bytes) -> str:
    """The message in an error's body of any form."""
    try:
        stated = json.loads(body)
    except ValueError:
        return _shown(body)
    return _message(stated) if isinstance(stated, dict) else _shown(body)


def _message(stated: Mapping[str, Any]) -> str:
    error = stated.get("error")
    source = error if isinstance(error, dict) else stated
    message = error if isinstance(error, str) else source.get("message") or source.get("detail") or stated
    return _one_line(str(message))


def _shown(data: bytes) -> str:
    return _one_line(data.decode("utf-8", "replace")) or "nothing"


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= SHOWN else f"{line[:SHOWN]}…"


def _reason(error: BaseException) -> str:
    return _one_line(str(error)) or type(error).__name__
