"""A model on disk, and processes that are gone when a test is."""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import tokenizers
from tokenizers import models, pre_tokenizers

from medha_jax.checkpoints import random_parameters, write_huggingface
from medha_jax.specs.model import Architecture
from tests.forking import Forked, Forker

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 256,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 64,
    "max_position_embeddings": 256,
}


def free_ports() -> int:
    """A port that is free, and so is the next one."""
    while True:
        with socket.create_server(("127.0.0.1", 0)) as first:
            port = first.getsockname()[1]
            try:
                socket.create_server(("127.0.0.1", port + 1)).close()
            except (OSError, OverflowError):
                continue
        return port


def write_model(directory: Path, tokenizer: Path, seed: int) -> Path:
    """A model of random weights, wider than the initialiser's so that greedy choices are decisive."""
    arch = Architecture.from_config(CONFIG)
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    random = random_parameters(arch, "float32", one, seed=seed)
    wide = {name: np.asarray(value) * (8 if value.ndim > 2 else 1) for name, value in random.items()}
    write_huggingface(directory, CONFIG, wide)
    shutil.copy(tokenizer, directory / "tokenizer.json")
    return directory


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory with a tokenizer of 256 entries."""
    directory = tmp_path_factory.mktemp("cluster")
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    fast = tokenizers.Tokenizer(models.BPE({letter: number for number, letter in enumerate(letters)}, []))
    fast.save(str(directory / "tokenizer.json"))
    return write_model(directory / "model", directory / "tokenizer.json", 0)


@dataclass(frozen=True)
class Cluster:
    """Running processes, process 0 first; what they print goes to files, because nobody empties a pipe meanwhile."""

    members: list[Forked]
    folder: Path

    def output(self, number: int) -> str:
        """What a process has printed to stdout."""
        return (self.folder / f"{number}.out").read_text()

    def errors(self, number: int) -> str:
        """What a process has printed to stderr."""
        return (self.folder / f"{number}.err").read_text()

    def result(self) -> dict[str, Any]:
        """What process 0 got, once it has said so; adopted pages, copied ones too, and slices gave the same."""
        (line,) = (line for line in self.output(0).splitlines() if line.startswith("{"))
        said: dict[str, Any] = json.loads(line)
        alone, adopted, copied, sliced = said.pop("adopted")
        assert alone == adopted == copied == sliced
        return said

    def wait(self, seconds: float, *numbers: int) -> list[int]:
        """Exit codes of these processes, or of all; each must end within `seconds` from now."""
        deadline = time.monotonic() + seconds
        chosen = [self.members[number] for number in numbers or range(len(self.members))]
        return [member.wait(max(0.1, deadline - time.monotonic())) for member in chosen]

    def wait_serving(self, seconds: float = 150) -> None:
        """Wait until process 0 has run a few ticks."""
        deadline = time.monotonic() + seconds
        while "serving\n" not in self.output(0):
            said = [self.errors(number) for number in range(len(self.members))]
            assert self.members[0].poll() is None, f"process 0 ended: {said}"
            assert time.monotonic() < deadline, f"process 0 does not serve: {said}"
            time.sleep(0.1)


@pytest.fixture
def start(model: Path, programs: Path, tmp_path: Path, forker: Forker) -> Iterator[Callable[..., Cluster]]:
    """Start a cluster: `start(processes, **settings)`; see member.py for the settings.

    `environment(number)` gives variables that process `number` has beside those of this one.
    """
    started: list[Forked] = []

    def run(
        processes: int, environment: Callable[[int], dict[str, str]] = lambda number: {}, **settings: Any
    ) -> Cluster:
        stated = dict(processes=processes, coordinator=f"127.0.0.1:{free_ports()}", heartbeat=10, patience=60)
        text = json.dumps({**stated, "compilation_cache": str(programs), **settings})
        for number in range(processes):
            with (
                open(os.devnull) as nothing,
                open(tmp_path / f"{number}.out", "wb") as out,
                open(tmp_path / f"{number}.err", "wb") as err,
            ):
                arguments, own = [str(model), text, str(number)], {**os.environ, **environment(number)}
                member = forker.start("tests.runtime.cluster.member", arguments, own, (nothing, out, err))
                started.append(member)
        return Cluster(started[-processes:], tmp_path)

    yield run
    for member in started:
        member.kill()
        member.wait()
