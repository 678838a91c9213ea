"""The connection to a server, and the calls over it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeGuard

import grpc
from google.protobuf.message import Message
from grpc import aio

from medha_jax.client.chat_message import Chat
from medha_jax.client.message_fields import (
    InvalidSettingError,
    check_text,
    filled,
    in_parts,
    prompt_ids,
)
from medha_jax.client.structured import Structured
from medha_jax.net import is_loopback, named_host
from medha_jax.protos import inference_pb2 as pb

SERVICE = "/medha.v1.Inference/"
MOST_TOP_K = 2**31 - 1  # a larger one means the same: all
PART_TOKENS = 65536  # a prompt of token ids with as many or more is sent in parts of this size
OPTIONS = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", 64 * 2**20),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
)


@dataclass(frozen=True)
class Connection:
    """How a server is reached.

    Args:
        address: HOST:PORT.
        tls: encrypt; `ca` or `cert` encrypts, too.
        ca: PEM file of the authority that signed the server's certificate; None trusts the system's.
        cert: PEM file of this client's certificate, if the server asks for one.
        key: PEM file of the certificate's key.
        token: bearer token, if the server asks for one.
        server_name: name in the server's certificate, if it is not the host.

    Raises:
        InvalidSettingError: address or name cannot be sent as text.
    """

    address: str
    tls: bool = False
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    token: str | None = field(default=None, repr=False)
    server_name: str | None = None

    def __post_init__(self) -> None:
        check_text("the address", self.address)
        check_text("server_name", self.server_name or "")

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Metadata of every call."""
        return () if self.token is None else (("authorization", f"Bearer {self.token}"),)

    def channel(self) -> grpc.Channel:
        """Open a channel; nothing is sent yet.

        Raises:
            OSError: a file cannot be read.
        """
        credentials = self._credentials()
        if credentials is None:
            return grpc.insecure_channel(self.address, self._options())
        return grpc.secure_channel(self.address, credentials, self._options())

    def aio_channel(self) -> aio.Channel:
        """As `channel`, for asyncio."""
        credentials = self._credentials()
        if credentials is None:
            return aio.insecure_channel(self.address, self._options())
        return aio.secure_channel(self.address, credentials, self._options())

    def _credentials(self) -> grpc.ChannelCredentials | None:
        if not (self.tls or self.ca or self.cert):
            return None
        read = [None if path is None else path.read_bytes() for path in (self.ca, self.key, self.cert)]
        return grpc.ssl_channel_credentials(*read)

    def _options(self) -> list[tuple[str, int | str]]:
        named = [] if self.server_name is None else [("grpc.ssl_target_name_override", self.server_name)]
        # gRPC sends even 127.0.0.1 through the proxy that http_proxy names, and a proxy has another loopback
        direct = [("grpc.enable_http_proxy", 0)] if is_loopback(named_host(self.address)) else []
        return [*OPTIONS, *named, *direct]


@dataclass(frozen=True)
class Settings:
    """Settings of one generation; None takes the server's default. Ranges are in inference.proto.

    Args:
        ttft_ms: target for the first token, in milliseconds.
        tpot_ms: target for each later token, in milliseconds.
        on_deadline: continue or drop the request when its first token is late.
        cache_salt: only requests of the same tenant with the same salt share cached pages.
        add_special_tokens: whether the tokenizer adds its own to a text, often a first BOS token.
        skip_special_tokens: whether special tokens are left out of the output's text.
        priority: class of the request, -2 to 2; a lower one goes first.
        progress: whether `PromptProgress` comes before the first token, at most once a second.
        n: outputs of the prompt, told apart by `Delta.index` and `Finished.index`; None is one.
        logit_bias: what is added to the logits of these token ids.
        allowed_token_ids: the only tokens that are sampled; at least one.
        prompt_logprobs: log-probabilities of the prompt's tokens and of so many of the likeliest, in `PromptLogprobs`.
        echo: whether the text begins with the prompt, in `Delta`s without tokens.
        structured: what each output shall follow.
    """

    max_tokens: int | None = None
    min_tokens: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    stop: Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    include_stop: bool | None = None
    ignore_eos: bool | None = None
    logprobs: int | None = None
    request_id: str | None = None
    ttft_ms: float | None = None
    tpot_ms: float | None = None
    on_deadline: Literal["continue", "drop"] | None = None
    cache_salt: str | None = None
    skip_special_tokens: bool | None = None
    add_special_tokens: bool | None = None
    progress: bool | None = None
    n: int | None = None
    priority: int | None = None
    logit_bias: Mapping[int, float] | None = None
    allowed_token_ids: Sequence[int] | None = None
    echo: bool | None = None
    prompt_logprobs: int | None = None
    structured: Structured | None = None

    def message(self) -> pb.GenerateSettings:
        """The settings as a message.

        Raises:
            InvalidSettingError: a value does not fit its field.
        """
        deadlines = {None: pb.ON_DEADLINE_UNSPECIFIED, "continue": pb.ON_DEADLINE_CONTINUE, "drop": pb.ON_DEADLINE_DROP}
        if self.on_deadline not in tuple(deadlines):
            raise InvalidSettingError(f"on_deadline is {self.on_deadline!r}; allowed are continue and drop")
        if not isinstance(self.structured, Structured | None):
            raise InvalidSettingError(f"structured is of type {type(self.structured).__name__}; give a Structured")
        sampling = {name: getattr(self, name) for name in pb.SamplingSettings.DESCRIPTOR.fields_by_name}
        if isinstance(self.top_k, int):
            sampling["top_k"] = min(self.top_k, MOST_TOP_K)
        filled(pb.GenerateRequest, {"n": self.n})
        own = ("request_id", "cache_salt", "progress", "priority", "echo")
        message = filled(pb.GenerateSettings, {name: getattr(self, name) for name in own})
        message.sampling.CopyFrom(filled(pb.SamplingSettings, sampling))
        message.slo.CopyFrom(filled(pb.SloSettings, {"ttft_ms": self.ttft_ms, "tpot_ms": self.tpot_ms}))
        message.on_deadline = deadlines[self.on_deadline]
        if self.structured is not None:
            message.structured.CopyFrom(self.structured.message())
        return message


