"""Our server and vLLM's CPU build on the same model, requests and seed, in turn on this machine, side by side.

    python -m benchmarks.peers --out results.json

All of it takes more than half an hour, of which the other server's long prompts take the most. Nothing else may run
meanwhile; it warns if something did. `--only ours --out ours.json` and `--only theirs --out theirs.json` can run at
different times, and `--join ours.json theirs.json` puts them into one table.

One client in this process sends everything, to our server over gRPC and to the other one over HTTP. Ours is `serve`
with its defaults; of both, only model, port and context are stated, for ours that it compiles before it serves, and for
vLLM what makes it use all cores.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn, get_args

from benchmarks.peers import vllm
from benchmarks.peers.busy import others_for
from benchmarks.peers.figures import Measured, NotComparableError, Side, check_comparable, read, write
from benchmarks.peers.loads import PATIENCE_S, ROWS, Asked, PeerLoads
from benchmarks.peers.origin import machine, matmul_gflops, model_facts, origin
from benchmarks.peers.side_by_side import page
from medha_jax import __version__
from medha_jax.bench.backend import Backend, BackendError
from medha_jax.bench.load_generator import LoadSettings
from medha_jax.bench.own_server import SERVE, OwnServer, ServerStartError
from medha_jax.bench.session import Session
from medha_jax.cli.bench_live import LiveDisplay
from medha_jax.client import Connection

CONTEXT = 65_536
FOLDER = Path(tempfile.gettempdir()) / "medha-jax-peers"
QUIET_S = 3.0  # that the machine is watched before a server starts
SIDES: tuple[Side, ...] = get_args(Side)
DTYPES = ("float32", "bfloat16")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, or join what was measured; print the table. Returns the exit code: 1 if something failed."""
    given = parsed(arguments)
    try:
        if given.join:
            measured = [one for path in given.join for one in read(path)]
        else:
            signal.signal(signal.SIGTERM, _leave)
            measured = measure_all(given)
        check_comparable(measured)
    except (NotComparableError, ServerStartError, BackendError, OSError, subprocess.CalledProcessError) as error:
        print(f"benchmarks.peers: {error}", file=sys.stderr)
        return 2
    if given.join and given.out is not None:
        write(given.out, measured)
    print(page(measured))
    return int(any(one.problems for one in measured))


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.peers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=SIDES, help="measure one of the servers")
    parser.add_argument("--rows", type=rows, default=ROWS, metavar="NAME,…", help=f"some of {','.join(ROWS)}")
    parser.add_argument("--long-tokens", type=int, default=32_768, metavar="N", help="of the longest prompt")
    parser.add_argument("--repeat", type=int, default=1, metavar="N", help="start and measure both servers N times")
    parser.add_argument("--seed", type=int, default=0, help="of the prompts' token ids")
    parser.add_argument("--dtype", choices=DTYPES, default=DTYPES[0], help="of the default model's weights")
    parser.add_argument("--model", type=Path, metavar="DIR", help="default: the 26M model of benchmarks.model")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="of models, logs and vLLM (default: %(default)s)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the results as JSON, after each server")
    parser.add_argument("--join", type=Path, nargs="+", metavar="FILE", help="print stored results, measure nothing")
    given = parser.parse_args(arguments)
    if not 2 <= given.long_tokens <= CONTEXT - 64:
        parser.error(f"--long-tokens is {given.long_tokens}; allowed are 2 to {CONTEXT - 64}")
    if not (0 <= given.seed < 10**6 and given.repeat >= 1):
        parser.error("--seed is 0 to 999,999, and --repeat at least 1")
    return given


def rows(text: str) -> tuple[str, ...]:
    """Names of rows, in the order in which they are measured.

    Raises:
        argparse.ArgumentTypeError: there is no such row.
    """
    names = text.split(",")
    wrong = sorted(set(names) - set(ROWS))
    if wrong:
        raise argparse.ArgumentTypeError(f"there is no row {', '.join(wrong)}; there are {', '.join(ROWS)}")
    return tuple(name for name in ROWS if name in names)


