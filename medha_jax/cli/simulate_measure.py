"""`medha-jax simulate measure`: ticks of a real model on this machine, for the calibration of a simulator."""

from __future__ import annotations

import platform
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer

from medha_jax.cli.opening import tell
from medha_jax.cli.option_groups import Shown, refusal, takes_groups
from medha_jax.cli.prompt import model_directory
from medha_jax.cli.runtime_options import LayoutOptions, RuntimeOptions
from medha_jax.config import RuntimeConfig, same_setting, setting


@dataclass(frozen=True)
class MeasuredOptions:
    """The runtime, and how long to measure it."""

    model: str = same_setting(RuntimeOptions, "model")
    layout: LayoutOptions = field(default_factory=LayoutOptions)
    max_context: int = setting(8192, "Prompt and output, in tokens.", at_least=64)
    slots: int = setting(8, "Requests at once.", at_least=1)
    pool_tokens: int | None = setting(None, "KV tokens of each group. Default: for all slots.", at_least=64)
    seconds: float = setting(60.0, "How long to measure.", at_least=1, at_most=3600, metavar="S")
    seed: int = setting(0, "Of the requests.", at_least=0)
    trace: Path | None = setting(None, "Take the ticks and slices that `serve --trace` wrote, and run nothing.")

    def config(self, directory: Path) -> RuntimeConfig:
        """The runtime's configuration, for a model directory."""
        return RuntimeConfig(
            model=directory,
            mesh=self.layout.config,
            max_context=self.max_context,
            slots=self.slots,
            pool_tokens=self.pool_tokens or self.slots * self.max_context,
        )


@takes_groups
def measure(
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where the measured ticks go, as JSON.")],
    asked: Annotated[MeasuredOptions, Shown(defaults={"mesh": "cpu-small"})],
) -> None:
    """Run random requests through the real engine and write down what every tick did and took.

    Prompts are of all lengths (uniform in their logarithm), outputs of up to 32 tokens, one to all slots in use. With
    --trace they are those of a server, whose layout, context, slots and pool have to be stated as it had them.
    """
    from medha_jax.simulate.calibration import write_ticks

    if out.is_dir() or not out.parent.is_dir():  # told now: later, it would lose what was measured
        why = "is a directory" if out.is_dir() else f"cannot be made, because {out.parent} is no directory"
        raise refusal("--out", f"{out} {why}; give a file")

    about = {"model": Path(asked.model).name}
    if asked.trace is not None:
        from medha_jax.simulate.served_ticks import served_ticks

        config, context, ticks = asked.config(Path(asked.model)), asked.max_context, served_ticks(asked.trace)
        about["device"] = config.mesh.hardware
    else:
        config = asked.config(model_directory(asked.model))

        import jax

        from medha_jax.runtime import open_executor
        from medha_jax.simulate.measurement import measured_ticks

        executor = open_executor(config, tell)
        config, context = executor.config, executor.sizes.context
        ticks = measured_ticks(executor, asked.seconds, asked.seed, tell)
        device = jax.devices()[0].platform
        about["device"] = f"{platform.processor() or platform.machine()}, {device}"
        about |= {"dtype": "float32" if device == "cpu" else "bfloat16", "jax": jax.__version__}
    write_ticks(out, about, config, context, ticks)
    tell(f"wrote {len(ticks):,} ticks to {out}")
