"""Structured output through a server: does every output hold, and what do masks cost?

    python -m benchmarks.structured outputs --schemas 1000
    python -m benchmarks.structured cost --rounds 12

`outputs` serves the bundled model, whose texts mean nothing, asks it for an output of each of many random JSON schemas
(`benchmarks.structured_schemas`), and validates what came. `cost` serves the 26M model (`benchmarks.model`) to 8
streams in turns: as it is, with `allowed_token_ids` that all have a text, and with a schema. Half of the ids that it
samples as it is have none, and a token with text costs server and client more, so the second is what masks are compared
with. Times are the server's own, from a stream's first token to its last one.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np

from benchmarks.measure import machine
from benchmarks.model import write_model
from benchmarks.structured_schemas import schemas
from medha_jax.bench.own_server import OwnServer
from medha_jax.client import AsyncClient, Delta, Finished, ServerError, Structured
from medha_jax.config import BUNDLED_MODEL
from medha_jax.text import Tokenizer

SEED = 0
MOST_ALLOWED = 1024  # ids that a request may name
# An output of it does not end, and has what outputs have: names, numbers, texts, choices, blanks.
ENDLESS = {
    "type": "array",
    "minItems": 10_000,
    "items": {
        "type": "object",
        "properties": {
            "id": {"type": "integer"},
            "name": {"type": "string", "maxLength": 200},
            "tags": {"type": "array", "items": {"type": "string"}},
            "kind": {"enum": ["small", "large", None]},
        },
        "required": ["id", "name", "tags", "kind"],
        "additionalProperties": False,
    },
}


def verdict(schema: str, reason: str, text: str) -> str:
    """What became of an output: "valid", "length" if it was cut, or why it is wrong."""
    if reason != "stop":
        return reason
    try:
        checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
        jsonschema.validate(json.loads(text), json.loads(schema), format_checker=checker)
    except (ValueError, jsonschema.ValidationError) as error:
        print(f"WRONG: {schema}\n{text!r}\n{error}", file=sys.stderr)
        return "wrong"
    return "valid"


async def outputs(address: str, wanted: Sequence[str], streams: int, tokens: int) -> tuple[Counter[str], int]:
    """Ask for an output of each schema; returns what became of them, and their tokens together."""
    turns, total = asyncio.Semaphore(streams), 0

    async def one(client: AsyncClient, number: int, schema: str) -> str:
        nonlocal total
        text, reason = "", ""
        settings: dict[str, Any] = dict(temperature=1.0, seed=number, max_tokens=tokens)
        try:
            async with turns:
                structured = Structured(json_schema=schema)
                async for event in client.generate(f"Number {number}:", structured=structured, **settings):
                    if isinstance(event, Delta):
                        text += event.text
                    if isinstance(event, Finished):
                        reason = event.reason
                        total += event.usage.output_tokens
        except ServerError as error:
            print(f"REFUSED: {schema}: {error}", file=sys.stderr)
            return "refused"
        return verdict(schema, reason, text)

    async with AsyncClient(address) as client:
        ends = await asyncio.gather(*(one(client, number, schema) for number, schema in enumerate(wanted)))
    return Counter(ends), total


async def token_ms(address: str, streams: int, tokens: int, more: Mapping[str, Any], seed: int) -> float:
    """Milliseconds a token, the mean of streams that begin together; `more` settings are those of the arm."""

    async def one(client: AsyncClient, number: int) -> float:
        ms = 0.0
        settings: dict[str, Any] = dict(temperature=1.0, seed=seed + number, max_tokens=tokens, **more)
        async for event in client.generate(f"Stream {number} of {streams}", **settings):
            if isinstance(event, Finished):
                assert event.usage.output_tokens == tokens, event
                ms = 1000 * event.timings.decode_s / (tokens - 1)
        return ms

    async with AsyncClient(address) as client:
        return float(np.mean(await asyncio.gather(*(one(client, number) for number in range(streams)))))


def run_outputs(options: argparse.Namespace) -> int:
    """Print what became of the outputs; returns 1 if one is wrong or was refused."""
    wanted = schemas(options.schemas, SEED)
    slots = options.streams
    server = [f"--model={BUNDLED_MODEL}", f"--slots={slots}", "--pool-tokens=32768", "--max-context=2048"]
    with OwnServer(server, _tell) as own:
        began = time.perf_counter()
        ends, tokens = asyncio.run(outputs(own.address, wanted, options.streams, options.tokens))
        seconds = time.perf_counter() - began
    print(f"{len(wanted)} schemas, {slots} streams, {tokens:,} tokens in {seconds:.1f} s: {dict(ends)}")
    return 1 if ends["wrong"] or ends["refused"] else 0


def run_cost(options: argparse.Namespace) -> int:
    """Print times per token of each arm, round by round, and how they compare."""
    tokenizer = Tokenizer.from_directory(BUNDLED_MODEL)
    with_text = [one for one in range(MOST_ALLOWED * 2) if tokenizer.has_text(one)][:MOST_ALLOWED]
    arms: dict[str, dict[str, Any]] = {
        "as it is": {"ignore_eos": True},
        "tokens with text": {"ignore_eos": True, "allowed_token_ids": with_text},
        "schema": {"structured": Structured(json_schema=ENDLESS)},
    }
    found: dict[str, list[float]] = {name: [] for name in arms}
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "26m"
        write_model(directory)
        server = [f"--model={directory}", f"--slots={options.streams}", "--pool-tokens=16384", "--max-context=2048"]
        with OwnServer(server, _tell) as own:
            for number in range(-1, options.rounds):  # the first one warms up
                for name in sorted(arms, key=lambda name: (list(arms).index(name) + number) % len(arms)):
                    took = asyncio.run(
                        token_ms(own.address, options.streams, options.tokens, arms[name], 100 * number + 100)
                    )
                    if number >= 0:
                        found[name].append(took)
                print(f"round {number}: " + ", ".join(f"{name} {ms[-1]:.3f} ms" for name, ms in found.items() if ms))
    for name, ms in found.items():
        print(f"{options.streams} streams, {name}: median {np.median(ms):.3f} ms a token")
    for name in list(arms)[:2]:
        ratio = 100 * (np.array(found["schema"]) / np.array(found[name]) - 1)
        low, median, high = np.percentile(ratio, (25, 50, 75))
        print(f"schema beside {name}, by round: {median:.1f} % more, quartiles {low:.1f} to {high:.1f} %")
    return 0


def main() -> int:
    """Run one of the two."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(required=True)
    many = kinds.add_parser("outputs")
    many.set_defaults(run=run_outputs)
    many.add_argument("--schemas", type=int, default=1000)
    many.add_argument("--streams", type=int, default=16)
    many.add_argument("--tokens", type=int, default=1024, help="most of an output")
    cost = kinds.add_parser("cost")
    cost.set_defaults(run=run_cost)
    cost.add_argument("--rounds", type=int, default=12)
    cost.add_argument("--streams", type=int, default=8)
    cost.add_argument("--tokens", type=int, default=200, help="of an output")
    options = parser.parse_args()
    print(machine())
    return int(options.run(options))


def _tell(line: str) -> None:
    print(line, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
