"""Load generators of other projects against a server's HTTP: what each reports, beside what the server itself counted.

    python -m benchmarks.load_generators --requests 200 --tick-ms 50
    python -m benchmarks.load_generators --served
    python -m benchmarks.load_generators --chat

Each is its project's unmodified command, which must be on the PATH: `vllm` (of vLLM), `guidellm`, `aiperf`. The first
form uses a simulated mesh, the others `medha-jax serve` with the bundled model. The server's own figures are those of
its access log. All times are in ms.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from datetime import datetime
from pathlib import Path

import numpy as np

from benchmarks.server import STOP_SECONDS, free_port
from medha_jax.config import BUNDLED_MODEL

# of the bundled model, which has none of its own
CHAT_TEMPLATE = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}assistant:"
CLOSE = 0.05  # relative difference of figures that agree
SECONDS = 600  # that a command may take
RESULT = "result.json"


@dataclass(frozen=True)
class Load:
    """What a generator is asked to send: so many requests, of which so many run at a time."""

    requests: int = 200
    streams: int = 8
    prompt_tokens: int = 128
    output_tokens: int = 64
    chat: bool = False


@dataclass(frozen=True)
class Served:
    """A server over HTTP: its address, the model's name, the folder of its tokenizer, and its access log (JSON)."""

    url: str
    model: str
    tokenizer: Path
    log: Path


@dataclass(frozen=True)
class Figures:
    """What a run showed. Times are means in ms, but for the percentiles."""

    requests: int
    prompt_tokens: int
    output_tokens: int
    requests_per_s: float
    output_tokens_per_s: float
    ttft: float
    ttft_p50: float
    ttft_p99: float
    tpot: float
    e2e: float
    e2e_p99: float


@dataclass(frozen=True)
class Generator:
    """One load generator.

    Args:
        command: its name on the PATH.
        arguments: of the command, for a load, a server and the folder for its results.
        read: makes figures of that folder.
        environment: what it needs there.
    """

    command: str
    arguments: Callable[[Load, Served, Path], list[str]]
    read: Callable[[Path], Figures]
    environment: Mapping[str, str]

    def run(self, load: Load, served: Served, folder: Path) -> Figures:
        """Run the command; its output is in `folder`, too.

        Raises:
            RuntimeError: it failed.
        """
        command = [self.command, *self.arguments(load, served, folder)]
        with (folder / "output.txt").open("w") as output:
            done = subprocess.run(
                command,
                env=os.environ | self.environment,
                cwd=folder,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=SECONDS,
                check=False,
            )
        if done.returncode:
            raise RuntimeError(f"{self.command}: exit code {done.returncode}\n{(folder / 'output.txt').read_text()}")
        return self.read(folder)


def _vllm(load: Load, served: Served, folder: Path) -> list[str]:
    backend, path = ("openai-chat", "/v1/chat/completions") if load.chat else ("openai", "/v1/completions")
    given = {
        "backend": backend,
        "endpoint": path,
        "base-url": served.url,
        "model": served.model,
        "tokenizer": served.tokenizer,
        "dataset-name": "random",
        "random-input-len": load.prompt_tokens,
        "random-output-len": load.output_tokens,
        "num-prompts": load.requests,
        "max-concurrency": load.streams,
        "percentile-metrics": "ttft,tpot,itl,e2el",
        "result-dir": folder,
        "result-filename": RESULT,
    }
    return ["bench", "serve", "--ignore-eos", "--disable-tqdm", "--save-result", *_options(given)]


def _of_vllm(folder: Path) -> Figures:
    said = json.loads((folder / RESULT).read_text())
    return Figures(
        said["completed"],
        said["total_input_tokens"],
        said["total_output_tokens"],
        said["request_throughput"],
        said["output_throughput"],
        said["mean_ttft_ms"],
        said["median_ttft_ms"],
        said["p99_ttft_ms"],
        said["mean_tpot_ms"],
        said["mean_e2el_ms"],
        said["p99_e2el_ms"],
    )


