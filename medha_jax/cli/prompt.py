"""Parses what the user typed: prompt, chunk sizes, model directory, sampling values."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from medha_jax.cli.option_groups import refusal
from medha_jax.config import BUNDLED_MODEL
from medha_jax.plan import InvalidRequestError, SamplingParams
from medha_jax.text import Tokenizer

MAX_DIGITS = 10  # of an id or a size: enough for 2³² and for any context


def model_directory(model: str) -> Path:
    """The directory of `--model`: `tiny` is the model in the package, anything else is a path.

    Raises:
        typer.BadParameter: there is no such directory.
    """
    directory = BUNDLED_MODEL if model == "tiny" else Path(model)
    if directory.is_dir():
        return directory
    what = "is not a directory" if directory.exists() else "does not exist"
    raise refusal(
        "--model",
        f"{directory} {what}; give tiny, or the directory of a Hugging Face model "
        "(config.json, tokenizer.json, *.safetensors)",
    )


def one_source(text: str | None, file: str | None, ids: str | None) -> None:
    """Check that the prompt was given exactly once.

    Raises:
        InvalidRequestError: it was not given, or given more than once.
    """
    options = {"--prompt": text, "--prompt-file": file, "--prompt-ids": ids}
    given = [name for name, value in options.items() if value is not None]
    if len(given) != 1:
        stated = " and ".join(given) if given else "no prompt"
        raise InvalidRequestError(f"{stated} given; give exactly one of {', '.join(options)}")


def read_prompt(
    text: str | None, file: str | None, ids: str | None, tokenizer: Tokenizer, add_special: bool = True
) -> tuple[int, ...]:
    """Token ids of the prompt, given in one of three ways; `-` as file or ids reads standard input.

    Files and standard input are used as they are, including line ends. `add_special` is that of `Tokenizer.encode`.

    Raises:
        InvalidRequestError: the source cannot be read, is empty, not UTF-8 or not a list of ids.
        TokenizerError: the text cannot be encoded.
    """
    if ids is not None:
        return read_ids(ids)
    text = read_text(text, file)
    prompt_ids = tuple(tokenizer.encode(text, add_special))
    if not prompt_ids:
        raise InvalidRequestError(f"the tokenizer makes no token of this prompt ({len(text)} characters)")
    return prompt_ids


def read_ids(ids: str) -> tuple[int, ...]:
    """The given token ids, or those from standard input for `-`; errors as in `parse_ids`."""
    return parse_ids(_decode(_read("-"), "standard input") if ids == "-" else ids)


def read_text(text: str | None, file: str | None) -> str:
    """The given prompt, or the text of a file.

    Raises:
        InvalidRequestError: the file cannot be read, or the text is not UTF-8, or empty.
    """
    if text is None and file is not None:
        text = _decode(_read(file), "standard input" if file == "-" else file)
    if not text:
        raise InvalidRequestError("the prompt is empty; it must have at least one character")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise InvalidRequestError("the prompt is not valid Unicode (lone surrogates); give UTF-8 text") from None
    return text


def whole_number(text: str) -> int | None:
    """A decimal number of at least 0; None for anything else."""
    digits = text.strip()
    return int(digits) if digits.isascii() and digits.isdigit() and len(digits) <= MAX_DIGITS else None


def whole_numbers(parts: Iterable[str], least: int, refused: Callable[[str], Exception]) -> tuple[int, ...]:
    """Numbers from their texts; raises `refused` of the first one that is no number, or too small."""
    found = []
    for part in parts:
        number = whole_number(part)
        if number is None or number < least:
            raise refused(part)
        found.append(number)
    return tuple(found)


def parse_ids(text: str) -> tuple[int, ...]:
    """Token ids separated by commas, spaces or line ends.

    Raises:
        InvalidRequestError: there are none, or a part is not a decimal number of at least 0.
    """
    parts = text.replace(",", " ").split()
    if not parts:
        raise InvalidRequestError("the prompt is empty; it must have at least one token id")
    return whole_numbers(
        parts,
        0,
        lambda part: InvalidRequestError(
            f"{part[:20]!r} is not a token id; give numbers of 0 or more, separated by commas or spaces"
        ),
    )


def parse_chunks(text: str) -> tuple[int, ...] | None:
    """Chunk sizes in tokens, separated by commas, the last one repeating; None for `auto`.

    Raises:
        typer.BadParameter: a size is not a number of at least 1.
    """
    if text == "auto":
        return None
    return whole_numbers(
        text.split(","),
        1,
        lambda part: refusal(
            "--chunk",
            f"{part!r} is not a number of tokens; give auto, or sizes of 1 or more as in 512 or 512,64 "
            "(the last one repeats)",
        ),
    )


def sampling_params(defaults: SamplingParams, given: Mapping[str, object]) -> SamplingParams:
    """Sampling fields that are `given` (not None), else the model's defaults.

    Raises:
        InvalidRequestError: a value is out of its range.
    """
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    return dataclasses.replace(defaults, **changes)


def _read(source: str) -> bytes:
    if source == "-":
        return sys.stdin.buffer.read()
    try:
        return Path(source).read_bytes()
    except OSError as error:
        raise InvalidRequestError(f"cannot read {source}: {error.strerror}; give a UTF-8 text file") from None


def _decode(data: bytes, source: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRequestError(
            f"{source} is not UTF-8 text: byte {error.start:,} is 0x{data[error.start]:02x}"
        ) from None
