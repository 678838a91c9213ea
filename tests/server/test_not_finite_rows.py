"""A model with a token whose embedding is not a number, on a real server: only who sends the token is told."""

import shutil
import threading

import pytest

from medha_jax.client import Client, Delta
from tests.server.processes import ServerProcess, refusal

BAD = 300
WANTED = {"max_tokens": 200, "temperature": 0, "ignore_eos": True}


@pytest.fixture
def poisoned(model, tmp_path):
    import numpy as np
    from safetensors.numpy import load_file, save_file

    directory = tmp_path / "poisoned"
    shutil.copytree(model, directory)
    for path in directory.glob("*.safetensors"):
        tensors = load_file(path)
        changes = {"model.embed_tokens.weight": np.nan, "lm_head.weight": 0}  # it is never sampled
        for name in changes.keys() & tensors.keys():
            tensors[name] = tensors[name].copy()
            tensors[name][BAD] = changes[name]
        save_file(tensors, path, {"format": "pt"})
    return directory


@pytest.mark.parametrize("attention", ["xla", "llvm"])
def test_only_who_sends_it_is_told(poisoned, model, serve_options, attention):
    options, environment = serve_options
    options = [poisoned if option == model else option for option in options] + ["--attention", attention]
    with ServerProcess(*options, environment=environment) as server, Client(server.address) as client:

        def tokens():
            return [t for e in client.generate([5, 6, 7], **WANTED) if isinstance(e, Delta) for t in e.token_ids]

        alone, together = tokens(), []
        reading = threading.Thread(target=lambda: together.extend(tokens()))
        reading.start()
        prompts = [*[[BAD]] * 20, [5, BAD, 6], [5, BAD, 6, *range(2, 60)], [*range(2, 40), BAD, *range(100, 180)]]
        for prompt in [*prompts, *prompts[-3:]]:
            error = refusal(client.generate(prompt, max_tokens=1, temperature=0))
            assert error.code == "INTERNAL" and "not finite" in error.message
        reading.join(60)
        assert len(alone) == 200 and together == alone