def _guidellm(load: Load, served: Served, folder: Path) -> list[str]:
    path = "/v1/chat/completions" if load.chat else "/v1/completions"
    given = {
        "backend": f"kind=openai_http,target={served.url},model={served.model},request_format={path}",
        "profile": f"kind=concurrent,streams={load.streams}",
        "constraint": f"kind=max_requests,count={load.requests}",
        "tokenizer": f"kind=hf_auto,model={served.tokenizer}",
        "data": f"kind=synthetic_text,prompt_tokens={load.prompt_tokens},output_tokens={load.output_tokens}",
        "output": f"kind=json,path={folder / RESULT}",
    }
    return ["run", "--disable-console", *_options(given)]


def _of_guidellm(folder: Path) -> Figures:
    (run,) = json.loads((folder / RESULT).read_text())["benchmarks"]
    said = {name: values["successful"] for name, values in run["metrics"].items() if "successful" in (values or ())}
    ttft, latency = said["time_to_first_token_ms"], said["request_latency"]
    return Figures(
        run["metrics"]["request_totals"]["successful"],
        round(said["prompt_token_count"]["total_sum"]),
        round(said["output_token_count"]["total_sum"]),
        said["requests_per_second"]["mean"],
        said["output_tokens_per_second"]["mean"],
        ttft["mean"],
        ttft["median"],
        ttft["percentiles"]["p99"],
        said["inter_token_latency_ms"]["mean"],
        1000 * latency["mean"],
        1000 * latency["percentiles"]["p99"],
    )


def _aiperf(load: Load, served: Served, folder: Path) -> list[str]:
    given = {
        "model": served.model,
        "url": served.url,
        "endpoint-type": "chat" if load.chat else "completions",
        "tokenizer": served.tokenizer,
        "isl": load.prompt_tokens,
        "osl": load.output_tokens,
        "concurrency": load.streams,
        "request-count": load.requests,
        "extra-inputs": "ignore_eos:true",
        "ui": "none",
        "max-workers": 2,
        "random-seed": 1,
        "artifact-dir": folder,
    }
    # without --use-server-token-count it counts the tokens of the texts anew
    return ["profile", "--streaming", "--use-server-token-count", "--no-gpu-telemetry", *_options(given)]


def _of_aiperf(folder: Path) -> Figures:
    said = json.loads((folder / "profile_export_aiperf.json").read_text())
    ttft, latency = said["time_to_first_token"], said["request_latency"]
    return Figures(
        round(said["request_count"]["avg"]),
        round(said["total_usage_prompt_tokens"]["avg"]),
        round(said["total_usage_completion_tokens"]["avg"]),
        said["request_throughput"]["avg"],
        said["output_token_throughput"]["avg"],
        ttft["avg"],
        ttft["p50"],
        ttft["p99"],
        said["inter_token_latency"]["avg"],
        latency["avg"],
        latency["p99"],
    )


def _options(given: Mapping[str, object]) -> Iterator[str]:
    for name, value in given.items():
        yield from (f"--{name}", str(value))


# AIPerf takes no folder for its tokenizer if the hub is said to be off-line
GENERATORS = {
    "vllm bench serve": Generator("vllm", _vllm, _of_vllm, {"HF_HUB_OFFLINE": "1"}),
    "guidellm": Generator(
        "guidellm", _guidellm, _of_guidellm, {"HF_HUB_OFFLINE": "1", "GUIDELLM__MAX_WORKER_PROCESSES": "1"}
    ),
    "AIPerf": Generator("aiperf", _aiperf, _of_aiperf, {}),
}


