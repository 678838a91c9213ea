"""A long prompt with nobody else in the largest chunks: the seconds that a convoy's long request is compared with."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

GENERATE = (sys.executable, "-m", "medha_jax.cli", "generate")


class GenerateError(RuntimeError):
    """`medha-jax generate` failed."""


@dataclass(frozen=True)
class BestAlone:
    """Seconds of a prompt with nobody else, without a server: to the first token, and to the last."""

    ttft_s: float
    whole_s: float


def best_alone(
    options: Sequence[str],
    ids: Sequence[int],
    output: int,
    tell: Callable[[str], None],
    command: Sequence[str] | None = None,
) -> BestAlone:
    """Run `medha-jax generate` for a prompt in a process of its own, and read its times; its start does not count.

    Args:
        options: of the runtime: model, layout, context.
        ids: of the prompt.
        output: tokens to generate, greedily.
        tell: takes the command.
        command: another one than GENERATE.

    Raises:
        GenerateError: it failed.
    """
    asked = [*options, f"--max-tokens={output}", "--temperature=0", "--ignore-eos", "--json", "--prompt-ids=-"]
    tell(f"$ medha-jax generate {' '.join(asked)}")
    text = ",".join(map(str, ids))
    done = subprocess.run([*(command or GENERATE), *asked], input=text, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise GenerateError(f"the long prompt alone failed: generate ended with exit code {done.returncode}")
    said = json.loads(done.stdout.splitlines()[-1])
    first, each = float(said["ttft_s"]), float(said["tpot_s"] or 0)
    return BestAlone(first, first + each * (len(said["token_ids"]) - 1))
