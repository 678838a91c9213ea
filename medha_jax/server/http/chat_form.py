"""Choices of `/v1/chat/completions`: content, reasoning and tool calls, as deltas or as whole messages."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from medha_jax.chat import (
    ChatPiece,
    ContentPiece,
    OutputParser,
    ReasoningPiece,
    ToolCallArguments,
    ToolCallStart,
)
from medha_jax.server.http.chat_request import AskedChat
from medha_jax.server.http.choices import News, how_it_ended, token_text
from medha_jax.server.http.token_texts import chat_logprobs
from medha_jax.server.request_parser import ServedModel


@dataclass
class _Choice:
    """The parser of one choice, and what it has told: whether its role, whether a call."""

    parser: OutputParser
    began: bool = False
    called: bool = False


@dataclass
class _Message:
    """Pieces of a message, joined: its texts, and its calls by their index, of which only the first `most` count."""

    most: int | None = None
    content: str = ""
    reasoning: str = ""
    calls: dict[int, dict[str, Any]] = field(default_factory=dict)

    def add(self, piece: ChatPiece) -> None:
        """Join a piece."""
        match piece:
            case ContentPiece(text):
                self.content += text
            case ReasoningPiece(text):
                self.reasoning += text
            case ToolCallStart(index) | ToolCallArguments(index) if self.most is not None and index >= self.most:
                pass
            case ToolCallStart(index, call_id, name):
                function = {"name": name, "arguments": ""}
                self.calls[index] = {"index": index, "id": call_id, "type": "function", "function": function}
            case ToolCallArguments(index, text):
                call = self.calls.setdefault(index, {"index": index, "function": {"arguments": ""}})
                call["function"]["arguments"] += text


class ChatForm:
    """Writes messages of the assistant. It has a parser for each choice, so each answer has its own form."""

    object, chunk_object = "chat.completion", "chat.completion.chunk"
    id_prefix = "chatcmpl-"

    def __init__(self, asked: AskedChat, model: ServedModel) -> None:
        self._asked, self._text_of = asked, token_text(model)
        self._choices: dict[int, _Choice] = {}

    def chunk(self, index: int, news: News) -> dict[str, Any] | None:
        """The delta of a choice; None if nothing of it can be told yet."""
        choice, message = self._parsed(index, news)
        delta: dict[str, Any] = {} if choice.began else {"role": "assistant"}
        if message.content or not (choice.began or message.reasoning or message.calls):
            delta["content"] = message.content
        if message.reasoning:
            delta["reasoning_content"] = message.reasoning
        if message.calls:
            delta["tool_calls"] = list(message.calls.values())
        if not delta and not news.finished and not news.scored:
            return None
        choice.began = True
        return {"index": index, "delta": delta} | self._rest(choice, news)

    def whole(self, index: int, news: News) -> dict[str, Any]:
        """The message of a choice."""
        choice, message = self._parsed(index, news)
        said: dict[str, Any] = {"role": "assistant", "content": message.content or (None if message.calls else "")}
        if message.reasoning:
            said["reasoning_content"] = message.reasoning
        if message.calls:
            said["tool_calls"] = [
                {name: call[name] for name in ("id", "type", "function")} for call in message.calls.values()
            ]
        return {"index": index, "message": said} | self._rest(choice, news)

    def _parsed(self, index: int, news: News) -> tuple[_Choice, _Message]:
        """The choice, and the pieces of what is new in it."""
        text = news.text
        if (choice := self._choices.get(index)) is None:
            choice = self._choices[index] = _Choice(self._parser())
            text = self._asked.opening + text
        message = _Message(1 if self._asked.one_call else None)
        for piece in [*choice.parser.feed(text), *(choice.parser.end() if news.finished else ())]:
            message.add(piece)
        choice.called = choice.called or bool(message.calls)
        return choice, message

    def _parser(self) -> OutputParser:
        asked = self._asked
        return OutputParser(
            asked.tools, asked.reasoning, prompt=asked.prompt, functions=asked.functions, hidden=asked.hidden
        )

    def _rest(self, choice: _Choice, news: News) -> dict[str, Any]:
        scores, top = None, self._asked.logprobs
        if top is not None and news.scored:
            scores = chat_logprobs(news.scored, self._text_of, top)
        ending = how_it_ended(news.finished)
        if choice.called and ending["finish_reason"] == "stop":
            ending["finish_reason"] = "tool_calls"
        return {"logprobs": scores} | ending
