"""Sampling defaults and end tokens of a model directory."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medha_jax.text.json_file import read_object
from medha_jax.text.tokenizer import MAX_TOKEN_ID, Tokenizer

# Hugging Face and SamplingParams use the same names.
_NUMBERS = ("temperature", "top_p", "min_p", "repetition_penalty")
_INTEGERS = ("top_k",)
WAY_OUT = "correct it, or ignore the file's sampling defaults with --generation-config none"
# what transformers acts on and this package does not, with the values that change nothing
_UNUSED: dict[str, tuple[Any, ...]] = {
    "bad_words_ids": ([],),
    "begin_suppress_tokens": ([],),
    "constraints": ([],),
    "diversity_penalty": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1,),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "exponential_decay_length_penalty": (),
    "force_words_ids": ([],),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "guidance_scale": (1,),
    "max_length": (20,),
    "max_new_tokens": (),
    "max_time": (),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "no_repeat_ngram_size": (0,),
    "num_beams": (1,),
    "penalty_alpha": (0,),
    "sequence_bias": ({}, []),
    "stop_strings": ([], ""),
    "suppress_tokens": ([],),
    "top_h": (),
    "typical_p": (1,),
    "watermarking_config": (),
}


class GenerationConfigError(ValueError):
    """`generation_config.json` or `config.json` cannot be read or holds a value of the wrong kind."""


@dataclass(frozen=True)
class GenerationDefaults:
    """Defaults for the fields that a request leaves unset.

    Args:
        eos_ids: tokens that end a generation; () if the files name none.
        sampling: value of each SamplingParams field that the files set; SamplingParams checks the ranges.
        notes: what the files say and nothing here does, a line each.
    """

    eos_ids: tuple[int, ...] = ()
    sampling: Mapping[str, float | int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @classmethod
    def from_directory(
        cls, directory: Path, tokenizer: Tokenizer | None = None, sampling: bool = True
    ) -> GenerationDefaults:
        """Read a Hugging Face model directory; each file may be missing.

        End tokens are those of `generation_config.json`, of `config.json` and the tokenizer's own, all together.
        `do_sample: false` means temperature 0; null means unset. Without `sampling` only end tokens are read.

        Raises:
            GenerationConfigError: names the file, the field, its value and what is allowed.
        """
        path, model_path = directory / "generation_config.json", directory / "config.json"
        given = read_object(path, GenerationConfigError)
        ids = [*_ids(path, given), *_ids(model_path, read_object(model_path, GenerationConfigError))]
        if tokenizer is not None and tokenizer.eos_id is not None:
            ids.append(tokenizer.eos_id)
        eos_ids = tuple(dict.fromkeys(ids))
        return cls(eos_ids, _sampling(path, given), _unused(given)) if sampling else cls(eos_ids)


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _integral(value: Any) -> Any:
    """A float like 50.0 as a whole number; anything else as it is."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _ids(path: Path, given: Mapping[str, Any]) -> list[int]:
    """The end-of-sequence ids that a file states; -1 is none."""
    value = given.get("eos_token_id")
    if value is None:
        return []
    ids = [_integral(token_id) for token_id in (value if isinstance(value, list) else [value])]
    if not all(_is_integer(token_id) and -1 <= token_id <= MAX_TOKEN_ID for token_id in ids):
        raise GenerationConfigError(
            f"{path}: eos_token_id is {reprlib.repr(value)}; allowed is a token id (0 to {MAX_TOKEN_ID}) or a list"
        )
    return [token_id for token_id in ids if token_id >= 0]


def _sampling(path: Path, given: Mapping[str, Any]) -> dict[str, float | int]:
    sampling: dict[str, float | int] = {}
    for name in (*_NUMBERS, *_INTEGERS):
        value = given.get(name)
        if value is None:
            continue
        integer = name in _INTEGERS
        value = _integral(value) if integer else value
        if not (_is_integer(value) or (isinstance(value, float) and not integer)):
            raise _wrong(path, name, value, "an integer" if integer else "a number")
        sampling[name] = value
    do_sample = given.get("do_sample")
    if do_sample is not None and not isinstance(do_sample, bool):
        raise _wrong(path, "do_sample", do_sample, "true or false")
    if do_sample is False:
        sampling["temperature"] = 0.0
    return sampling


def _wrong(path: Path, name: str, value: object, allowed: str) -> GenerationConfigError:
    return GenerationConfigError(f"{path}: {name} is {reprlib.repr(value)}; allowed is {allowed}; {WAY_OUT}")


def _unused(given: Mapping[str, Any]) -> tuple[str, ...]:
    """One line that names the settings of `generation_config.json` without an effect here."""
    names = [
        name for name, neutral in _UNUSED.items() if (value := given.get(name)) is not None and value not in neutral
    ]
    return (f"generation_config.json: no effect here: {', '.join(names)}",) if names else ()
