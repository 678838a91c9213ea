"""Sampling defaults and end tokens of a model directory: `generation_config.json`, then `config.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medha_jax.text.tokenizer import MAX_TOKEN_ID

# Hugging Face and SamplingParams use the same names.
_NUMBERS = ("temperature", "top_p", "min_p", "repetition_penalty")
_INTEGERS = ("top_k",)


class GenerationConfigError(ValueError):
    """`generation_config.json` or `config.json` cannot be read or holds a value of the wrong kind."""


@dataclass(frozen=True)
class GenerationDefaults:
    """Defaults for the fields that a request leaves unset.

    Args:
        eos_ids: tokens that end a generation; () if the files name none.
        sampling: value of each SamplingParams field that the files set; SamplingParams checks the ranges.
    """

    eos_ids: tuple[int, ...] = ()
    sampling: Mapping[str, float | int] = field(default_factory=dict)

    @classmethod
    def from_directory(cls, directory: Path) -> GenerationDefaults:
        """Read a Hugging Face model directory; either file may be missing.

        `eos_token_id` (an id or a list) comes from `generation_config.json`, else from `config.json`.
        `do_sample: false` means temperature 0; null means unset.

        Raises:
            GenerationConfigError: names the file, the field, its value and what is allowed.
        """
        path, model_path = directory / "generation_config.json", directory / "config.json"
        given = _read(path)
        eos_ids = _ids(path, given)
        if eos_ids is None:
            eos_ids = _ids(model_path, _read(model_path))
        return cls(eos_ids or (), _sampling(path, given))


def _read(path: Path) -> dict[str, Any]:
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise GenerationConfigError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, a number of thousands of digits
        raise GenerationConfigError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(given, dict):
        raise GenerationConfigError(f"{path} holds a {type(given).__name__}; it must be a JSON object")
    return given


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _ids(path: Path, given: Mapping[str, Any]) -> tuple[int, ...] | None:
    """The distinct end-of-sequence ids; None if the file leaves them unset."""
    value = given.get("eos_token_id")
    if value is None:
        return None
    ids = value if isinstance(value, list) else [value]
    if not all(_is_integer(token_id) and 0 <= token_id <= MAX_TOKEN_ID for token_id in ids):
        raise GenerationConfigError(
            f"{path}: eos_token_id is {value!r}; allowed is a token id (0 to {MAX_TOKEN_ID}) or a list"
        )
    return tuple(dict.fromkeys(ids))


def _sampling(path: Path, given: Mapping[str, Any]) -> dict[str, float | int]:
    sampling: dict[str, float | int] = {}
    for name in (*_NUMBERS, *_INTEGERS):
        value = given.get(name)
        if value is None:
            continue
        integer = name in _INTEGERS
        if not (_is_integer(value) or (isinstance(value, float) and not integer)):
            kind = "an integer" if integer else "a number"
            raise GenerationConfigError(f"{path}: {name} is {value!r}; allowed is {kind}")
        sampling[name] = value
    do_sample = given.get("do_sample")
    if do_sample is not None and not isinstance(do_sample, bool):
        raise GenerationConfigError(f"{path}: do_sample is {do_sample!r}; allowed is true or false")
    if do_sample is False:
        sampling["temperature"] = 0.0
    return sampling
