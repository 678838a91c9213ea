"""Token ids to text, one at a time. A returned character never changes."""

from __future__ import annotations

from collections.abc import Sequence

from medha_jax.text.tokenizer import Tokenizer

REPLACEMENT = "\ufffd"
# A UTF-8 character has at most 4 bytes, so at most the last 3 tokens can be unfinished. Decoders write one
# replacement character for all unfinished bytes (byte-level BPE) or one for each (byte fallback).
_UNFINISHED = 3
# At most `_WINDOW` tokens are decoded again; a longer window is cut to `_KEPT`. The kept tokens cover `_UNFINISHED`
# replacement characters of up to 3 bytes each, and up to 3 bytes whose character begins before the cut.
_WINDOW, _KEPT = 32, 16


class Detokenizer:
    """Incremental decoding by the prefix-offset method: each step decodes a short window of recent ids.

    The window begins before the new ids, because some decoders treat the first token differently (SentencePiece
    drops its leading space). Returned text is final. Joined, it equals one decoding of all ids, with one exception:
    a run of byte-fallback tokens that is not valid UTF-8. One decoding turns every byte of the run into U+FFFD; here
    the characters before the first wrong byte are already out. Owns the window.
    """

    def __init__(self, tokenizer: Tokenizer, context: Sequence[int] = (), skip_special: bool = True) -> None:
        """Begin after `context`, the ids of the prompt. Their text is not returned.

        Args:
            tokenizer: decodes the windows.
            context: any number of ids; only the last 16 with text are read.
            skip_special: leave special tokens (EOS and the like) out of the text.
        """
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._ids = self._tail(context)
        self._read = len(self._ids)  # ids of the window whose text is completely out
        self._emitted = len(self._decode())  # characters of the window's text that are out

    def push(self, token_id: int) -> str:
        """Take one id; returns the text that is now final, which may be empty."""
        if not self._tokenizer.has_text(token_id, self._skip_special):
            return ""
        self._ids.append(token_id)
        text = self._decode()
        if not text.endswith(REPLACEMENT):
            new = text[self._emitted :]
            del self._ids[: self._read]
            self._read = len(self._ids)
            alone = self._read == 1  # as after most tokens
            self._emitted = self._tokenizer.characters(token_id, self._skip_special) if alone else len(self._decode())
            return new
        return self._emit(text, len(text.rstrip(REPLACEMENT))) + self._bound()

    def finish(self) -> str:
        """Return the withheld text; an unfinished character becomes U+FFFD."""
        text = self._decode()
        return self._emit(text, len(text))

    def _emit(self, text: str, stable: int) -> str:
        """Emit the window's text up to `stable`."""
        new = text[self._emitted : stable]
        self._emitted = max(self._emitted, stable)
        return new

    def _bound(self) -> str:
        """Cut a window that grew without reaching the end of a character, as with random bytes."""
        if len(self._ids) <= _WINDOW:
            return ""
        text = self._decode()
        new = self._emit(text, len(text) - _UNFINISHED)
        withheld = len(text) - self._emitted
        del self._ids[:-_KEPT]
        self._read = 0
        # Counted from the end, where both windows' texts are equal.
        self._emitted = max(0, len(self._decode()) - withheld)
        return new

    def _decode(self) -> str:
        return self._tokenizer.decode(self._ids, self._skip_special)

    def _tail(self, context: Sequence[int]) -> list[int]:
        """The shortest tail of the context that holds whole characters, at most `_KEPT` ids."""
        tail: list[int] = []
        for position in range(len(context) - 1, max(-1, len(context) - 1 - 4 * _KEPT), -1):
            if not self._tokenizer.has_text(context[position], self._skip_special):
                continue
            tail.insert(0, context[position])
            if len(tail) == _KEPT or REPLACEMENT not in self._tokenizer.decode(tail, self._skip_special):
                break
        return tail
