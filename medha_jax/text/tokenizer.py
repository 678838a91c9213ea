"""Text to token ids and back, with a Hugging Face `tokenizer.json`."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path

import tokenizers
from tokenizers import processors

from medha_jax.text.tokenizer_config import TokenizerConfig, TokenizerError

MAX_TOKEN_ID = 2**31 - 1  # ids are int32 on the device
KNOWN_TOKENS = 2**15  # that a tokenizer keeps what it told about, about 100 bytes each
_ORDINARY = "a"  # a text without special tokens


class Tokenizer:
    """A Hugging Face tokenizer. It is immutable, so requests may share it. Owns what it keeps of single tokens."""

    def __init__(self, backend: tokenizers.Tokenizer, config: TokenizerConfig | None = None) -> None:
        """Wrap a loaded tokenizer; switches off the truncation and padding in its file.

        As in transformers, `add_bos_token` and `add_eos_token` decide what a text gets, if the config states them.

        Raises:
            TokenizerError: the config names a token that the tokenizer lacks, and adds it to every text.
        """
        # tokenizer.json holds settings of the training; a truncated prompt would be silently wrong.
        backend.no_truncation()
        backend.no_padding()
        self._backend, self._config = backend, config or TokenizerConfig()
        # streams ask for every token that they get
        self._named = lru_cache(KNOWN_TOKENS)(lambda token_id: backend.id_to_token(token_id) is not None)
        self._characters = lru_cache(KNOWN_TOKENS)(lambda token_id, skip: len(self.decode([token_id], skip)))
        if self._config.add_bos is not None or self._config.add_eos is not None:
            backend.post_processor = self._stated_processor()

    @classmethod
    def from_directory(cls, directory: Path) -> Tokenizer:
        """Read `tokenizer.json` of a model directory, and its `tokenizer_config.json` if there is one.

        Raises:
            TokenizerError: a file is missing, unreadable or not what it should be.
        """
        path = directory / "tokenizer.json"
        if not path.is_file():
            raise TokenizerError(
                f"no tokenizer.json in {directory}; a model directory needs one in Hugging Face's format"
            )
        try:
            backend = tokenizers.Tokenizer.from_buffer(path.read_bytes())
        except OSError as error:
            raise TokenizerError(f"cannot read {path}: {error.strerror}") from None
        except Exception as error:  # the library raises bare Exception and ValueError
            raise TokenizerError(f"{path} is not a tokenizer that can be read: {error}") from None
        return cls(backend, TokenizerConfig.from_directory(directory))

    def encode(self, text: str, add_special: bool = True) -> list[int]:
        """Token ids of a text.

        With `add_special` including those that the tokenizer adds to every text, often a first BOS token. A text that
        begins with this token gets no second one.

        Time is linear in the text: 2 MB of words, one letter, spaces or ideographs take under 1 s.

        Raises:
            TokenizerError: the text holds lone surrogates, so it is not valid Unicode, or the tokenizer lacks a token
                for a part of it, and one for what it does not know.
        """
        try:
            # The `_fast` variant skips character offsets: 3x faster, less memory.
            ids = list(self._backend.encode_batch_fast([text], add_special_tokens=add_special)[0].ids)
        except (TypeError, UnicodeError):
            raise TokenizerError("the text is not valid Unicode (lone surrogates); give UTF-8 text") from None
        except Exception as error:  # the library raises bare Exception
            raise TokenizerError(f"tokenizer.json cannot encode the text: {error}") from None
        if add_special and self._first is not None and ids[:2] == [self._first, self._first]:
            del ids[0]
        return ids

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """Text of token ids. Bytes that are not UTF-8 become U+FFFD; ids outside the vocabulary give no text."""
        return str(self._backend.decode(ids, skip_special_tokens=skip_special))

    def texts(self, ids: Sequence[int]) -> list[str]:
        """The tokens of ids as `tokenizer.json` writes them; "" for ids outside the vocabulary."""
        return [self._backend.id_to_token(token_id) or "" for token_id in ids]

    def to_json(self) -> str:
        """The tokenizer as text in the format of `tokenizer.json`."""
        return str(self._backend.to_str())

    def has_text(self, token_id: int, skip_special: bool = True) -> bool:
        """Whether `decode` reads this id."""
        if skip_special and token_id in self.special_ids:
            return False
        return self._named(token_id)

    def characters(self, token_id: int, skip_special: bool = True) -> int:
        """Characters of the text of one id by itself."""
        return self._characters(token_id, skip_special)

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids of tokens without text: BOS, EOS, padding and the like."""
        return frozenset(self.special_tokens.values())

    @cached_property
    def special_tokens(self) -> Mapping[str, int]:
        """Texts of the special tokens, with their ids."""
        added = self._backend.get_added_tokens_decoder()
        return {token.content: token_id for token_id, token in added.items() if token.special}

    @cached_property
    def eos_id(self) -> int | None:
        """The token that ends a text, by `tokenizer_config.json`; None if it names none that the tokenizer has."""
        text = self._config.eos_token
        return None if text is None else self._backend.token_to_id(text)

    @cached_property
    def notes(self) -> tuple[str, ...]:
        """What `tokenizer_config.json` says and this tokenizer does not do, a line each."""
        lacking = [text for text in self._config.added if self._backend.token_to_id(text) is None]
        eos = self._config.eos_token
        if eos is not None and self.eos_id is None:
            lacking.append(eos)
        notes = []
        if lacking:
            names = ", ".join(map(reprlib.repr, dict.fromkeys(lacking)))
            notes.append(f"tokenizer_config.json: tokenizer.json lacks the tokens {names}")
        if self._config.split_special:
            notes.append("tokenizer_config.json: split_special_tokens is ignored; special tokens in a text are tokens")
        return tuple(notes)

    @cached_property
    def _first(self) -> int | None:
        """The special token that is put before every text."""
        plain, whole = (self._backend.encode(_ORDINARY, add_special_tokens=added).ids for added in (False, True))
        if whole[:1] == plain[:1] or whole[0] not in self.special_ids:
            return None
        return int(whole[0])

    def _stated_processor(self) -> processors.TemplateProcessing:
        """Puts what `tokenizer_config.json` says before and behind a text."""
        config = self._config
        before = self._stated_token("bos_token", config.bos_token) if config.add_bos else []
        behind = self._stated_token("eos_token", config.eos_token) if config.add_eos else []
        pieces = [f"{text}:0" for text, _ in before], [f"{text}:0" for text, _ in behind]
        tokens = list(dict.fromkeys([*before, *behind]))
        try:
            return processors.TemplateProcessing(single=[*pieces[0], "$A:0", *pieces[1]], special_tokens=tokens)
        except ValueError as error:
            raise TokenizerError(f"tokenizer_config.json: a token cannot be added to every text: {error}") from None

    def _stated_token(self, name: str, text: str | None) -> list[tuple[str, int]]:
        token_id = None if text is None else self._backend.token_to_id(text)
        if text is None or token_id is None:
            stated = "names none" if text is None else f"it is {reprlib.repr(text)}, which tokenizer.json lacks"
            raise TokenizerError(f"tokenizer_config.json adds {name} to every text, but {stated}")
        return [(text, token_id)]
