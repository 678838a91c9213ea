"""A client for threads."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message

from medha_jax.client.answers import Event, LoadInfo, ModelInfo, event_from, load_from, model_from
from medha_jax.client.chat_message import Chat, chat_or_prompt
from medha_jax.client.connection import (
    PART_TOKENS,
    Connection,
    Settings,
    generation,
    goes_in_parts,
    part_messages,
    tokenize_message,
    unary,
)
from medha_jax.client.errors import error_from
from medha_jax.client.message_fields import check_ids, check_text, in_parts, seconds_left
from medha_jax.client.whole_answer import Answer, AnswerBuilder
from medha_jax.protos import inference_pb2 as pb

M = TypeVar("M", bound=Message)


class Client:
    """A client that threads may share. Close it, or use it in a `with` block.

    >>> with Client("127.0.0.1:9320") as client:
    ...     for event in client.generate("import unittest", max_tokens=40):
    ...         if isinstance(event, Delta):
    ...             print(event.text, end="")

    Args:
        server: HOST:PORT; a `Connection` for TLS or a token.
    """

    def __init__(self, server: str | Connection) -> None:
        self._connection = Connection(server) if isinstance(server, str) else server
        self._channel = self._connection.channel()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connection and all calls over it."""
        self._channel.close()

    def generate(
        self,
        prompt: str | Sequence[int] | Chat | None = None,
        *,
        messages: Sequence[Mapping[str, Any]] | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        timeout: float | None = None,
        **settings: Any,
    ) -> Generator[Event, None, None]:
        """Continue a prompt: `Accepted`, then `Delta`s as they come, then `Finished`.

        With `n` above 1 there are as many `Finished`, and `index` tells the outputs apart. Closing or dropping the
        iterator ends the request in the server, too. Many token ids go in parts, if one output is wanted.

        Args:
            prompt: text, token ids or a `Chat`.
            messages: of a conversation, in place of a prompt, as in `Chat`.
            tools: functions that the model may call in this conversation.
            timeout: seconds for the whole generation; the server's scheduler knows it. Ten years or more are none.
            settings: fields of `Settings`.

        Raises:
            InvalidSettingError: a value does not fit its field; nothing was sent.
            ServerError: the server refused the request, or ended it.
        """
        options: dict[str, Any] = dict(timeout=seconds_left(timeout), metadata=self._connection.metadata)
        stated, given = Settings(**settings), chat_or_prompt(prompt, messages, tools)
        if goes_in_parts(given, stated):
            check_ids(in_parts(given, PART_TOKENS))  # gRPC prints a traceback of what its own thread meets
        return _events(generation(self._channel, given, stated, part_messages, **options))

    def complete(self, prompt: str | Sequence[int] | Chat | None = None, **given: Any) -> Answer:
        """Continue a prompt and wait for the whole answer. Arguments and errors are those of `generate`.

        >>> client.complete("import unittest", max_tokens=40).text
        """
        building = AnswerBuilder()
        with closing(self.generate(prompt, **given)) as events:
            for event in events:
                building.add(event)
        return building.answer()

    def tokenize(
        self, text: str | Chat, *, add_special_tokens: bool | None = None, timeout: float | None = None
    ) -> tuple[int, ...]:
        """Token ids of a text or a chat.

        Of a text with those that the tokenizer adds to every text, unless `add_special_tokens` is False.

        Raises:
            ServerError: as `generate`.
        """
        asked = tokenize_message(text, add_special_tokens)
        return tuple(self._call("Tokenize", asked, pb.TokenizeResponse, timeout).token_ids)

    def model(self, *, timeout: float | None = None) -> ModelInfo:
        """The server's model and its limits.

        Raises:
            ServerError: as `generate`.
        """
        return model_from(self._call("GetModelInfo", pb.GetModelInfoRequest(), pb.ModelInfo, timeout))

    def load(self, *, timeout: float | None = None) -> LoadInfo:
        """The server's load now.

        Raises:
            ServerError: as `generate`.
        """
        return load_from(self._call("GetLoad", pb.GetLoadRequest(), pb.LoadInfo, timeout))

    def abort(self, request_id: str, *, timeout: float | None = None) -> bool:
        """End a request of the same tenant, whichever client sent it; returns whether it was running.

        Raises:
            ServerError: as `generate`.
        """
        check_text("request_id", request_id)
        return self._call("Abort", pb.AbortRequest(request_id=request_id), pb.AbortResponse, timeout).found

    def _call(self, method: str, message: Message, kind: type[M], timeout: float | None) -> M:
        call = unary(self._channel, method, type(message), kind)
        try:
            answer: M = call(message, timeout=seconds_left(timeout), metadata=self._connection.metadata)
            return answer
        except grpc.RpcError as error:
            raise error_from(error) from None


def _events(call: Any) -> Generator[Event, None, None]:
    try:
        for message in call:
            yield event_from(message)
    except grpc.RpcError as error:
        raise error_from(error) from None
    finally:
        call.cancel()
