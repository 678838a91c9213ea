"""A client for threads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message

from medha_jax.client.answers import Event, LoadInfo, ModelInfo, event_from, load_from, model_from
from medha_jax.client.connection import (
    SERVICE,
    Connection,
    Settings,
    part_messages,
    request_message,
)
from medha_jax.client.errors import error_from
from medha_jax.protos import inference_pb2 as pb

LONG_PROMPT = 65536  # tokens from which a prompt goes in parts
M = TypeVar("M", bound=Message)


class Client:
    """Talks to a server; threads may share it. Close it, or use it in a `with` block.

    >>> with Client("127.0.0.1:9320") as client:
    ...     for event in client.generate("import unittest", max_tokens=40):
    ...         if isinstance(event, Delta):
    ...             print(event.text, end="")

    Args:
        server: HOST:PORT, or a `Connection` where TLS or a token is needed.
    """

    def __init__(self, server: str | Connection) -> None:
        self._connection = Connection(server) if isinstance(server, str) else server
        self._channel = self._connection.channel()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the connection, and what still runs over it."""
        self._channel.close()

    def generate(
        self, prompt: str | Sequence[int], *, timeout: float | None = None, **settings: Any
    ) -> Iterator[Event]:
        """Continue a prompt: `Accepted`, then `Delta`s as they come, then `Finished`.

        The request ends in the server, too, when the iterator is closed or dropped. Long prompts of token ids go in
        parts.

        Args:
            prompt: text, or token ids.
            timeout: seconds after which the caller stops waiting; the server's scheduler knows of it.
            settings: fields of `Settings`.

        Raises:
            ServerError: the server refused the request, or ended it.
        """
        stated = Settings(**settings)
        called: dict[str, Any] = dict(timeout=timeout, metadata=self._connection.metadata)
        if isinstance(prompt, str) or len(prompt) < LONG_PROMPT:
            method: Any = self._channel.unary_stream(
                SERVICE + "Generate",
                request_serializer=pb.GenerateRequest.SerializeToString,
                response_deserializer=pb.GenerateEvent.FromString,
            )
            call = method(request_message(prompt, stated), **called)
        else:
            method = self._channel.stream_stream(
                SERVICE + "GenerateStream",
                request_serializer=pb.GeneratePart.SerializeToString,
                response_deserializer=pb.GenerateEvent.FromString,
            )
            call = method(part_messages(prompt, stated), **called)
        return _events(call)

    def tokenize(self, text: str, *, timeout: float | None = None) -> tuple[int, ...]:
        """Token ids of a text.

        Raises:
            ServerError: as `generate`.
        """
        return tuple(self._call("Tokenize", pb.TokenizeRequest(text=text), pb.TokenizeResponse, timeout).token_ids)

    def model(self, *, timeout: float | None = None) -> ModelInfo:
        """What the server runs and takes.

        Raises:
            ServerError: as `generate`.
        """
        return model_from(self._call("GetModelInfo", pb.GetModelInfoRequest(), pb.ModelInfo, timeout))

    def load(self, *, timeout: float | None = None) -> LoadInfo:
        """What the server does now.

        Raises:
            ServerError: as `generate`.
        """
        return load_from(self._call("GetLoad", pb.GetLoadRequest(), pb.LoadInfo, timeout))

    def abort(self, request_id: str, *, timeout: float | None = None) -> bool:
        """End a request, of this client or another; returns whether it was running.

        Raises:
            ServerError: as `generate`.
        """
        return self._call("Abort", pb.AbortRequest(request_id=request_id), pb.AbortResponse, timeout).found

    def _call(self, method: str, message: Message, kind: type[M], timeout: float | None) -> M:
        call = self._channel.unary_unary(
            SERVICE + method,
            request_serializer=type(message).SerializeToString,
            response_deserializer=kind.FromString,
        )
        try:
            return call(message, timeout=timeout, metadata=self._connection.metadata)
        except grpc.RpcError as error:
            raise error_from(error) from None


def _events(call: Any) -> Iterator[Event]:
    try:
        for message in call:
            yield event_from(message)
    except grpc.RpcError as error:
        raise error_from(error) from None
    finally:
        call.cancel()
