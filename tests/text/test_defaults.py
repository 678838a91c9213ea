import json

import pytest

from medha_jax.text import GenerationConfigError, GenerationDefaults


def read(directory, generation=None, model=None):
    for name, content in (("generation_config.json", generation), ("config.json", model)):
        if content is not None:
            text = content if isinstance(content, str) else json.dumps(content)
            (directory / name).write_text(text, encoding="utf-8")
    return GenerationDefaults.from_directory(directory)


def test_no_files_give_no_defaults(tmp_path):
    assert read(tmp_path) == GenerationDefaults((), {})


@pytest.mark.parametrize("value, ids", [(2, (2,)), ([128001, 128009], (128001, 128009)), ([7, 7], (7,)), ([], ())])
def test_eos_is_an_id_or_a_list(tmp_path, value, ids):
    assert read(tmp_path, {"eos_token_id": value}, {"eos_token_id": 99}).eos_ids == ids


@pytest.mark.parametrize("generation", [None, {}, {"eos_token_id": None}])
def test_eos_falls_back_to_the_model_config(tmp_path, generation):
    assert read(tmp_path, generation, {"eos_token_id": [3, 4]}).eos_ids == (3, 4)


def test_sampling_fields_that_are_set(tmp_path):
    given = {"temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0, "repetition_penalty": 1.05}
    assert read(tmp_path, {**given, "do_sample": True, "top_a": 1, "max_length": 20}).sampling == given


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
        ("eos_token_id", -1),
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
