"""Corpus and tokenizer of the bundled model: the source text of CPython's standard library.

The corpus is read from the interpreter that runs this file; nothing is downloaded.
"""

from __future__ import annotations

import hashlib
import json
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

END_OF_TEXT = "<|endoftext|>"
END_OF_TEXT_ID = 0
VOCABULARY = 2048
HELD_OUT_SHARE = 0.02
TEST_SHARE = 0.5

# third-party code, generated tables, deliberately broken sources, and programs rather than library code
EXCLUDED_PARTS = frozenset(
    "site-packages dist-packages ensurepip lib2to3 idlelib turtledemo encodings pydoc_data __pycache__ "
    "__phello__ bad_coding encoded_modules tokenizedata data".split()
)
EXCLUDED_PREFIXES = ("config-", "badsyntax", "bad_", "_sysconfigdata", "test_lib2to3", "test_idle")


@dataclass(frozen=True)
class Document:
    """One source file: its path relative to the library, with forward slashes, and its text."""

    name: str
    text: str

    @property
    def nbytes(self) -> int:
        """Bytes of the text in UTF-8."""
        return len(self.text.encode("utf-8"))


def share_of(name: str, purpose: str) -> float:
    """A number in `[0, 1)` from the two strings, to split files the same way everywhere."""
    digest = hashlib.sha256(f"{purpose}:{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def is_held_out(name: str) -> bool:
    """Whether the file is held out, as about `HELD_OUT_SHARE` of all files are."""
    return share_of(name, "held-out") < HELD_OUT_SHARE


def is_wanted(name: str) -> bool:
    """Whether the file belongs to the corpus: library code, and `TEST_SHARE` of the library's own tests."""
    parts = name.split("/")
    if EXCLUDED_PARTS & set(parts) or any(part.startswith(EXCLUDED_PREFIXES) for part in parts):
        return False
    is_test = bool({"test", "tests"} & set(parts[:-1]))
    return not is_test or share_of(name, "test") < TEST_SHARE


def standard_library() -> Path:
    """Directory of the running interpreter's standard library."""
    return Path(sysconfig.get_path("stdlib"))


def documents(root: Path) -> Iterator[Document]:
    """Wanted UTF-8 `.py` files below `root` in the order of their names, without repeated texts."""
    seen: set[bytes] = set()
    for path in sorted(root.rglob("*.py"), key=lambda path: path.relative_to(root).as_posix()):
        name = path.relative_to(root).as_posix()
        if not is_wanted(name):
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        digest = hashlib.sha256(text.encode("utf-8")).digest()
        if text.strip() and digest not in seen:
            seen.add(digest)
            yield Document(name, text)


def split(corpus: list[Document]) -> tuple[list[Document], list[Document]]:
    """The training files and the held-out files."""
    held_out = [document for document in corpus if is_held_out(document.name)]
    return [document for document in corpus if not is_held_out(document.name)], held_out


def train_tokenizer(texts: list[str], vocabulary: int = VOCABULARY) -> Tokenizer:
    """Train byte-level BPE of exactly `vocabulary` tokens, including the end-of-text token.

    All 256 bytes are in the alphabet, so every string round trips. There is no post-processor, so `encode` adds no
    special tokens.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() != vocabulary:
        raise ValueError(f"the corpus yields {tokenizer.get_vocab_size()} tokens, not {vocabulary}")
    return tokenizer


def encode(tokenizer: Tokenizer, corpus: list[Document]) -> np.ndarray:
    """Token ids of all documents, int32 `[tokens]`; each document is followed by the end-of-text token."""
    pieces: list[int] = []
    for encoding in tokenizer.encode_batch([document.text for document in corpus]):
        pieces += encoding.ids
        pieces.append(END_OF_TEXT_ID)
    return np.array(pieces, dtype=np.int32)


def batch(tokens: np.ndarray, size: int, length: int, index: int, seed: int) -> np.ndarray:
    """Batch number `index` of windows, int32 `[size, length + 1]`; stateless.

    An epoch visits disjoint windows of the stream in a random order; each epoch starts at another offset.
    """
    # one window of slack makes room for the offset and for the target of the last token
    batches = (len(tokens) - 1) // length - 1
    batches //= size
    if batches < 1:
        raise ValueError(f"{len(tokens)} tokens are too few for a batch of {size} windows of {length} tokens")
    epoch, place = divmod(index, batches)
    random = np.random.default_rng((seed, length, epoch))
    offset = int(random.integers(length))
    order = random.permutation(batches * size)[place * size : (place + 1) * size]
    return np.stack([tokens[offset + w * length : offset + (w + 1) * length + 1] for w in order])


def write_tokenizer(tokenizer: Tokenizer, directory: Path) -> None:
    """Write `tokenizer.json`, and a `tokenizer_config.json` so that other programs read it unchanged."""
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "add_bos_token": False,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 131072,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