def measure_all(given: argparse.Namespace) -> list[Measured]:
    """Measure the servers in turn; what is done is written after each one."""
    given.folder.mkdir(parents=True, exist_ok=True)
    # our server keeps compiled programs and the times of ticks here, apart from those of other uses of this machine
    os.environ.setdefault("MEDHA_JAX_CACHE", str(given.folder / "cache"))
    sides = SIDES if given.only is None else (given.only,)
    if "theirs" in sides:
        vllm.install(given.folder / "vllm", tell)
    model = given.model or written_model(given.folder / f"26m-{given.dtype}", given.dtype)
    measured: list[Measured] = []
    for _ in range(given.repeat):
        for side in sides:
            measured.append(measure(side, model, given))
            if given.out is not None:
                write(given.out, measured)
    return measured


def measure(side: Side, model: Path, given: argparse.Namespace) -> Measured:
    """Start a server, send it the loads, stop it."""
    facts, started = model_facts(model), datetime.now(UTC)
    source = origin(vllm.versions(given.folder / "vllm") if side == "theirs" else {}, started)
    asked = Asked(given.rows, given.long_tokens, given.seed, facts["vocabulary"])
    others: dict[str, Any] = {}
    before = others_for(QUIET_S)
    if before is not None:
        others["before"] = vars(before)
        if before.warning is not None:
            tell(f"WARNING: the machine is not idle: {before.warning}")
    speeds = [matmul_gflops()]
    log = given.folder / f"{side}.log"
    tell(f"starting the server: {side}; its log is {log}")
    with (
        log.open("w", encoding="utf-8") as lines,
        server(side, model, facts["dtype"], given.folder, writer(lines)) as own,
    ):
        tell(f"it is ready after {own.start_s:.0f} s")
        loads = asyncio.run(sent(side, own.address, asked))
    speeds.append(matmul_gflops())
    return Measured(
        side=side,
        name=f"vLLM {source['versions'].get('vllm')}" if side == "theirs" else f"medha-jax {__version__}",
        asked={**facts, "context": CONTEXT, "long_tokens": asked.long_tokens, "seed": asked.seed},
        machine=machine(),
        origin={
            **source,
            "threads": machine()["cores"],
            "start_s": own.start_s,
            "matmul_gflops": speeds,
        },
        figures=tuple(loads.figures),
        others=others | loads.others,
        problems=tuple(loads.problems),
    )


def server(side: Side, model: Path, dtype: str, folder: Path, note: Callable[[str], None]) -> OwnServer:
    """A server that is ready; `note` takes the lines of its start."""
    if side == "ours":
        return OwnServer([f"--model={model}", f"--max-context={CONTEXT}"], note, (*SERVE, "--port=0"))
    program = sys.executable, "-m", "benchmarks.peers.vllm"
    stated = f"--folder={folder / 'vllm'}", f"--model={model}", f"--dtype={dtype}", f"--context={CONTEXT}"
    return OwnServer(list(stated), note, program)


async def sent(side: Side, address: str, asked: Asked) -> PeerLoads:
    """Send the loads to a server that is ready."""
    backend: Backend
    if side == "ours":
        from medha_jax.bench.over_grpc import GrpcBackend

        backend = GrpcBackend(Connection(address))
    else:
        from medha_jax.bench.over_http import OpenAiBackend

        backend = OpenAiBackend(f"http://{address}")
    try:
        await backend.facts()
        plain = LoadSettings(tell_slos=False, timeout_s=PATIENCE_S)
        session = Session(backend, plain, asked.vocabulary, LiveDisplay(), time.perf_counter)
        loads = PeerLoads(session, asked, lambda line: tell(f"{side}: {line}"))
        await loads.run()
        return loads
    finally:
        await backend.close()


def written_model(directory: Path, dtype: str) -> Path:
    """The 26M model in a directory, written there unless it is complete; by a process of its own, so no JAX is here."""
    if not (directory / "tokenizer_config.json").exists():
        tell(f"writing the 26M model to {directory}")
        words = f"--write={directory}", f"--dtype={dtype}"
        subprocess.run([sys.executable, "-m", "benchmarks.model", *words], check=True)
    return directory


def tell(line: str) -> None:
    """Print a step to standard error, with the time."""
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


def writer(file: Any) -> Callable[[str], None]:
    """Writes lines to a file."""

    def note(line: str) -> None:
        with contextlib.suppress(ValueError):  # closed
            file.write(f"{line}\n")
            file.flush()

    return note


def _leave(number: int, frame: object) -> NoReturn:
    raise SystemExit(143)


if __name__ == "__main__":
    raise SystemExit(main())
