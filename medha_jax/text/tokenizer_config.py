"""What a model directory says about its tokenizer beside `tokenizer.json`."""

from __future__ import annotations

import reprlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medha_jax.text.json_file import read_object


class TokenizerError(ValueError):
    """A model directory has no usable tokenizer, or a text cannot be encoded."""


@dataclass(frozen=True)
class TokenizerConfig:
    """Content of `tokenizer_config.json`, and of `special_tokens_map.json` for tokens that it does not name.

    Args:
        bos_token, eos_token: texts of the special tokens that begin and end a text.
        add_bos, add_eos: whether every text gets them; None leaves it to `tokenizer.json`.
        added: tokens by id that the tokenizer must have.
        split_special: whether special tokens in a text are ordinary characters.
    """

    bos_token: str | None = None
    eos_token: str | None = None
    add_bos: bool | None = None
    add_eos: bool | None = None
    added: tuple[str, ...] = ()
    split_special: bool = False

    @classmethod
    def from_directory(cls, directory: Path) -> TokenizerConfig:
        """Read both files, either of which may be missing; null means unset.

        Raises:
            TokenizerError: a file cannot be read, or names the field whose value is of the wrong kind.
        """
        path, map_path = directory / "tokenizer_config.json", directory / "special_tokens_map.json"
        given, named = read_object(path, TokenizerError), read_object(map_path, TokenizerError)
        bos, eos = (_token(path, given, name) or _token(map_path, named, name) for name in ("bos_token", "eos_token"))
        return cls(
            bos,
            eos,
            _switch(path, given, "add_bos_token"),
            _switch(path, given, "add_eos_token"),
            _added(path, given),
            bool(_switch(path, given, "split_special_tokens")),
        )


def _token(path: Path, given: dict[str, Any], name: str) -> str | None:
    """The text of a token, which is stated alone or as an object with its `content`."""
    value = given.get(name)
    text = value.get("content") if isinstance(value, dict) else value
    if value is None or text == "":
        return None
    if not isinstance(text, str):
        raise _wrong(path, name, value, "the text of a token")
    return text


def _switch(path: Path, given: dict[str, Any], name: str) -> bool | None:
    value = given.get(name)
    if value is None or isinstance(value, bool):
        return value
    raise _wrong(path, name, value, "true or false")


def _added(path: Path, given: dict[str, Any]) -> tuple[str, ...]:
    value = given.get("added_tokens_decoder") or {}
    if not isinstance(value, dict):
        raise _wrong(path, "added_tokens_decoder", value, "an object of tokens by id")
    return tuple(text for token_id in value if (text := _token(path, value, token_id)) is not None)


def _wrong(path: Path, name: str, value: object, allowed: str) -> TokenizerError:
    return TokenizerError(f"{path}: {name} is {reprlib.repr(value)}; allowed is {allowed}")
