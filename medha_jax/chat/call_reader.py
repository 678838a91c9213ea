"""Reads calls of functions in the formats of the families, a character at a time."""

from __future__ import annotations

from collections.abc import Collection, Generator

from medha_jax.chat.json_scanner import CallScanner, JsonScanner, NoJsonError
from medha_jax.chat.tool_formats import ToolFormat

SPACE = " \t\r\n"
_LONGEST_NAME = 256  # characters of a function's name, of a call's id
_Reading = Generator[None, str, None]
_Next = Generator[None, str, str]


class CallReader:
    """Follows what stands behind a marker of calls. Owns its place.

    Attributes:
        events: calls and pieces of their arguments; whoever uses the reader takes them out.
        held: characters that were read and belong to no call yet.
        between: whether a call is complete and the next one has not begun, so that what is held only parts them.
    """

    def __init__(self, tools: ToolFormat, functions: Collection[str] | None, marker: str, first_index: int) -> None:
        """Begin behind `marker`, which is "" for a call without one. Indices go on from `first_index`."""
        self.events: list[tuple[int, str | None, str]] = []  # index, the name where a call begins, more arguments
        self.held, self.between = marker, False
        self._functions, self._index, self._bare = functions, first_index, tools.name == "llama3_json"
        read = {"hermes": self._hermes, "llama3_json": self._llama, "mistral": self._mistral}[tools.name]
        self._reading: _Reading = read()
        next(self._reading)

    def push(self, character: str) -> bool:
        """Take a character; returns whether the calls behind this marker are complete.

        Raises:
            NoJsonError: it belongs to no call. Nor does what is held.
        """
        held = self.held
        self.held += character
        try:
            self._reading.send(character)
        except StopIteration:
            return True
        except NoJsonError:
            self.held = held
            raise
        return False

    def _hermes(self) -> _Reading:
        yield from self._call((yield from _after_space()))
        yield from self._exactly("</tool_call>", (yield from _after_space()))

    def _llama(self) -> _Reading:
        character = yield from _after_space()
        while True:
            yield from self._call(character)
            character = yield from _after_space(SPACE + ";")

    def _mistral(self) -> _Reading:
        character = yield from _after_space()
        if character != "[":
            yield from self._named_call(character)
            return
        while True:
            yield from self._call((yield from _after_space()))
            character = yield from _after_space()
            if character == "]":
                return
            if character != ",":
                raise NoJsonError

    def _call(self, character: str) -> _Reading:
        """A call as an object, from its first character on."""
        call, began, self.between = CallScanner(), False, False
        while True:
            call.push(character)
            if not began and call.name is not None and (call.begun or (call.complete and not self._bare)):
                self._begin(call.name)
                began = True
            if began:
                self._go_on(call.take())
            if call.complete:
                break
            character = yield
        if not began:
            raise NoJsonError
        if not call.begun:
            self._go_on("{}")
        self._complete()

    def _named_call(self, character: str) -> _Reading:
        """`name[ARGS]{...}`, perhaps with `[CALL_ID]` and an id, from its first character on."""
        name = ""
        while character not in SPACE + "[{":
            name += character
            if len(name) > _LONGEST_NAME:
                raise NoJsonError
            character = yield
        if character == "[":
            character = yield
            if character == "C":
                yield from self._exactly("CALL_ID]", character)
                yield from self._id()
                character = yield
            yield from self._exactly("ARGS]", character)
            character = yield
        if character in SPACE:
            character = yield from _after_space()
        arguments = JsonScanner()
        text = arguments.push(character)
        if not name:
            raise NoJsonError
        self._begin(name)
        self._go_on(text)
        while arguments.expects != "nothing":
            text = arguments.push((yield))
            self._go_on(text)
        self._complete()

    def _id(self) -> _Reading:
        """Letters and digits, and the bracket behind them."""
        for _ in range(_LONGEST_NAME):
            character = yield
            if character == "[":
                return
            if not character.isalnum():
                break
        raise NoJsonError

    def _exactly(self, expected: str, character: str) -> _Reading:
        """A text whose first character has come; its last one is not followed."""
        for at, letter in enumerate(expected):
            if character != letter:
                raise NoJsonError
            if at + 1 < len(expected):
                character = yield

    def _begin(self, name: str) -> None:
        if self._functions is not None and name not in self._functions:
            raise NoJsonError
        self.events.append((self._index, name, ""))

    def _go_on(self, text: str) -> None:
        self.held = ""
        if text:
            self.events.append((self._index, None, text))

    def _complete(self) -> None:
        self.between = True
        self._index += 1


def _after_space(space: str = SPACE) -> _Next:
    """The first character that is none of `space`."""
    character = yield
    while character in space:
        character = yield
    return character
