"""How a server is reached, and the messages that it is sent."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import grpc
from grpc import aio

from medha_jax.protos import inference_pb2 as pb

SERVICE = "/medha.v1.Inference/"
PART_TOKENS = 65536  # of a prompt that is sent in parts
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
        tls: whether to encrypt; so it is, too, where one of the files is given.
        ca: PEM file of the authority of the server's certificate; None trusts the system's.
        cert: PEM file of this client's certificate, where the server wants one.
        key: its key.
        token: bearer token, where the server wants one.
        server_name: that the server's certificate names, if it is not the host.
    """

    address: str
    tls: bool = False
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    token: str | None = None
    server_name: str | None = None

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What goes with every call."""
        return () if self.token is None else (("authorization", f"Bearer {self.token}"),)

    def channel(self) -> grpc.Channel:
        """A channel; nothing is sent yet.

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
        return [*OPTIONS, *named]


@dataclass(frozen=True)
class Settings:
    """How to generate, beside the prompt; what is None is the server's default. Ranges are in inference.proto.

    Args:
        ttft_ms: milliseconds to the first token that the scheduler aims at.
        tpot_ms: milliseconds per output token after it.
        on_deadline: whether the request is still served when its first token was due and is not there.
        cache_salt: only requests of one salt share cached pages.
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

    def message(self) -> pb.GenerateSettings:
        """As a message.

        Raises:
            ValueError: a value does not fit its field.
        """
        deadlines = {None: pb.ON_DEADLINE_UNSPECIFIED, "continue": pb.ON_DEADLINE_CONTINUE, "drop": pb.ON_DEADLINE_DROP}
        sampling = {name: getattr(self, name) for name in pb.SamplingSettings.DESCRIPTOR.fields_by_name}
        return pb.GenerateSettings(
            request_id=self.request_id,
            sampling=pb.SamplingSettings(**sampling),
            slo=pb.SloSettings(ttft_ms=self.ttft_ms, tpot_ms=self.tpot_ms),
            on_deadline=deadlines[self.on_deadline],
            cache_salt=self.cache_salt,
        )


def request_message(prompt: str | Sequence[int], settings: Settings) -> pb.GenerateRequest:
    """The message of a prompt, given as text or as token ids."""
    if isinstance(prompt, str):
        return pb.GenerateRequest(text=prompt, settings=settings.message())
    return pb.GenerateRequest(token_ids=pb.PromptIds(ids=prompt), settings=settings.message())


def part_messages(prompt: Sequence[int], settings: Settings) -> Iterator[pb.GeneratePart]:
    """The messages of a prompt that goes in parts."""
    yield pb.GeneratePart(start=pb.GenerateStart(settings=settings.message(), prompt_tokens=len(prompt)))
    for start in range(0, len(prompt), PART_TOKENS):
        yield pb.GeneratePart(token_ids=pb.PromptIds(ids=prompt[start : start + PART_TOKENS]))
