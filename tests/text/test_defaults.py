import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medha_jax.text import GenerationConfigError, GenerationDefaults, Tokenizer, TokenizerError
from tests.text.tiny_tokenizers import byte_level


def read(directory, generation=None, model=None):
    for name, content in (("generation_config.json", generation), ("config.json", model)):
        if content is not None:
            text = content if isinstance(content, str) else json.dumps(content)
            (directory / name).write_text(text, encoding="utf-8")
    return GenerationDefaults.from_directory(directory)


def test_no_files_give_no_defaults(tmp_path):
    assert read(tmp_path) == GenerationDefaults((), {})


@pytest.mark.parametrize(
    "value, ids",
    [
        (2, (2,)),
        ([128001, 128009], (128001, 128009)),
        ([7, 7], (7,)),
        ([], ()),
        (-1, ()),
        ([2, -1], (2,)),
        (128001.0, (128001,)),
    ],
)
def test_eos_is_an_id_or_a_list(tmp_path, value, ids):
    assert read(tmp_path, {"eos_token_id": value}).eos_ids == ids


def test_eos_is_what_any_file_says(tmp_path):
    assert read(tmp_path, {"eos_token_id": 2}, {"eos_token_id": [99, 2]}).eos_ids == (2, 99)
    byte_level().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": {"content": "</s>"}}')
    tokenizer = Tokenizer.from_directory(tmp_path)
    assert GenerationDefaults.from_directory(tmp_path, tokenizer).eos_ids == (2, 99, 1)
    assert GenerationDefaults.from_directory(tmp_path, tokenizer, sampling=False).eos_ids == (2, 99, 1)


@pytest.mark.parametrize("generation", [None, {}, {"eos_token_id": None}])
def test_eos_falls_back_to_the_model_config(tmp_path, generation):
    assert read(tmp_path, generation, {"eos_token_id": [3, 4]}).eos_ids == (3, 4)


def test_sampling_fields_that_are_set(tmp_path):
    given = {"temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0, "repetition_penalty": 1.05}
    found = read(tmp_path, {**given, "do_sample": True, "top_a": 1, "max_length": 20})
    assert found.sampling == given and found.notes == ()


def test_whole_numbers_may_be_written_as_floats(tmp_path):
    assert read(tmp_path, {"top_k": 50.0}).sampling == {"top_k": 50}


def test_sampling_defaults_can_be_left_out_even_if_they_are_wrong(tmp_path):
    read(tmp_path, {"temperature": 0.1, "eos_token_id": 3, "num_beams": 4})
    assert GenerationDefaults.from_directory(tmp_path, sampling=False) == GenerationDefaults((3,))
    (tmp_path / "generation_config.json").write_text('{"temperature": "0.7"}')
    assert GenerationDefaults.from_directory(tmp_path, sampling=False) == GenerationDefaults()


def test_settings_without_an_effect_are_named_in_one_line(tmp_path):
    given = {"num_beams": 4, "no_repeat_ngram_size": 3, "suppress_tokens": [1], "max_new_tokens": 512}
    neutral = {"typical_p": 1.0, "num_beam_groups": 1, "length_penalty": 1.0, "bad_words_ids": None, "min_length": 0}
    assert read(tmp_path, {**given, **neutral}).notes == (
        "generation_config.json: no effect here: max_new_tokens, no_repeat_ngram_size, num_beams, suppress_tokens",
    )


def test_null_is_unset(tmp_path):
    assert read(tmp_path, {"temperature": None, "top_k": None, "do_sample": None}).sampling == {}


def test_not_sampling_means_temperature_zero(tmp_path):
    assert read(tmp_path, {"do_sample": False, "temperature": 0.7, "top_p": 0.9}).sampling == {
        "temperature": 0.0,
        "top_p": 0.9,
    }


@pytest.mark.parametrize(
    "field, value",
    [
        ("temperature", "hot"),
        ("temperature", True),
        ("top_k", 2.5),
        ("top_p", [0.9]),
        ("do_sample", "no"),
        ("do_sample", 0),
        ("eos_token_id", "</s>"),
        ("eos_token_id", -2),
        ("eos_token_id", 2.5),
        ("eos_token_id", 2**31),
        ("eos_token_id", [1, None]),
        ("eos_token_id", True),
        ("eos_token_id", {"a": 1}),
    ],
)
def test_a_malformed_value_is_named(tmp_path, field, value):
    with pytest.raises(GenerationConfigError, match=f"generation_config.json: {field} is .*allowed is"):
        read(tmp_path, {field: value})


def test_a_malformed_value_of_the_model_config_is_named(tmp_path):
    with pytest.raises(GenerationConfigError, match="/config.json: eos_token_id is 'x'"):
        read(tmp_path, None, {"eos_token_id": "x"})


@pytest.mark.parametrize("content", ["", "{", "[" * 100_000, '{"top_k": ' + "9" * 5000 + "}"])
def test_a_file_that_is_not_json_is_named(tmp_path, content):
    with pytest.raises(GenerationConfigError, match="generation_config.json is not valid JSON"):
        read(tmp_path, content)


def test_a_file_that_is_not_an_object_is_named(tmp_path):
    with pytest.raises(GenerationConfigError, match="must be a JSON object"):
        read(tmp_path, "[1]")


def test_a_file_that_is_not_utf8_is_named(tmp_path):
    (tmp_path / "generation_config.json").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(GenerationConfigError, match="not valid JSON"):
        GenerationDefaults.from_directory(tmp_path)


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner))
NAMES = ["eos_token_id", "temperature", "top_k", "top_p", "do_sample", "num_beams", "stop_strings", "sequence_bias"]
NAMES += ["bos_token", "eos_token", "add_bos_token", "add_eos_token", "added_tokens_decoder"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["generation_config", "config", "tokenizer_config", "special_tokens_map"]), st.data())
def test_any_json_gives_defaults_or_one_error_of_ours(tmp_path, name, data):
    for old in tmp_path.glob("*.json"):
        old.unlink()
    byte_level().save(str(tmp_path / "tokenizer.json"))
    content = data.draw(VALUES | st.dictionaries(st.sampled_from(NAMES), VALUES))
    (tmp_path / f"{name}.json").write_text(json.dumps(content))
    try:
        tokenizer = Tokenizer.from_directory(tmp_path)
        found = GenerationDefaults.from_directory(tmp_path, tokenizer)
    except (GenerationConfigError, TokenizerError):
        return
    assert all(0 <= token_id < 2**31 for token_id in found.eos_ids)
    assert tokenizer.decode(tokenizer.encode("a b")) == "a b" and all(tokenizer.notes + found.notes)
