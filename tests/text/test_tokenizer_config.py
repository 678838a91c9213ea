from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from medha_jax.text import Tokenizer, TokenizerError
from tests.text.tiny_tokenizers import byte_level, sentencepiece

TEXT = "the fox"


def tokenizer(directory: Path, config: Any = None, special: Any = None, template: bool = True) -> Tokenizer:
    """One whose `tokenizer.json` puts `<s>` before a text if there is a `template`."""
    backend = byte_level() if template else sentencepiece()
    backend.save(str(directory / "tokenizer.json"))
    for name, content in (("tokenizer_config", config), ("special_tokens_map", special)):
        if content is not None:
            (directory / f"{name}.json").write_text(json.dumps(content))
    return Tokenizer.from_directory(directory)


def ends(found: Tokenizer) -> tuple[str, str]:
    """Special tokens before and behind a text."""
    before, behind = found.decode(found.encode(TEXT), skip_special=False).split(TEXT)
    return before.strip(), behind


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, ("<s>", "")),
        ({"add_bos_token": None}, ("<s>", "")),
        ({"add_bos_token": False}, ("", "")),
        ({"add_bos_token": True, "bos_token": "<s>"}, ("<s>", "")),
        ({"add_bos_token": True, "bos_token": {"content": "</s>"}}, ("</s>", "")),
        ({"add_bos_token": True, "bos_token": "<s>", "add_eos_token": True, "eos_token": "<s>"}, ("<s>", "<s>")),
        ({"add_eos_token": True, "eos_token": "</s>"}, ("", "</s>")),
    ],
)
def test_what_the_config_says_is_added_as_in_transformers(
    tmp_path: Path, config: dict[str, Any], expected: tuple[str, str]
) -> None:
    assert ends(tokenizer(tmp_path, config)) == expected


def test_a_bos_that_tokenizer_json_lacks_is_added(tmp_path: Path) -> None:
    assert ends(tokenizer(tmp_path, template=False)) == ("", "")
    assert ends(tokenizer(tmp_path, {"add_bos_token": True, "bos_token": "<s>"}, template=False)) == ("<s>", "")


def test_the_special_tokens_map_names_what_the_config_does_not(tmp_path: Path) -> None:
    special = {"eos_token": {"content": "</s>"}, "bos_token": "<s>"}
    assert tokenizer(tmp_path, {}, special).eos_id == 1
    assert tokenizer(tmp_path, {"eos_token": "<s>"}, special).eos_id == 0
    assert tokenizer(tmp_path, {"eos_token": None, "add_bos_token": True}, special).eos_id == 1


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ([], "tokenizer_config.json holds a list; it must be a JSON object"),
        ({"add_bos_token": "true"}, "add_bos_token is 'true'; allowed is true or false"),
        ({"eos_token": 3}, "eos_token is 3; allowed is the text of a token"),
        ({"added_tokens_decoder": ["<s>"]}, "allowed is an object of tokens by id"),
        ({"add_bos_token": True}, "adds bos_token to every text, but names none"),
        ({"add_bos_token": True, "bos_token": "<|bos|>"}, "it is '<|bos|>', which tokenizer.json lacks"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(tmp_path: Path, config: Any, message: str) -> None:
    with pytest.raises(TokenizerError) as caught:
        tokenizer(tmp_path, config)
    assert message in str(caught.value)


def test_what_has_no_effect_is_named(tmp_path: Path) -> None:
    added = {"0": {"content": "<s>"}, "999": {"content": "<tool>"}}
    found = tokenizer(tmp_path, {"eos_token": "<end>", "added_tokens_decoder": added, "split_special_tokens": True})
    assert found.eos_id is None
    assert found.notes == (
        "tokenizer_config.json: tokenizer.json lacks the tokens '<tool>', '<end>'",
        "tokenizer_config.json: split_special_tokens is ignored; special tokens in a text are tokens",
    )
    assert tokenizer(tmp_path, {"eos_token": "</s>"}).notes == ()
