import time

import pytest
import tokenizers
from tokenizers.models import BPE, WordLevel

from medha_jax.text import Tokenizer, TokenizerError
from tests.text.tiny_tokenizers import BYTE_LEVEL_TOKENS, byte_level, sentencepiece


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer(byte_level())


def test_reads_tokenizer_json_of_a_directory(tmp_path):
    byte_level().save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.from_directory(tmp_path)
    ids = tokenizer.encode("the quick dog")
    assert ids[0] == 0  # <s>, by the post-processor
    assert tokenizer.decode(ids) == "the quick dog"
    assert tokenizer.decode(ids, skip_special=False) == "<s>the quick dog"


def test_ids_are_those_of_the_plain_encoder():
    for backend in (byte_level(), sentencepiece()):
        text = "un été\n\n  東京 😀 fox"
        assert Tokenizer(backend).encode(text) == backend.encode(text).ids


def test_vocabulary_and_special_ids(tokenizer):
    assert tokenizer.special_ids == {0, 1}
    assert tokenizer.has_text(BYTE_LEVEL_TOKENS - 1) and not tokenizer.has_text(BYTE_LEVEL_TOKENS)
    assert tokenizer.decode([BYTE_LEVEL_TOKENS + 7]) == ""
    assert not tokenizer.has_text(BYTE_LEVEL_TOKENS + 7)
    assert not tokenizer.has_text(0)
    assert tokenizer.has_text(0, skip_special=False)


def test_characters_are_those_of_the_id_by_itself(tokenizer):
    for skip_special in (True, False, True):  # the last time from what it keeps
        for token_id in range(BYTE_LEVEL_TOKENS + 2):
            assert tokenizer.characters(token_id, skip_special) == len(tokenizer.decode([token_id], skip_special))


def test_truncation_and_padding_of_the_file_are_ignored():
    backend = byte_level()
    backend.enable_truncation(4)
    backend.enable_padding(length=64)
    assert len(Tokenizer(backend).encode("abcdefgh " * 3)) == len(byte_level().encode("abcdefgh " * 3).ids)


def test_a_text_that_begins_with_bos_gets_no_second_one(tokenizer):
    plain = tokenizer.encode("fox")
    assert plain[0] == 0 and tokenizer.encode("<s>fox") == plain
    assert tokenizer.encode("<s><s>fox") == [0, *plain]  # both are the text's own
    assert tokenizer.encode("<s>") == [0]
    assert tokenizer.encode("fox", add_special=False) == plain[1:]
    assert tokenizer.encode("<s>fox", add_special=False) == plain
    assert Tokenizer(sentencepiece()).encode("<s><s>fox")[:2] == [1, 1]  # this one adds none


def test_special_tokens_by_text(tokenizer):
    assert tokenizer.special_tokens == {"<s>": 0, "</s>": 1}


@pytest.mark.parametrize("content", [b"", b"{", b'{"version": "1.0"}', b"\xff\xfe", b"[" * 10_000])
def test_a_broken_file_is_named(tmp_path, content):
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(TokenizerError, match="tokenizer.json is not a tokenizer"):
        Tokenizer.from_directory(tmp_path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(TokenizerError, match=f"no tokenizer.json in {tmp_path}"):
        Tokenizer.from_directory(tmp_path)


def test_lone_surrogates_are_refused(tokenizer):
    with pytest.raises(TokenizerError, match="not valid Unicode"):
        tokenizer.encode("a\udcff")


@pytest.mark.parametrize(
    "model", [BPE(vocab={"a": 0}, merges=[], unk_token="<unk>"), WordLevel(vocab={"a": 0}, unk_token="<unk>")]
)
def test_a_text_that_the_vocabulary_has_no_token_for_is_refused(model):
    tokenizer = Tokenizer(tokenizers.Tokenizer(model))
    assert tokenizer.encode("a") == [0]
    with pytest.raises(TokenizerError, match="tokenizer.json cannot encode the text: .*(?i:unk)"):
        tokenizer.encode("b")


@pytest.mark.parametrize("make", [byte_level, sentencepiece])
@pytest.mark.parametrize("unit", ["fox and dog ", "a", " ", "字"])
def test_encoding_time_is_linear(make, unit):
    tokenizer = Tokenizer(make())

    def cpu_seconds(characters):
        text = (unit * characters)[:characters]
        start = time.process_time()
        tokenizer.encode(text)
        return time.process_time() - start

    cpu_seconds(1000)
    small, large = cpu_seconds(40_000), cpu_seconds(640_000)
    # 16 times the text: a linear encoder needs about 16 times the time, a quadratic one 256 times
    assert large < 100 * max(small, 1e-3)
