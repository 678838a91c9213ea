"""The layout options that every command has: `--mesh`, and single settings that override it."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

import typer

from medha_jax.config import MeshConfig, load_mesh

PANEL = "Layout"
MeshOption = Annotated[
    str,
    typer.Option(
        metavar="FILE|NAME|tp=N,spp=N,kvp=N",
        help="Layout of the devices: a YAML file, a name from mesh_configs/, or the axes themselves.",
        rich_help_panel=PANEL,
    ),
]
PageSizeOption = Annotated[
    int | None, typer.Option(metavar="N", help="Tokens in a KV page; a power of two.", rich_help_panel=PANEL)
]
TokensPerGroupOption = Annotated[
    int | None,
    typer.Option(metavar="N", help="Tokens of one request that a KV group holds.", rich_help_panel=PANEL),
]


def mesh_config(text: str, **overrides: Any) -> MeshConfig:
    """The layout that `--mesh` names, with the settings that were given beside it.

    Raises:
        ConfigError: the layout cannot be read, or a setting is out of range.
    """
    return replace(load_mesh(text), **{name: value for name, value in overrides.items() if value is not None})
