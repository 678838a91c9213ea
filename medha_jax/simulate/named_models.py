"""Models for the simulator, by name or from a `config.json`."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

from medha_jax.config import BUNDLED_MODEL
from medha_jax.simulate.hardware import SpecError
from medha_jax.specs.model import Architecture, UnsupportedModelError

FOLDER = "models"
TINY = "tiny"


def model_names() -> tuple[str, ...]:
    """Names of the models whose sizes come with the package."""
    folder = resources.files("medha_jax.simulate").joinpath(FOLDER)
    found = (entry.name.removesuffix(".json") for entry in folder.iterdir() if entry.name.endswith(".json"))
    return (*sorted(found), TINY)


def load_model(name: str) -> Architecture:
    """A model by name, or from a `config.json` or its directory.

    Raises:
        SpecError: there is no such model or file, or the runtime cannot compute the model.
    """
    try:
        if name == TINY:
            return Architecture.from_directory(BUNDLED_MODEL)
        if name in model_names():
            file = resources.files("medha_jax.simulate").joinpath(FOLDER, f"{name}.json")
            return Architecture.from_config(json.loads(file.read_text(encoding="utf-8")))
        return Architecture.from_directory(Path(name))
    except (OSError, UnsupportedModelError) as error:
        raise SpecError(
            f"cannot read model {name!r} ({error}); give a config.json, its directory, or one of: "
            f"{', '.join(model_names())}"
        ) from None
