import json
import os

import pytest

from medha_jax.client import Client
from tests.compiling import FOR_MANY_TICKS, xla_flags
from tests.server.processes import SERVE, SIMULATED, ServerProcess
from tests.text.tiny_tokenizers import byte_level

CONTEXT, SLOTS = 512, 16
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 320,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "max_position_embeddings": CONTEXT,
    "eos_token_id": 1,
}
CHAT_TEMPLATE = """{{ bos_token }}{% for message in messages %}
{%- if message.role == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}
{{- '[' + message.role + '] ' + message.content + eos_token }}{% endfor %}
{%- for tool in tools or [] %}{{ tool.function.name }}{% endfor %}
{%- if add_generation_prompt %}[assistant]{% endif %}"""
MESH = {"page_size": 16, "buckets": {"decode": [1, SLOTS], "prefill": [64], "chunks": 4}}


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """A random Llama of two layers whose greedy choices are decisive."""
    import jax
    import numpy as np

    from medha_jax.checkpoints import random_parameters, write_huggingface
    from medha_jax.specs.model import Architecture

    directory = tmp_path_factory.mktemp("models") / "small"
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    weights = random_parameters(Architecture.from_config(CONFIG), "float32", device, seed=0)
    wide = {name: np.asarray(value) * (8 if value.ndim > 2 else 1) for name, value in weights.items()}
    write_huggingface(directory, CONFIG, wide)
    byte_level().save(str(directory / "tokenizer.json"))
    (directory / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    (directory / "special_tokens_map.json").write_text('{"bos_token": "<s>", "eos_token": "</s>"}')
    (directory / "generation_config.json").write_text('{"do_sample": false, "eos_token_id": 1}')
    return directory


@pytest.fixture(scope="session")
def serve_options(model, programs, tmp_path_factory):
    """Options of `medha-jax serve` with which the model starts fast, and its environment."""
    folder = tmp_path_factory.mktemp("serve")
    (folder / "mesh.yaml").write_text(json.dumps(MESH))
    options = ["--model", model, "--mesh", folder / "mesh.yaml", "--port", 0, "--slots", SLOTS, "--pool-tokens", 4096]
    options += ["--metrics-port", 0, "--http-port", 0, "--prompt-logprobs"]
    flags = xla_flags(os.environ["XLA_FLAGS"], FOR_MANY_TICKS)
    return [*SERVE, *options], {"MEDHA_JAX_CACHE": str(programs), "XLA_FLAGS": flags}


@pytest.fixture(scope="session")
def server(serve_options):
    """The real server with a real model."""
    options, environment = serve_options
    with ServerProcess(*options, environment=environment) as started:
        yield started


@pytest.fixture
def client(server):
    with Client(server.address) as connected:
        yield connected


@pytest.fixture(scope="session")
def simulated():
    """A server whose ticks take 5 ms and compute nothing."""
    options = ["--tick-ms", 5, "--max-queue", 64, "--slots", 4, "--max-output", 4096, "--http-port", 0]
    with ServerProcess(*SIMULATED, *options) as started:
        yield started
