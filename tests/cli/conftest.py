import os
import subprocess
from tempfile import TemporaryFile

import pytest
import typer

from medha_jax import cli
from tests.cli.command import CONFIG, ROOT
from tests.text.tiny_tokenizers import byte_level


@pytest.fixture(scope="session", autouse=True)
def one_command():
    """All commands and options are made once, not for each of the many lines that tests run in their own process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "app", typer.main.get_command(cli.app))
        yield


@pytest.fixture(scope="session")
def environment(programs):
    """One compilation cache for all commands, so that each shape is compiled once."""
    return os.environ | {"MEDHA_JAX_CACHE": str(programs), "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """A random Llama of two layers that samples at temperature 0 by its generation_config.json."""
    import jax

    from medha_jax.checkpoints import random_parameters, write_huggingface
    from medha_jax.specs.model import Architecture

    directory = tmp_path_factory.mktemp("models") / "random"
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    weights = random_parameters(Architecture.from_config(CONFIG), "float32", device, seed=0)
    write_huggingface(directory, CONFIG, weights)
    byte_level().save(str(directory / "tokenizer.json"))
    (directory / "generation_config.json").write_text('{"do_sample": false, "eos_token_id": 1}')
    return directory


@pytest.fixture
def medha(environment, forker):
    """The command, run to its end."""

    def run(*arguments, input="", timeout=120):
        arguments = [*map(str, arguments)]
        with TemporaryFile("w+") as given, TemporaryFile("w+") as out, TemporaryFile("w+") as errors:
            given.write(input)
            given.seek(0)
            process = forker.start("medha_jax.cli", arguments, environment, (given, out, errors))
            try:
                code = process.wait(timeout)
            finally:
                process.kill()
            out.seek(0)
            errors.seek(0)
            return subprocess.CompletedProcess(arguments, code, out.read(), errors.read())

    return run


@pytest.fixture
def generate(medha, model):
    return lambda *arguments, **given: medha("generate", "--model", model, *arguments, **given)
