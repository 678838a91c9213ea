import json
import signal
import subprocess
import time
from pathlib import Path

import pytest

from medha_jax.text import Tokenizer
from tests.cli.command import COMMAND, CONFIG
from tests.text.tiny_tokenizers import byte_level


def test_text_goes_to_stdout_and_the_rest_to_stderr(generate):
    done = generate("--prompt", "the quick", "--max-tokens", 12, "--ignore-eos")
    assert done.returncode == 0, done.stderr
    reported = json.loads(generate("--prompt", "the quick", "--max-tokens", 12, "--ignore-eos", "--json").stdout)
    assert done.stdout == reported["text"]
    assert len(reported["token_ids"]) == 12
    assert reported["finish_reason"] == "length"
    summary = done.stderr.splitlines()[-1]
    assert summary.startswith(f"{reported['prompt_tokens']} prompt tokens, TTFT ")
    assert summary.endswith(" tokens/s; length")


def test_json_is_the_same_however_the_prompt_is_given_and_cut(generate, tmp_path):
    text = "the lazy dog"
    ids = ",".join(map(str, Tokenizer(byte_level()).encode(text)))
    (tmp_path / "prompt.txt").write_text(text)
    common = ("--max-tokens", 8, "--json", "--ignore-eos", "--logprobs", 2)
    first = json.loads(generate("--prompt", text, *common).stdout)
    assert first["chunks"] == [first["prompt_tokens"]]
    assert [len(entry["top"]) for entry in first["logprobs"]] == [2] * 8
    others = [
        generate("--prompt-file", tmp_path / "prompt.txt", "--chunk", "3,1", *common),
        generate("--prompt-file", "-", "--chunk", "2", *common, input=text),
        generate("--prompt-ids", ids, *common),
        generate("--prompt-ids", "-", *common, input=ids.replace(",", "\n")),
    ]
    for done in others:
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["token_ids"] == first["token_ids"]
    chunks = json.loads(others[0].stdout)["chunks"]
    assert chunks == [3] + [1] * (first["prompt_tokens"] - 3)


def test_special_tokens_are_added_unless_refused(generate):
    def tokens(prompt, *flags):
        return json.loads(generate("--prompt", prompt, "--max-tokens", 1, "--json", *flags).stdout)["prompt_tokens"]

    assert tokens("fox") == tokens("<s>fox") == tokens("fox", "--no-add-special-tokens") + 1


def test_a_seed_repeats_a_sampled_text(generate):
    flags = ("--prompt", "fox", "--max-tokens", 16, "--temperature", 1, "--ignore-eos", "--seed")
    one, again, other = (generate(*flags, seed).stdout for seed in (1, 1, 2))
    assert one == again != other


def test_biases_and_allowed_tokens_decide_what_is_sampled(generate):
    flags = ("--prompt", "fox", "--max-tokens", 6, "--json", "--allowed-token-id", 9, "--allowed-token-id", 7)
    assert json.loads(generate(*flags, "--logit-bias", "7=100", "--logit-bias", "8=100").stdout)["token_ids"] == [7] * 6


def test_without_a_seed_one_is_drawn_and_told(generate):
    flags = ("--prompt", "fox", "--max-tokens", 16, "--temperature", 1, "--ignore-eos", "--json")
    one, other = (json.loads(generate(*flags).stdout) for _ in range(2))
    assert one["seed"] != other["seed"] and one["token_ids"] != other["token_ids"]
    again = json.loads(generate(*flags, "--seed", one["seed"]).stdout)
    assert (again["seed"], again["token_ids"]) == (one["seed"], one["token_ids"])