def own_figures(lines: Iterable[str]) -> Figures:
    """What a server's access log says of a run: from the first request's coming to the last one's end."""
    records = [json.loads(line) for line in lines if line.startswith("{")]
    records = [one for one in records if one["method"] in ("Completions", "ChatCompletions") and one["code"] == "OK"]
    ends = [1000 * datetime.fromisoformat(one["time"]).timestamp() for one in records]
    latencies = [one["e2e_ms"] for one in records]
    seconds = (max(ends) - min(end - took for end, took in zip(ends, latencies, strict=True))) / 1000
    ttfts = [one["ttft_ms"] for one in records]
    outputs = [one["output_tokens"] for one in records]
    tpots = [(one["e2e_ms"] - one["ttft_ms"]) / max(1, one["output_tokens"] - 1) for one in records]
    return Figures(
        len(records),
        sum(one["prompt_tokens"] for one in records),
        sum(outputs),
        len(records) / seconds,
        sum(outputs) / seconds,
        statistics.fmean(ttfts),
        statistics.median(ttfts),
        float(np.percentile(ttfts, 99)),
        statistics.fmean(tpots),
        statistics.fmean(latencies),
        float(np.percentile(latencies, 99)),
    )


def chat_model(folder: Path) -> Path:
    """The bundled model with a chat template, in a new directory in `folder`."""
    directory = folder / BUNDLED_MODEL.name
    shutil.copytree(BUNDLED_MODEL, directory)
    (directory / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    return directory


@contextmanager
def serving(tick_ms: float, model: Path | None) -> Iterator[Served]:
    """A server in a process of its own: a simulated one, or `medha-jax serve` with a model."""
    port = free_port()
    command = ["benchmarks.simulated_server", "--tick-ms", str(tick_ms)]
    if model is not None:
        command = ["medha_jax.cli", "serve", "--port", "0", "--model", str(model), "--compile-all-first"]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "access.log"
        with (
            log.open("w") as errors,
            subprocess.Popen(
                [sys.executable, "-m", *command, "--http-port", str(port), "--access-log", "json"],
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            ) as server,
        ):
            assert server.stdout is not None
            if not server.stdout.readline().startswith("serving"):
                raise RuntimeError(log.read_text())
            name = "simulated" if model is None else model.name
            yield Served(f"http://127.0.0.1:{port}", name, model or BUNDLED_MODEL, log)
            server.send_signal(signal.SIGTERM)
            server.wait(STOP_SECONDS)


def table(reported: Figures, own: Figures) -> Iterator[str]:
    """Lines of Markdown: each figure as reported, as the server has it, and by how much the first is more."""
    yield "| | reported | server | difference |"
    yield "|---|---|---|---|"
    for field in fields(Figures):
        said, counted = getattr(reported, field.name), getattr(own, field.name)
        more = said / counted - 1 if counted else float(said != counted)
        mark = "" if abs(more) <= CLOSE else " (!)"
        yield f"| {field.name} | {said:,.5g} | {counted:,.5g} | {100 * more:+.1f} %{mark} |"


def main() -> None:
    """Run those that are installed, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=Load.requests)
    parser.add_argument("--streams", type=int, default=Load.streams)
    parser.add_argument("--prompt-tokens", type=int, default=Load.prompt_tokens)
    parser.add_argument("--output-tokens", type=int, default=Load.output_tokens)
    parser.add_argument("--served", action="store_true", help="by `medha-jax serve` with the bundled model")
    parser.add_argument("--chat", action="store_true", help="the same, over /v1/chat/completions")
    parser.add_argument("--tick-ms", type=float, default=50.0, help="of the simulated mesh")
    parser.add_argument("--only", choices=[one.command for one in GENERATORS.values()])
    given = parser.parse_args()
    load = Load(given.requests, given.streams, given.prompt_tokens, given.output_tokens, given.chat)
    for name, generator in GENERATORS.items():
        if given.only not in (None, generator.command):
            continue
        if shutil.which(generator.command) is None:
            print(f"{name}: there is no {generator.command} on the PATH")
            continue
        with tempfile.TemporaryDirectory() as made:
            folder = Path(made)
            model = chat_model(folder) if given.chat else BUNDLED_MODEL if given.served else None
            with serving(given.tick_ms, model) as served:
                reported = generator.run(load, served, folder)
                own = own_figures(served.log.read_text().splitlines())
        print(f"\n{name}, {load}", *table(reported, own), sep="\n", flush=True)


if __name__ == "__main__":
    main()
