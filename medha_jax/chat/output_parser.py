"""Tells content, reasoning and calls of functions apart in a model's output, as it comes."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection

from medha_jax.chat.call_reader import SPACE, CallReader
from medha_jax.chat.json_scanner import NoJsonError
from medha_jax.chat.output_pieces import (
    ChatPiece,
    ContentPiece,
    ReasoningPiece,
    ToolCallArguments,
    ToolCallStart,
    joined,
)
from medha_jax.chat.tool_formats import ReasoningFormat, ToolFormat

_MARKERS = {"hermes": "<tool_call>", "llama3_json": "<|python_tag|>", "mistral": "[TOOL_CALLS]"}


class _Marks:
    """Finds the first of some texts, the longest of those that begin together, however the text is cut."""

    def __init__(self, marks: Collection[str]) -> None:
        longest_first = sorted(marks, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        self._begun = frozenset(mark[:length] for mark in marks for length in range(1, len(mark)))
        self._longest = max(map(len, marks), default=0)

    def split(self, text: str, last: bool = False) -> tuple[str, str | None, str]:
        """What is surely before a mark, the mark or None, and the rest; `last` says that no text follows."""
        kept = 0 if last else self.begun(text)
        found = self._pattern.search(text)
        if found is None or (kept and len(text) - kept <= found.start()):
            return text[: len(text) - kept], None, text[len(text) - kept :]
        return text[: found.start()], found.group(), text[found.end() :]

    def begun(self, text: str) -> int:
        """Length of the longest beginning of a mark that ends the text."""
        lengths = range(min(self._longest - 1, len(text)), 0, -1)
        return next((length for length in lengths if text[-length:] in self._begun), 0)


class OutputParser:
    """Reads one output. The pieces are the same however the text is cut. Owns what is not certain yet.

    What begins like a call and is none is content, unchanged; so is everything else that belongs to no call and no
    reasoning. White space around calls and line breaks at the marks of reasoning are part of the format. A call is
    known by its name and the beginning of its arguments, which are then passed on as they come: if they break off, what
    came of them stays, and the rest is content.

    Args:
        tools: how the model writes calls; None if it may call no function: what looks like a call is content then.
        reasoning: the marks of its reasoning; None for none.
        prompt: the end of the prompt, which may have begun the reasoning.
        functions: names of the functions of the request: a call of another one is content. None for any.
        hidden: special tokens whose text is left out, where a request shows special tokens for the sake of calls;
            markers may be among them, and are not left out.
        new_id: makes the calls' ids; None for the format's own.
    """

    def __init__(
        self,
        tools: ToolFormat | None,
        reasoning: ReasoningFormat | None = None,
        *,
        prompt: str = "",
        functions: Collection[str] | None = None,
        hidden: Collection[str] = (),
        new_id: Callable[[], str] | None = None,
    ) -> None:
        self._tools, self._functions = tools, functions
        self._new_id = new_id or (tools.new_id if tools is not None else str)
        self._bare = tools is not None and tools.name == "llama3_json"
        own = {*(tools.markers if tools else ()), *((reasoning.opens, reasoning.closes) if reasoning else ())}
        self._hidden = frozenset(hidden) - own - {""}
        self._in_content = _Marks({*self._hidden, *((_MARKERS[tools.name],) if tools else ())})
        self._in_reasoning = _Marks({*self._hidden, *((reasoning.closes,) if reasoning else ())})
        self._opens = reasoning.opens if reasoning else ""
        self._closes = reasoning.closes if reasoning else ""
        self._pieces: list[ChatPiece] = []
        self._tail = ""  # read, and may be the beginning of a mark
        self._space = ""  # white space of the content that may stand before a call
        self._breaks = ""  # line breaks of the reasoning that may stand before its end
        self._reader: CallReader | None = None
        self._calls = 0
        self._after_call = False  # nothing was said since the last call
        self._fresh = True  # nothing was said yet
        self._may_reason = reasoning is not None
        self._skip_breaks = False  # a mark of reasoning has just been read
        self._state = self._read_content
        if reasoning is not None and reasoning.begins_within(prompt):
            self._reason()

    def feed(self, text: str) -> list[ChatPiece]:
        """Take more text; returns what is certain now."""
        while text:
            text = self._state(text)
        return self._given()

    def end(self) -> list[ChatPiece]:
        """End the output; returns the rest. What may have become a call is content, if it has no name yet."""
        if self._reader is not None and not self._reader.between:
            self._say(self._reader.held)
        elif self._state == self._read_reasoning:
            self._think(self._breaks + self._unhidden(self._tail))
        elif self._reader is None:
            self._say(self._unhidden(self._tail))
        if self._space and not self._after_call:
            self._pieces.append(ContentPiece(self._space))
        self._tail = self._space = self._breaks = ""
        self._state, self._reader = self._read_content, None
        return self._given()

    def _given(self) -> list[ChatPiece]:
        given, self._pieces = joined(self._pieces), []
        return given

    def _unhidden(self, text: str) -> str:
        """The last text, which was held because a longer mark might have begun in it."""
        said = ""
        while text:
            before, _, text = _Marks(self._hidden).split(text, last=True)
            said += before
        return said

    def _read_content(self, text: str) -> str:
        text, self._tail = self._tail + text, ""
        if self._skip_breaks:
            text = text.lstrip("\n")
            self._skip_breaks = not text
        begun = text.lstrip(SPACE)
        if self._may_reason:
            if begun.startswith(self._opens):
                self._reason()
                return begun[len(self._opens) :]
            if self._opens.startswith(begun):
                self._tail = text
                return ""
            self._may_reason = False
        if self._bare and self._fresh:
            if not begun:
                self._tail = text
                return ""
            if begun[0] == "{":
                self._say(text[: len(text) - len(begun)])
                return self._begin("", begun)
        before, mark, rest = self._in_content.split(text)
        self._say(before)
        if mark is None:
            self._tail = rest
            return ""
        return rest if mark in self._hidden else self._begin(mark, rest)

    def _say(self, text: str) -> None:
        """Content; white space at its end waits for what follows, where that may be a call."""
        text = self._space + text
        said = text if self._tools is None else text.rstrip(SPACE)
        self._space = text[len(said) :]
        if said:
            self._fresh = self._after_call = False
            self._pieces.append(ContentPiece(said))

    def _reason(self) -> None:
        self._may_reason, self._skip_breaks, self._state = False, True, self._read_reasoning

    def _read_reasoning(self, text: str) -> str:
        text, self._tail = self._tail + text, ""
        if self._skip_breaks:
            text = text.lstrip("\n")
            self._skip_breaks = not text
        before, mark, rest = self._in_reasoning.split(text)
        before = self._breaks + before
        thought = before.rstrip("\n")
        self._breaks = before[len(thought) :]
        self._think(thought)
        if mark is None:
            self._tail = rest
            return ""
        if mark == self._closes:
            self._breaks, self._skip_breaks, self._state = "", True, self._read_content
        return rest

    def _think(self, text: str) -> None:
        if text:
            self._pieces.append(ReasoningPiece(text))

    def _begin(self, marker: str, rest: str) -> str:
        """Begin what may be a call, behind its marker."""
        assert self._tools is not None
        self._reader = CallReader(self._tools, self._functions, marker, self._calls)
        self._state = self._read_call
        return rest

    def _read_call(self, text: str) -> str:
        reader = self._reader
        assert reader is not None
        for at, character in enumerate(text):
            try:
                complete = reader.push(character)
            except NoJsonError:
                self._take(reader)
                kept = self._in_content.begun(reader.held)
                self._say(reader.held[: len(reader.held) - kept])
                self._state, self._reader = self._read_content, None
                return reader.held[len(reader.held) - kept :] + text[at:]
            if complete:
                self._take(reader)
                self._state, self._reader = self._read_content, None
                return text[at + 1 :]
        self._take(reader)
        return ""

    def _take(self, reader: CallReader) -> None:
        for index, name, arguments in reader.events:
            if name is None:
                self._pieces.append(ToolCallArguments(index, arguments))
            else:
                self._space, self._after_call, self._fresh = "", True, False
                self._calls = index + 1
                self._pieces.append(ToolCallStart(index, self._new_id(), name))
        reader.events.clear()
