"""Workloads by name."""

from __future__ import annotations

from medha_jax.workload.mixes import Mix, WorkloadError, load_mix

# Preset -> name of its tables. Medha's mixes are ShareGPT up to 8K with a share of long prompts.
_MIXES = {
    "sharegpt-8k": "0",
    "medha-0pct": "0",
    "medha-1pct": "1",
    "medha-5pct": "5",
    "azure-code-2023": "azure-code-2023",
    "azure-conv-2023": "azure-conv-2023",
    "mooncake-conv": "mooncake-conv",
}
PRESETS = tuple(_MIXES)


def load_preset(name: str) -> Mix:
    """The lengths of one of `PRESETS`."""
    return load_mix(_MIXES[name])


def preset_of(mix: str) -> str:
    """The preset of a name: its own name, or Medha's percentage of long requests (`0`, `1`, `5`).

    Raises:
        WorkloadError: there is none.
    """
    name = f"medha-{mix}pct" if mix.isdigit() else mix
    if name not in PRESETS:
        raise WorkloadError(f"there is no mix {mix!r}; there are 0, 1, 5, {', '.join(PRESETS)}")
    return name
