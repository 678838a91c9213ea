"""The command as users run it: a process, its exit code, what it writes where."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import medha_jax
from medha_jax import cli
from medha_jax.plan import InvalidRequestError
from tests.text.tiny_tokenizers import byte_level

ROOT = Path(medha_jax.__file__).parents[1]
CONTEXT = 256
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 320,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": CONTEXT,
    "eos_token_id": 1,
}


@pytest.fixture(scope="session")
def environment(tmp_path_factory):
    """One compilation cache for all commands, so that each shape is compiled once."""
    cache = tmp_path_factory.mktemp("compiled")
    return os.environ | {"MEDHA_JAX_CACHE": str(cache), "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """A random Llama of two layers that samples at temperature 0 by its generation_config.json."""
    import jax

    from medha_jax.checkpoints import random_parameters, write_huggingface
    from medha_jax.models import Architecture

    directory = tmp_path_factory.mktemp("models") / "random"
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    weights = random_parameters(Architecture.from_config(CONFIG), "float32", device, seed=0)
    write_huggingface(directory, CONFIG, weights)
    byte_level().save(str(directory / "tokenizer.json"))
    (directory / "generation_config.json").write_text('{"do_sample": false, "eos_token_id": 1}')
    return directory


@pytest.fixture
def medha(environment):
    def run(*arguments, input=None, timeout=120):
        return subprocess.run(
            [sys.executable, "-m", "medha_jax.cli", *map(str, arguments)],
            input=input,
            capture_output=True,
            text=True,
            env=environment,
            timeout=timeout,
            check=False,
        )

    return run


@pytest.fixture
def generate(medha, model):
    return lambda *arguments, **given: medha("generate", "--model", model, *arguments, **given)


def refused(done):
    """The message of a refusal: one `error: …` line at the end of stderr, nothing on stdout, exit code 2."""
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert "Traceback" not in done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and done.stderr.endswith(errors[0] + "\n"), done.stderr
    return errors[0].removeprefix("error: ")


def test_help_is_quick_and_needs_no_jax(environment):
    script = "import sys\nfrom medha_jax.cli import run\nrun(['generate', '--help'])\nsys.exit('jax' in sys.modules)"
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False
        )
        seconds.append(time.perf_counter() - start)
        assert done.returncode == 0, done.stderr
        assert "--prompt-file" in done.stdout
    assert min(seconds) < 1


def test_version_and_help(medha):
    assert medha("--version").stdout == f"medha-jax {medha_jax.__version__}\n"
    done = medha()
    assert done.returncode == 0
    assert "generate" in done.stdout and "convert" in done.stdout


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "no prompt given; give exactly one of --prompt, --prompt-file, --prompt-ids"),
        (["--prompt", "a", "--prompt-ids", "1"], "--prompt and --prompt-ids given; give exactly one"),
        (["--prompt", ""], "the prompt is empty"),
        (["--prompt-ids", ""], "the prompt is empty"),
        (["--prompt-ids", "1,two"], "'two' is not a token id"),
        (["--prompt-file", "/nowhere/prompt.txt"], "cannot read /nowhere/prompt.txt: No such file or directory"),
        (["--prompt", b"\xff"], "not valid Unicode"),
        (["--prompt", "a", "--temperature", "nan"], "temperature is nan; allowed is [0, 100]"),
        (["--prompt", "a", "--top-p", "0"], "top_p is 0.0; allowed is (0, 1]"),
        (["--prompt", "a", "--top-k", "many"], "'--top-k'"),
        (["--prompt", "a", "--max-tokens", "0"], "max_tokens is 0; allowed is [1, inf)"),
        (["--prompt", "a", "--min-tokens", "5", "--max-tokens", "4"], "min_tokens is 5; allowed is [0, 4]"),
        (["--prompt", "a", "--logprobs", "21"], "logprobs is 21; allowed is [0, 20]"),
        (["--prompt", "a", "--stop", ""], "a stop string has 0 characters"),
        (["--prompt", "a", "--chunk", "64,0"], "'0' is not a number of tokens; give auto"),
        (["--prompt", "a", "--dtype", "int8"], "'--dtype'"),
        (["--prompt", "a", "--max-context", "0"], "'--max-context'"),
        (["--prompt", "a", "--max-context", "999"], f"allowed are 1 to {CONTEXT} tokens"),
        (["--prompt", "a", "--no-such-option"], "No such option"),
        (["--prompt-ids", "1,320"], "token id 320 is outside the vocabulary; allowed are 0 to 319"),
        (["--prompt", "a" * 4 * CONTEXT], "allowed are 255"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(environment, model, arguments, message):
    command = [sys.executable, "-m", "medha_jax.cli", "generate", "--model", str(model), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert message in refused(done)


def test_model_directory_problems_are_named(medha, model, tmp_path):
    def message():
        return refused(medha("generate", "--model", tmp_path / "m", "--prompt", "a"))

    assert "does not exist; give tiny, or the directory of a Hugging Face model" in message()
    (tmp_path / "m").mkdir()
    assert "no tokenizer.json" in message()
    (tmp_path / "m/tokenizer.json").write_text("{}")
    assert "is not a tokenizer" in message()
    (tmp_path / "m/tokenizer.json").write_bytes((model / "tokenizer.json").read_bytes())
    assert "no config.json" in message()
    (tmp_path / "m/config.json").write_text('{"architectures": ["Mamba2ForCausalLM"]}')
    assert "architecture not supported: Mamba2ForCausalLM; supported are" in message()
    (tmp_path / "m/config.json").write_text(json.dumps(CONFIG))
    assert "safetensors" in message()
    (tmp_path / "m/generation_config.json").write_text('{"top_p": 2}')
    assert "generation_config.json: top_p is 2; allowed is (0, 1]" in message()


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
    from medha_jax.text import Tokenizer

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


def test_a_seed_repeats_a_sampled_text(generate):
    flags = ("--prompt", "fox", "--max-tokens", 16, "--temperature", 1, "--ignore-eos", "--seed")
    one, again, other = (generate(*flags, seed).stdout for seed in (1, 1, 2))
    assert one == again != other


def test_a_reader_that_leaves_is_no_error(environment, model):
    command = [sys.executable, "-m", "medha_jax.cli", "generate", "--model", str(model), "--prompt", "a"]
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


@pytest.mark.parametrize("delay", [0.5, 1.5, None])
def test_ctrl_c_ends_with_130(environment, tmp_path, model, delay):
    """While JAX is imported, while it compiles, and (None) while text streams."""
    directory = tmp_path / "endless"
    directory.mkdir()
    for file in model.iterdir():
        (directory / file.name).write_bytes(file.read_bytes())
    (directory / "config.json").write_text(json.dumps(CONFIG | {"max_position_embeddings": 1_000_000}))
    command = [sys.executable, "-m", "medha_jax.cli", "generate", "--model", str(directory), "--prompt", "a"]
    with subprocess.Popen(
        [*command, "--ignore-eos", "--temperature", "1"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        if delay is None:
            process.stdout.read(1)
        else:
            time.sleep(delay)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors.decode()
    assert b"Traceback" not in errors


def test_convert_and_generate_from_the_result(medha, generate, tmp_path, model):
    converted = tmp_path / "converted"
    done = medha("convert", model, converted)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert str(converted) in done.stderr
    flags = ("--prompt", "the quick", "--max-tokens", 8, "--ignore-eos")
    assert medha("generate", "--model", converted, *flags).stdout == generate(*flags).stdout
    assert "already exists" in refused(medha("convert", model, converted))
    assert "is not a directory" in refused(medha("convert", tmp_path / "none", tmp_path / "new"))
    assert "dtype 'int8' is not supported" in refused(medha("convert", model, tmp_path / "new", "--dtype", "int8"))


def test_the_bundled_model_writes(medha):
    flags = ("--model", "tiny", "--max-tokens", 16)
    done = medha("generate", *flags, "--prompt", "def fibonacci(n):\n    ", "--temperature", 0)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def raising(error):
    def command(**given):
        raise error

    return command


@pytest.mark.parametrize(
    "error, code, message",
    [
        (InvalidRequestError("first\n  - second"), 2, "error: first - second"),
        (OSError(28, "No space left on device"), 1, "error: [Errno 28] No space left on device"),
        (RuntimeError("RESOURCE_EXHAUSTED: 8 GB"), 1, "error: out of memory: RESOURCE_EXHAUSTED: 8 GB; give a "),
        (MemoryError("8 GB"), 1, "error: out of memory: 8 GB; give a smaller --max-context"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_errors_become_one_line(monkeypatch, capsys, error, code, message):
    monkeypatch.setattr(cli, "app", raising(error))
    assert cli.run(["generate"]) == code
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(message) and err.count("\n") == bool(message)


@pytest.mark.parametrize("error", [ValueError("broadcast"), RuntimeError("INTERNAL"), KeyError("x")])
def test_defects_keep_their_traceback(monkeypatch, error):
    monkeypatch.setattr(cli, "app", raising(error))
    with pytest.raises(type(error)):
        cli.run(["generate"])
