"""Corpus selection, tokenizer and batches of the tool that trains the bundled model."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tools.tiny_corpus import (
    END_OF_TEXT_ID,
    HELD_OUT_SHARE,
    Document,
    batch,
    documents,
    encode,
    is_held_out,
    is_wanted,
    split,
    standard_library,
    train_tokenizer,
    write_tokenizer,
)


@pytest.fixture(scope="module")
def tokenizer():
    words = " ".join(f"name_{i:b}" for i in range(64))
    return train_tokenizer(["def read(self):\n    return self.lines\n" * 20, words], 300)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("json/decoder.py", True),
        ("os.py", True),
        ("site-packages/numpy/core.py", False),
        ("ensurepip/_bundled/pip.py", False),
        ("idlelib/editor.py", False),
        ("encodings/cp1252.py", False),
        ("test/badsyntax_3131.py", False),
        ("config-3.11-x86_64-linux-gnu/python-config.py", False),
        ("_sysconfigdata__linux_x86_64-linux-gnu.py", False),
    ],
)
def test_selection(name, wanted):
    assert is_wanted(name) is wanted


def test_about_half_of_the_tests_and_two_percent_held_out():
    names = [f"test/test_{i}.py" for i in range(4000)]
    assert 0.45 < sum(map(is_wanted, names)) / len(names) < 0.55
    assert 0.5 < sum(map(is_held_out, names)) / len(names) / HELD_OUT_SHARE < 1.5


def test_documents_are_ordered_distinct_and_utf8(tmp_path):
    (tmp_path / "b.py").write_text("x = 1\n")
    (tmp_path / "a.py").write_text("y = 'é'\n", encoding="utf-8")
    (tmp_path / "copy.py").write_text("x = 1\n")
    (tmp_path / "empty.py").write_text("\n")
    (tmp_path / "latin.py").write_bytes(b"z = '\xe9'\n")
    (tmp_path / "note.txt").write_text("no")
    package = tmp_path / "aa"
    package.mkdir()
    (package / "c.py").write_text("z = 3\n")
    found = list(documents(tmp_path))
    assert [document.name for document in found] == ["a.py", "aa/c.py", "b.py"]
    assert found[0].nbytes == len("y = 'é'\n") + 1


def test_the_standard_library_is_found_and_split():
    corpus = list(documents(standard_library()))
    training, held_out = split(corpus)
    assert len(training) + len(held_out) == len(corpus) > 300
    assert held_out and {d.name for d in training}.isdisjoint(d.name for d in held_out)


@given(st.text(max_size=100))
def test_tokenizer_round_trips(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_tokenizer_has_the_size_asked_for(tokenizer):
    assert tokenizer.get_vocab_size() == 300
    with pytest.raises(ValueError, match="yields"):
        train_tokenizer(["ab"], 300)


def test_documents_end_with_the_end_of_text_token(tokenizer):
    ids = encode(tokenizer, [Document("a", "import os\n"), Document("b", "import sys\n")])
    assert ids.dtype == np.int32
    assert ids[-1] == END_OF_TEXT_ID and (ids == END_OF_TEXT_ID).sum() == 2


def test_tokenizer_files(tokenizer, tmp_path):
    write_tokenizer(tokenizer, tmp_path)
    assert json.loads((tmp_path / "tokenizer.json").read_text())["post_processor"] is None
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["add_bos_token"] is False


def test_an_epoch_visits_disjoint_windows_and_the_next_one_another_order():
    stream, size, length = np.arange(1003, dtype=np.int32), 4, 10
    per_epoch = ((len(stream) - 1) // length - 1) // size
    first = [batch(stream, size, length, i, seed=0) for i in range(per_epoch)]
    second = [batch(stream, size, length, per_epoch + i, seed=0) for i in range(per_epoch)]
    assert all(windows.shape == (size, length + 1) for windows in first + second)
    inputs = np.concatenate([windows[:, :-1].reshape(-1) for windows in first])
    assert len(np.unique(inputs)) == len(inputs)
    assert not np.array_equal(np.concatenate(first), np.concatenate(second))
    np.testing.assert_array_equal(first[3], batch(stream, size, length, 3, seed=0))
    assert not np.array_equal(first[3], batch(stream, size, length, 3, seed=1))


def test_too_short_a_stream_is_refused():
    with pytest.raises(ValueError, match="too few"):
        batch(np.arange(100, dtype=np.int32), 4, 32, 0, 0)
