"""A lone prompt through the engine alone and through a server, side by side.

    python -m benchmarks.lone_prompt --tokens 8192

The 26M model (`benchmarks.model`). The engine alone runs in this process, in chunks of the largest shape and without a
client. It runs before and after the server, whose client sends over gRPC. Ratio: served / mean of the engine alone. How
far these two are apart says how steady the machine was.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.measure import machine
from benchmarks.model import CONFIG, write_model
from medha_jax.bench.load_generator import LoadSettings
from medha_jax.bench.over_grpc import GrpcBackend
from medha_jax.bench.own_server import OwnServer
from medha_jax.bench.session import Session
from medha_jax.cli.bench_live import LiveDisplay
from medha_jax.client import Connection
from medha_jax.config import RuntimeConfig
from medha_jax.engine import Executor, GenerationRequest, NewTokens, generate, sized_for
from medha_jax.plan import SamplingParams
from medha_jax.results.metrics import tpot, ttft
from medha_jax.runtime import open_executor
from medha_jax.text import Tokenizer

SHORT, OUTPUT = 128, 64  # tokens of the prompt before whose decodes little is read, and tokens of every output
VOCABULARY = int(str(CONFIG["vocab_size"]))


@dataclass(frozen=True)
class PromptTimes:
    """Seconds of one prompt with nobody else: to its first token, and for each later one."""

    ttft_s: float
    tpot_s: float


@dataclass(frozen=True)
class LoneRun:
    """A long prompt and a short one."""

    long: PromptTimes
    short: PromptTimes


def open_engine(directory: Path, tokens: int) -> Executor:
    """A runtime just large enough for both prompts."""
    config, context = RuntimeConfig(model=directory), tokens + SHORT
    wanted = [request(np.zeros(length, np.int32)) for length in (tokens, SHORT)]
    return open_executor(sized_for(config, wanted, context), tell)


def request(ids: np.ndarray) -> GenerationRequest:
    """A prompt to continue by OUTPUT tokens."""
    return GenerationRequest(ids.tolist(), SamplingParams(temperature=0, max_tokens=OUTPUT, ignore_eos=True))


def engine_alone(executor: Executor, tokenizer: Tokenizer, tokens: int) -> LoneRun:
    """Both prompts by the engine alone, after a short one that does not count."""
    draw, found = np.random.default_rng(0), []
    for length in (SHORT, tokens, SHORT):
        wanted = request(draw.integers(VOCABULARY, size=length))
        began = time.perf_counter()
        events = generate(executor, tokenizer, wanted, time.perf_counter)
        times = [time.perf_counter() for event in events if isinstance(event, NewTokens)]
        found.append(PromptTimes(times[0] - began, (times[-1] - times[0]) / (OUTPUT - 1)))
    return LoneRun(*found[1:])


async def served(address: str, tokens: int) -> LoneRun:
    """Both prompts through a server that is ready, after a short one that does not count."""
    backend = GrpcBackend(Connection(address))
    try:
        session = Session(backend, LoadSettings(tell_slos=False), VOCABULARY, LiveDisplay(), time.perf_counter)
        found = []
        for number, length in enumerate((SHORT, tokens, SHORT)):
            record = await session.alone(length, OUTPUT, number)
            assert record is not None  # nobody stops the session
            found.append(PromptTimes(ttft(record) or 0.0, tpot(record) or 0.0))
        return LoneRun(*found[1:])
    finally:
        await backend.close()


def line(what: str, before: float, after: float, server: float) -> str:
    """A figure by the engine alone and served, and their ratio; times in seconds."""
    alone = (before + after) / 2
    return (
        f"{what}: engine alone {1e3 * before:,.1f} and {1e3 * after:,.1f} ms, served {1e3 * server:,.1f} ms, "
        f"{server / alone:.2f} of it"
    )


def lines(tokens: int, before: LoneRun, after: LoneRun, server: LoneRun) -> list[str]:
    """The figures of a prompt of so many tokens, and of a short one."""
    return [
        line(
            f"prefill {tokens:6,d} tokens, lone, to the first token",
            before.long.ttft_s,
            after.long.ttft_s,
            server.long.ttft_s,
        ),
        line(f"decode 1 at {tokens:,}, a token", before.long.tpot_s, after.long.tpot_s, server.long.tpot_s),
        line(f"decode 1 at {SHORT}, a token", before.short.tpot_s, after.short.tpot_s, server.short.tpot_s),
    ]


def main() -> None:
    """Measure the engine, the server, and the engine again; print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=8192, help="of the long prompt")
    given = parser.parse_args()
    print(machine(), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder))
        executor, tokenizer = open_engine(Path(folder), given.tokens), Tokenizer.from_directory(Path(folder))
        before = engine_alone(executor, tokenizer, given.tokens)
        with OwnServer([f"--model={folder}", f"--max-context={given.tokens + SHORT}"], tell) as server:
            found = asyncio.run(served(server.address, given.tokens))
        after = engine_alone(executor, tokenizer, given.tokens)
    print("\n".join(lines(given.tokens, before, after, found)), flush=True)


def tell(text: str) -> None:
    """Print a step to standard error."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