def test_several_outputs_are_told_apart_and_each_can_be_had_alone(generate):
    flags = ("--prompt", "the quick brown fox " * 20, "--max-tokens", 12, "--temperature", 1, "--ignore-eos", "--json")
    done = generate(*flags, "--seed", 4, "--n", 3)
    assert done.returncode == 0, done.stderr
    outputs = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(one["index"], one["seed"]) for one in outputs] == [(0, 4), (1, 5), (2, 6)]
    assert [line[:3] for line in done.stderr.splitlines()[-3:]] == ["0: ", "1: ", "2: "]
    computed = [sum(one["chunks"]) for one in outputs]
    assert computed[1] == computed[2] == computed[0] % 64 > 0, "the others adopt its full pages"
    alone = json.loads(generate(*flags, "--seed", 6).stdout)
    assert "index" not in alone and alone["token_ids"] == outputs[2]["token_ids"] != outputs[1]["token_ids"]


def test_a_reader_that_leaves_is_no_error(environment, model):
    command = [*COMMAND, "generate", "--model", str(model), "--prompt", "a"]
    with subprocess.Popen(
        [*command, "--ignore-eos", "--temperature", "1"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        process.stdout.read(1)
        process.stdout.close()
        errors = process.stderr.read().decode()
        assert process.wait(60) == 0, errors
    assert "Traceback" not in errors and "BrokenPipe" not in errors


@pytest.mark.parametrize("moment", ["jax is imported", "it compiles", "text streams"])
def test_ctrl_c_ends_with_130(environment, tmp_path, model, moment):
    directory = tmp_path / "endless"
    directory.mkdir()
    for file in model.iterdir():
        (directory / file.name).write_bytes(file.read_bytes())
    (directory / "config.json").write_text(json.dumps(CONFIG | {"max_position_embeddings": 1_000_000}))
    command = [*COMMAND, "generate", "--model", str(directory), "--prompt", "a"]
    with subprocess.Popen(
        [*command, "--ignore-eos", "--temperature", "1"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        if moment == "text streams":
            process.stdout.read(1)
        elif moment == "it compiles":
            for line in process.stderr:
                if line.startswith(b"compiling"):
                    break
        else:
            maps = Path(f"/proc/{process.pid}/maps")
            while "jaxlib" not in maps.read_text():
                time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors.decode()
    assert b"Traceback" not in errors


def test_the_bundled_model_writes(medha):
    flags = ("--model", "tiny", "--max-tokens", 16)
    done = medha("generate", *flags, "--prompt", "def fibonacci(n):\n    ", "--temperature", 0)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_without_a_place_for_a_cache_it_compiles_and_says_so(model, environment):
    """As in a container whose user has no home that can be written."""
    unset = {"MEDHA_JAX_CACHE", "XDG_CACHE_HOME"}
    nowhere = {name: value for name, value in environment.items() if name not in unset} | {"HOME": "/proc"}
    command = [*COMMAND, "generate", "--model", model, "--prompt", "the", "--max-tokens", "1", "--ignore-eos"]
    done = subprocess.run(command, env=nowhere, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    (line,) = (line for line in done.stderr.splitlines() if "MEDHA_JAX_CACHE" in line)
    assert line.startswith("every start compiles all programs") and "/proc/.cache/medha-jax/compiled" in line


def test_a_prompt_has_the_log_probabilities_that_its_tokens_had_when_they_were_generated(generate):
    flags = ("--ignore-eos", "--json", "--max-tokens")
    first = json.loads(generate("--prompt-ids", "5,6,7", *flags, 5, "--logprobs", 2).stdout)
    assert "prompt_logprobs" not in first
    ids = [5, 6, 7, *first["token_ids"]]
    done = generate(
        "--prompt-ids", ",".join(map(str, ids)), *flags, 2, "--prompt-logprobs", 2, "--chunk", "3,1", "--n", 2
    )
    assert done.returncode == 0, done.stderr
    one, other = map(json.loads, done.stdout.splitlines())
    assert "prompt_logprobs" not in other and one["logprobs"] is None
    nothing, *entries = one["prompt_logprobs"]
    assert nothing is None and [entry["token_id"] for entry in entries] == ids[1:]
    for entry, wanted in zip(entries[2:], first["logprobs"], strict=True):
        assert entry["logprob"] == pytest.approx(wanted["logprob"], abs=1e-4)
        assert [token for token, _ in entry["top"]] == [token for token, _ in wanted["top"]]
