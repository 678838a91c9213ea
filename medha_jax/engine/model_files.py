"""What a model directory says beside its weights, read once for every command."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from medha_jax.config import ModelDefaults
from medha_jax.plan import SamplingParams
from medha_jax.specs.model import Architecture
from medha_jax.text import WAY_OUT, GenerationDefaults, Tokenizer


@dataclass(frozen=True)
class ModelFiles:
    """The tokenizer, the architecture, and how texts are sampled and ended.

    Args:
        sampling: defaults for the fields that a request leaves unset.
        eos_ids: tokens of the vocabulary that end a generation.
        notes: warnings about the tokenizer's and the generation's files, a line each. Those about the architecture are
            told where its weights are loaded.
    """

    tokenizer: Tokenizer
    arch: Architecture
    sampling: SamplingParams
    eos_ids: tuple[int, ...]
    notes: tuple[str, ...] = ()

    @classmethod
    def read(cls, directory: Path, defaults: ModelDefaults | None = None) -> ModelFiles:
        """Read a model directory; the weights are not looked at.

        Raises:
            TokenizerError, GenerationConfigError, UnsupportedModelError, InvalidRequestError: a file cannot be read, or
                something in it is not supported.
        """
        chosen = defaults or ModelDefaults()
        tokenizer = Tokenizer.from_directory(directory)
        stated = GenerationDefaults.from_directory(directory, tokenizer, chosen.reads_sampling)
        sampling = SamplingParams.from_file(directory / "generation_config.json", stated.sampling, WAY_OUT)
        arch = Architecture.from_directory(directory)
        eos_ids = tuple(token_id for token_id in stated.eos_ids if token_id < arch.vocab)
        notes = [*tokenizer.notes, *stated.notes]
        if outside := sorted({*stated.eos_ids} - {*eos_ids}):
            names = ", ".join(map(str, outside))
            notes.append(f"eos_token_id {names}: outside the vocabulary of {arch.vocab} tokens, so it ends nothing")
        if (directory / "adapter_config.json").is_file():
            notes.append("adapter_config.json: adapters are not applied; merge them into the weights")
        return cls(tokenizer, arch, sampling, eos_ids, tuple(notes))
