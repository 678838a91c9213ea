"""A long prefix that left the pool: computed again, and brought back from host memory.

    python -m benchmarks.host_tier --tokens 65472

One server of the 26M model (`benchmarks.model`) whose pool holds one such prompt. The prompt comes, another one takes
its pages, and it comes again, each alone. It prints the seconds to the first token, and the rates of both ways.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.measure import machine
from benchmarks.memory import counted, serving
from benchmarks.model import CONFIG, write_model
from medha_jax.client import AsyncClient, Finished
from medha_jax.config import MeshConfig
from medha_jax.specs.model import Architecture

PAGE = MeshConfig().page_size


def main() -> None:
    """Measure, and print a line for each prompt."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=65_472, help="at most 64 less than the model's context")
    given = parser.parse_args()
    print(f"{machine()}; prompts of {given.tokens:,} tokens")
    arch = Architecture.from_config(CONFIG)
    token_bytes = arch.layers * 2 * arch.kv_heads * arch.head_dim * 4
    context = given.tokens + 64
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder))
        options = ["--model", folder, "--max-context", str(context), "--pool-tokens", str(context)]
        options += ["--host-kv-gib", f"{3 * context * token_bytes / 2**30:.3f}"]
        with serving(options) as (address, metrics):
            prompts = [np.random.default_rng(seed).integers(5, 4000, given.tokens).tolist() for seed in (1, 2)]
            for name, prompt in [("computed", prompts[0]), ("another", prompts[1]), ("again", prompts[0])]:
                seconds, cached = asyncio.run(ask(address, prompt))
                pages = counted(metrics, "kv_host_restored_pages")
                moved = pages * PAGE * token_bytes / 2**30
                print(
                    f"{name:>9}: first token after {seconds:7.2f} s ({given.tokens / seconds:,.0f} tokens/s), "
                    f"{cached:,} tokens cached, {moved:.2f} GiB back so far",
                    flush=True,
                )


async def ask(address: str, prompt: list[int]) -> tuple[float, int]:
    """Seconds until a prompt's only token, and the tokens that were cached."""
    async with AsyncClient(address) as client:
        began, cached = time.perf_counter(), 0
        async for event in client.generate(prompt, max_tokens=1, temperature=0):
            if isinstance(event, Finished):
                cached = event.usage.cached_tokens
        return time.perf_counter() - began, cached


if __name__ == "__main__":
    main()
