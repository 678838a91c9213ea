import io
from types import SimpleNamespace

import pytest
import typer

from medha_jax.cli.prompt import model_directory, one_source, parse_chunks, parse_ids, read_prompt, sampling_params
from medha_jax.plan import InvalidRequestError, SamplingParams
from medha_jax.text import Tokenizer
from tests.text.tiny_tokenizers import byte_level

TOKENIZER = Tokenizer(byte_level())


def read(text=None, file=None, ids=None):
    return read_prompt(text, file, ids, TOKENIZER)


@pytest.fixture
def stdin(monkeypatch):
    def give(data):
        monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(data)))

    return give


@pytest.mark.parametrize("text", ["1,2,3", "1 2 3", "1, 2,\n3\n", "01,2,3"])
def test_ids_are_separated_by_commas_or_spaces(text):
    assert parse_ids(text) == (1, 2, 3)


@pytest.mark.parametrize("text", ["1,x", "-1", "1.5", "1_0", "٣", "99999999999", "0x10"])
def test_what_is_no_id_is_named(text):
    with pytest.raises(InvalidRequestError, match="is not a token id; give numbers of 0 or more"):
        parse_ids(text)


@pytest.mark.parametrize("text", ["", " ", ",", "\n"])
def test_no_ids_are_refused(text):
    with pytest.raises(InvalidRequestError, match="at least one token id"):
        parse_ids(text)


@pytest.mark.parametrize("text, sizes", [("auto", None), ("512", (512,)), ("512,64", (512, 64)), ("3, 1", (3, 1))])
def test_chunk_sizes(text, sizes):
    assert parse_chunks(text) == sizes


@pytest.mark.parametrize("text", ["", "0", "-1", "8,", "8,x", "AUTO", "1e3"])
def test_chunk_sizes_that_are_none_are_named(text):
    with pytest.raises(typer.BadParameter, match="give auto, or sizes of 1 or more"):
        parse_chunks(text)


def test_exactly_one_source():
    one_source("a", None, None)
    one_source("", None, None)
    with pytest.raises(InvalidRequestError, match="^no prompt given; give exactly one of --prompt, "):
        one_source(None, None, None)
    with pytest.raises(InvalidRequestError, match="^--prompt-file and --prompt-ids given"):
        one_source(None, "f", "1")


def test_text_files_are_taken_exactly(tmp_path):
    path = tmp_path / "prompt.txt"
    path.write_bytes("a\r\nb é\n".encode())
    assert TOKENIZER.decode(read(file=str(path))) == "a\r\nb é\n"


def test_standard_input(stdin):
    stdin(b"fox\n")
    assert TOKENIZER.decode(read(file="-")) == "fox\n"
    stdin(b"7 8\n9")
    assert read(ids="-") == (7, 8, 9)


def test_an_empty_prompt_is_refused(stdin, tmp_path):
    stdin(b"")
    for given in (dict(text=""), dict(file="-")):
        with pytest.raises(InvalidRequestError, match="the prompt is empty; it must have at least one character"):
            read(**given)


def test_a_text_without_tokens_is_refused(tmp_path):
    backend = byte_level()
    backend.post_processor = None
    backend.add_tokens(["x"])
    from tokenizers import normalizers

    backend.normalizer = normalizers.Strip()
    with pytest.raises(InvalidRequestError, match=r"makes no token of this prompt \(2 characters\)"):
        read_prompt("  ", None, None, Tokenizer(backend))


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(InvalidRequestError, match="cannot read .*/none.txt: No such file"):
        read(file=str(tmp_path / "none.txt"))
    with pytest.raises(InvalidRequestError, match="cannot read .*: Is a directory"):
        read(file=str(tmp_path))


def test_a_file_that_is_not_utf8_is_named(tmp_path, stdin):
    path = tmp_path / "latin1.txt"
    path.write_bytes(b"caf\xe9 noir")
    with pytest.raises(InvalidRequestError, match="latin1.txt is not UTF-8 text: byte 3 is 0xe9"):
        read(file=str(path))
    stdin(b"\xff")
    with pytest.raises(InvalidRequestError, match="standard input is not UTF-8 text: byte 0"):
        read(ids="-")


def test_model_directories(tmp_path):
    assert model_directory(str(tmp_path)) == tmp_path
    assert model_directory("tiny").parts[-3:] == ("medha_jax", "bundled", "tiny")
    with pytest.raises(typer.BadParameter, match="/none does not exist; give tiny, or the directory"):
        model_directory(str(tmp_path / "none"))
    (tmp_path / "file").touch()
    with pytest.raises(typer.BadParameter, match="/file is not a directory"):
        model_directory(str(tmp_path / "file"))


def test_flags_come_before_the_models_defaults():
    defaults = SamplingParams(temperature=0.6, top_p=0.9)
    given = {"temperature": 0.0, "top_p": None, "top_k": None, "stop": ("x",)}
    assert sampling_params(defaults, given) == SamplingParams(temperature=0.0, top_p=0.9, stop=("x",))
