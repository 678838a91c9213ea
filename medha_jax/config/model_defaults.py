"""Which defaults a model's files give to requests."""

from __future__ import annotations

from dataclasses import dataclass

from medha_jax.config.declaration import check_settings, setting

GENERATION_CONFIGS = ("auto", "none")


@dataclass(frozen=True)
class ModelDefaults:
    """Whether sampling fields that a request leaves unset come from the model's `generation_config.json`."""

    generation_config: str = setting(
        "auto",
        "auto: sampling defaults of the model's generation_config.json; none: plain sampling at temperature 1. "
        "End tokens are read from it either way.",
        choices=GENERATION_CONFIGS,
    )

    def __post_init__(self) -> None:
        check_settings(self)

    @property
    def reads_sampling(self) -> bool:
        """Whether the file's sampling defaults count."""
        return self.generation_config == "auto"
