import pytest
from hypothesis import given
from hypothesis import strategies as st

from medha_jax.text import Detokenizer, Tokenizer
from medha_jax.text.detokenizer import REPLACEMENT
from tests.text.tiny_tokenizers import BYTE_LEVEL_TOKENS, SENTENCEPIECE_TOKENS, byte_level, sentencepiece

BYTE_LEVEL = Tokenizer(byte_level())
SENTENCEPIECE = Tokenizer(sentencepiece())
BOTH = pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, SENTENCEPIECE], ids=["byte_level", "sentencepiece"])
UNFINISHED = [token for token in range(2, BYTE_LEVEL_TOKENS) if REPLACEMENT in BYTE_LEVEL.decode([token])]

any_id = st.integers(0, BYTE_LEVEL_TOKENS + 3)
ids = st.lists(st.one_of(any_id, st.sampled_from(UNFINISHED)), max_size=120)
characters = st.one_of(st.sampled_from("a é字😀\n ▁"), st.characters(exclude_categories=["Cs"]))
texts = st.text(characters.filter(lambda c: c not in (REPLACEMENT, "▁")), max_size=60)


def stream(tokenizer, token_ids, context=(), skip_special=True):
    detokenizer = Detokenizer(tokenizer, context, skip_special)
    return [*map(detokenizer.push, token_ids), detokenizer.finish()]


@given(ids, st.booleans())
def test_any_byte_level_ids_join_to_one_decoding(token_ids, skip_special):
    pieces = stream(BYTE_LEVEL, token_ids, skip_special=skip_special)
    assert "".join(pieces) == BYTE_LEVEL.decode(token_ids, skip_special)


@given(st.lists(st.sampled_from(UNFINISHED), min_size=60, max_size=150))
def test_long_runs_of_broken_bytes_join_to_one_decoding(token_ids):
    assert "".join(stream(BYTE_LEVEL, token_ids)) == BYTE_LEVEL.decode(token_ids)


@BOTH
@given(text=texts)
def test_text_comes_back_without_replacement_characters(tokenizer, text):
    token_ids = tokenizer.encode(text)
    pieces = stream(tokenizer, token_ids)
    assert "".join(pieces) == tokenizer.decode(token_ids)
    assert not any(REPLACEMENT in piece for piece in pieces)
    assert pieces[-1] == ""  # nothing is withheld at the end of whole characters


@BOTH
@given(text=texts, data=st.data())
def test_the_text_continues_a_prompt(tokenizer, text, data):
    token_ids = tokenizer.encode(text)
    cut = data.draw(st.integers(0, len(token_ids)))
    prompt, rest = token_ids[:cut], token_ids[cut:]
    before = tokenizer.decode(prompt)
    if REPLACEMENT not in before:
        assert before + "".join(stream(tokenizer, rest, context=prompt)) == tokenizer.decode(token_ids)


@given(st.lists(st.integers(0, SENTENCEPIECE_TOKENS), max_size=120))
def test_byte_fallback_tokens_in_any_order_never_fail(token_ids):
    "".join(stream(SENTENCEPIECE, token_ids, context=token_ids[::-1])).encode()


def test_an_emoji_appears_with_its_last_byte():
    token_ids = [SENTENCEPIECE.encode(" ")[0]] + SENTENCEPIECE.encode("\U0001f984")[-4:]
    assert stream(SENTENCEPIECE, token_ids) == ["", "", "", "", "\U0001f984", ""]


def test_text_before_an_unfinished_character_is_not_withheld():
    backend = byte_level()
    backend.add_tokens(["x\u00e2"])  # added tokens are mapped to bytes like others: x and 0xE2
    tokenizer = Tokenizer(backend)
    assert tokenizer.decode([320]) == "x" + REPLACEMENT
    assert stream(tokenizer, [320, 320]) == ["x", REPLACEMENT + "x", REPLACEMENT]


def test_a_space_that_begins_a_word_is_kept_after_a_prompt():
    prompt, word = SENTENCEPIECE.encode("the"), SENTENCEPIECE.encode("fox")
    assert "".join(stream(SENTENCEPIECE, word)) == "fox"
    assert "".join(stream(SENTENCEPIECE, word, context=prompt)) == " fox"


def test_special_tokens_are_skipped_or_shown():
    token_ids = [0, *BYTE_LEVEL.encode("fox")[1:], 1]
    assert "".join(stream(BYTE_LEVEL, token_ids)) == "fox"
    assert "".join(stream(BYTE_LEVEL, token_ids, skip_special=False)) == "<s>fox</s>"


class Counting:
    """A tokenizer that notes how many ids each decoding looked at."""

    def __init__(self, tokenizer):
        self.has_text, self.characters = tokenizer.has_text, tokenizer.characters
        self.sizes = []
        self._decode = tokenizer.decode

    def decode(self, ids, skip_special=True):
        self.sizes.append(len(ids))
        return self._decode(ids, skip_special)


@pytest.mark.parametrize("token_ids", [BYTE_LEVEL.encode("the lazy dog 東京 " * 300), UNFINISHED * 20])
def test_decoding_looks_at_a_bounded_window(token_ids):
    counting = Counting(BYTE_LEVEL)
    Detokenizer(counting, context=token_ids)
    assert sum(counting.sizes) < 200
    counting.sizes.clear()
    pieces = stream(counting, token_ids)
    assert max(counting.sizes) <= 40
    assert sum(counting.sizes) < 40 * len(token_ids)
    # and broken bytes are not withheld for long
    longest = max(len(run) for run in "".join("x" if piece else "." for piece in pieces).split("x"))
    assert longest <= 33
