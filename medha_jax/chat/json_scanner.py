"""Reads JSON a character at a time, and says at once when it is none."""

from __future__ import annotations

import json
import re

DEEPEST_ARGUMENTS = 128  # objects and lists within each other
_SPACE = " \t\r\n"
_LITERALS = {"t": "true", "f": "false", "n": "null"}
_NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?", re.ASCII)
_NUMBER_BEGUN = re.compile(r"-?((0|[1-9]\d*)(\.\d*)?|(0|[1-9]\d*)(\.\d+)?[eE][+-]?\d*)?", re.ASCII)
_LONGEST_NUMBER = 512  # characters
_ESCAPES = {"\n": "\\n", "\r": "\\r", "\t": "\\t", "\b": "\\b", "\f": "\\f"}


class NoJsonError(Exception):
    """The text so far is not the beginning of what it should be."""


class JsonScanner:
    """Follows one JSON object. Owns its place in it.

    A control character within a string, such as a line break, is passed on as JSON writes it: models forget that.

    Attributes:
        depth: objects and lists that are open.
        expects: "value", "key", "first key" (or the end), "first value" (or the end), "colon", "more" (a comma or the
            end), "string", "number", "literal", or "nothing" once the object is complete.
        in_key: whether the string is a key.
    """

    def __init__(self) -> None:
        self.depth, self.expects, self.in_key = 0, "value", False
        self._open: list[str] = []
        self._escaped, self._digits = False, 0  # behind a backslash; digits that are to come behind \u
        self._word = ""  # of a number so far, or what is to come of a literal

    def push(self, character: str) -> str:
        """Take a character; returns it as JSON.

        Raises:
            NoJsonError: it cannot stand there. The scanner is of no use from then on.
        """
        if self.expects == "string":
            return self._in_string(character)
        if self.expects == "number":
            if character not in _SPACE + ",]}":
                self._word += character
                if len(self._word) > _LONGEST_NUMBER or not _NUMBER_BEGUN.fullmatch(self._word):
                    raise NoJsonError
                return character
            if not _NUMBER.fullmatch(self._word):
                raise NoJsonError
            self.expects = "more"
        if self.expects == "literal":
            if character != self._word[0]:
                raise NoJsonError
            self._word = self._word[1:]
            self.expects = "literal" if self._word else "more"
        elif character not in _SPACE:
            self._structure(character)
        return character

    def _in_string(self, character: str) -> str:
        if self._escaped:
            if character not in '"\\/bfnrtu':
                raise NoJsonError
            self._escaped, self._digits = False, 4 if character == "u" else 0
        elif self._digits:
            if character not in "0123456789abcdefABCDEF":
                raise NoJsonError
            self._digits -= 1
        elif character == "\\":
            self._escaped = True
        elif character == '"':
            self.expects = "colon" if self.in_key else "more"
        elif character < " ":
            return _ESCAPES.get(character) or f"\\u{ord(character):04x}"
        return character

    def _structure(self, character: str) -> None:
        expects, top = self.expects, self._open[-1] if self._open else ""
        ends = {"}": ("first key", "{"), "]": ("first value", "[")}
        if character in ends and expects in (ends[character][0], "more") and top == ends[character][1]:
            self._close()
        elif character == "," and expects == "more" and top:
            self.expects = "key" if top == "{" else "value"
        elif character == ":" and expects == "colon":
            self.expects = "value"
        elif character == '"' and expects in ("key", "first key"):
            self.expects, self.in_key = "string", True
        elif expects in ("value", "first value"):
            self._value(character)
        else:
            raise NoJsonError

    def _value(self, character: str) -> None:
        if not self._open and character != "{":
            raise NoJsonError
        if character in "{[":
            if self.depth == DEEPEST_ARGUMENTS:
                raise NoJsonError
            self._open.append(character)
            self.depth, self.expects = self.depth + 1, "first key" if character == "{" else "first value"
        elif character == '"':
            self.expects, self.in_key = "string", False
        elif character in "-0123456789":
            self.expects, self._word = "number", character
        elif character in _LITERALS:
            self.expects, self._word = "literal", _LITERALS[character][1:]
        else:
            raise NoJsonError

    def _close(self) -> None:
        self._open.pop()
        self.depth -= 1
        self.expects = "more" if self._open else "nothing"


class CallScanner:
    """Follows the JSON object of one call: its name and its arguments, in any order, and other keys. Owns its place.

    Attributes:
        name: of the function; None until it is known.
        begun: whether the arguments have begun.
        complete: whether the object has ended.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self.begun = self.complete = False
        self._json, self._key, self._word = JsonScanner(), "", ""
        self._arguments: list[str] = []

    def push(self, character: str) -> None:
        """Take a character.

        Raises:
            NoJsonError: no call goes on so.
        """
        before = self._json.expects
        text = self._json.push(character)
        depth, expects = self._json.depth, self._json.expects
        self.complete = expects == "nothing"
        if depth == 1 and ((expects == "string" and self._json.in_key) or (before == "string" and expects == "colon")):
            self._word += text
            if expects == "colon":
                self._key, self._word = json.loads(self._word), ""
                self._check_key()
        elif self._key in ("arguments", "parameters"):
            self._argument(text, before)
        elif self._key == "name" and (before == "string" or expects == "string"):
            self._word += text
            if expects == "more":
                self.name, self._word, self._key = json.loads(self._word), "", ""
        elif self._key == "name" and before == "value" and character not in _SPACE:
            raise NoJsonError  # the name is no text
        if depth == 1 and expects in ("key", "more") and self._key not in ("arguments", "parameters"):
            self._key = ""

    def take(self) -> str:
        """The arguments' text that came since the last call of this method."""
        text = "".join(self._arguments)
        self._arguments.clear()
        return text

    def _check_key(self) -> None:
        twice = self.begun if self._key in ("arguments", "parameters") else self.name is not None
        if twice and self._key in ("arguments", "parameters", "name"):
            raise NoJsonError

    def _argument(self, text: str, before: str) -> None:
        depth, expects = self._json.depth, self._json.expects
        if not self.begun:
            if depth == 2 and expects == "first key":
                self.begun = True
                self._arguments.append(text)
            elif expects not in ("colon", "value"):
                raise NoJsonError  # the arguments are no object
        elif self._key:
            self._arguments.append(text)
            if depth == 1:
                self._key = ""
