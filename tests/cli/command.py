"""The command as users run it, and a model small enough to run it on."""

import sys
from pathlib import Path

import medha_jax

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
COMMAND = [sys.executable, "-m", "medha_jax.cli"]


def refused(done):
    """The message of a refusal: one `error: …` line at the end of stderr, nothing on stdout, exit code 2."""
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert "Traceback" not in done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and done.stderr.endswith(errors[0] + "\n"), done.stderr
    return errors[0].removeprefix("error: ")