def unary(
    channel: grpc.Channel | aio.Channel, method: str, request: type[Message], answer: type[Message]
) -> Callable[..., Any]:
    """The callable of a method with one request and one answer."""
    return channel.unary_unary(
        SERVICE + method, request_serializer=request.SerializeToString, response_deserializer=answer.FromString
    )


def generation(
    channel: grpc.Channel | aio.Channel,
    prompt: str | Sequence[int] | Chat,
    settings: Settings,
    parts: Callable[[Sequence[int], pb.GenerateSettings], Any],
    **options: Any,
) -> Any:
    """Start a generation; returns the call, which streams `GenerateEvent`s.

    Args:
        channel: of a client of either kind.
        prompt: text, token ids or a chat; many ids for one output go as `GenerateStream`, all else as `Generate`.
        settings: of the generation.
        parts: makes the messages of `GenerateStream`, as `part_messages`.
        options: of the call: timeout, metadata.

    Raises:
        InvalidSettingError: a value or the prompt does not fit, or `add_special_tokens` stands beside what is no text.
    """
    answers, message = pb.GenerateEvent.FromString, settings.message()  # refused here, not in a thread of gRPC
    added = settings.add_special_tokens
    if not isinstance(prompt, str) and added is not None:
        kind = "a chat" if isinstance(prompt, Chat) else "token ids"
        raise InvalidSettingError(f"add_special_tokens is for a text; the prompt is {kind}")
    if goes_in_parts(prompt, settings):
        stream: Any = channel.stream_stream(
            SERVICE + "GenerateStream",
            request_serializer=pb.GeneratePart.SerializeToString,
            response_deserializer=answers,
        )
        return stream(parts(prompt, message), **options)
    single: Any = channel.unary_stream(
        SERVICE + "Generate", request_serializer=pb.GenerateRequest.SerializeToString, response_deserializer=answers
    )
    if isinstance(prompt, str):
        check_text("the prompt", prompt)
        asked = pb.GenerateRequest(text=prompt, settings=message, add_special_tokens=added, n=settings.n)
    elif isinstance(prompt, Chat):
        asked = pb.GenerateRequest(chat=prompt.message(), settings=message, n=settings.n)
    else:
        asked = pb.GenerateRequest(token_ids=prompt_ids(prompt), settings=message, n=settings.n)
    return single(asked, **options)


def goes_in_parts(prompt: str | Sequence[int] | Chat, settings: Settings) -> TypeGuard[Sequence[int]]:
    """Whether a prompt goes as `GenerateStream`: many token ids, for one output."""
    return not isinstance(prompt, (str, Chat)) and (settings.n or 1) == 1 and len(prompt) >= PART_TOKENS


def part_messages(prompt: Sequence[int], settings: pb.GenerateSettings) -> Iterator[pb.GeneratePart]:
    """The messages of `GenerateStream`: the settings, then the ids in parts."""
    yield pb.GeneratePart(start=pb.GenerateStart(settings=settings, prompt_tokens=len(prompt)))
    for part in in_parts(prompt, PART_TOKENS):
        yield pb.GeneratePart(token_ids=prompt_ids(part))


def tokenize_message(text: str | Chat, add_special_tokens: bool | None) -> pb.TokenizeRequest:
    """The message of `Tokenize`.

    Raises:
        InvalidSettingError: the text or the chat fits no message.
    """
    if isinstance(text, Chat):
        return pb.TokenizeRequest(chat=text.message(), add_special_tokens=add_special_tokens)
    check_text("the text", text)
    return pb.TokenizeRequest(text=text, add_special_tokens=add_special_tokens)
