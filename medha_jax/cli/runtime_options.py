"""Options of the runtime that a command uses: layout, model and other settings."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Any

from medha_jax.cli.option_groups import Shown
from medha_jax.cli.prompt import model_directory
from medha_jax.config import MeshConfig, RuntimeConfig, load_mesh, same_setting, setting

PANEL = "Layout"


def mesh_config(mesh: str, **overrides: Any) -> MeshConfig:
    """The layout that `--mesh` names, changed by the settings stated beside it.

    Raises:
        ConfigError: the layout cannot be read, or a setting is out of range.
    """
    return replace(load_mesh(mesh), **{name: value for name, value in overrides.items() if value is not None})


@dataclass(frozen=True)
class LayoutOptions:
    """`--mesh`, and single settings that override it."""

    mesh: str = setting(
        "tp=1",
        "Layout of the devices: a YAML file, a name from mesh_configs/, or the axes themselves.",
        metavar="FILE|NAME|tp=N,spp=N,kvp=N",
        panel=PANEL,
    )
    page_size: int | None = same_setting(MeshConfig, "page_size", default=None, panel=PANEL)
    tokens_per_group: int | None = same_setting(MeshConfig, "tokens_per_group", panel=PANEL)
    overlap_rows: int | None = same_setting(MeshConfig, "overlap_rows", panel=PANEL)

    @property
    def config(self) -> MeshConfig:
        """The layout; errors as in `mesh_config`."""
        return mesh_config(**asdict(self))


@dataclass(frozen=True)
class RuntimeOptions:
    """The model, the layout, and other settings of a runtime."""

    model: str = setting("tiny", "The bundled tiny model, or a Hugging Face model directory.", metavar="tiny|DIR")
    layout: LayoutOptions = field(default_factory=LayoutOptions)
    settings: Annotated[
        dict[str, Any], Shown(of=RuntimeConfig, without={"model", "mesh"}, defaults={"slots": None})
    ] = field(default_factory=dict)

    @property
    def config(self) -> RuntimeConfig:
        """The runtime's configuration; errors as in `model_directory` and `mesh_config`."""
        directory = model_directory(self.model)
        layout, stated = self.layout.config, self.settings
        slots = stated.get("slots") or layout.usual_slots
        return RuntimeConfig(model=directory, mesh=layout, **{**stated, "slots": slots})
