"""The options that the commands of `medha-jax bench` share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medha_jax.cli.mesh import MeshOption
from medha_jax.cli.simulate import DEFAULT_POLICY, Policy
from medha_jax.config import RuntimeConfig

if TYPE_CHECKING:
    from medha_jax.workload import Slos, WorkloadConfig

_SERVER, _OWN, _WORKLOAD = "The server", "A server of one's own (without --server and --url)", "What is asked"
_TIMES, _CLIENT, _SLO, _OUT = "When it is asked", "The client", "Objectives", "Results"
# as in medha_jax.workload, which is not imported for --help: it needs NumPy
SOURCES = "sharegpt-8k|medha-0pct|medha-1pct|medha-5pct|azure-code-2023|azure-conv-2023|mooncake-conv|random|prompts|…"


class BackendName(StrEnum):
    """How the server is spoken to."""

    GRPC = "grpc"
    OPENAI = "openai"


class Process(StrEnum):
    """When requests arrive."""

    POISSON = "poisson"
    GAMMA = "gamma"
    CONSTANT = "constant"
    RAMP = "ramp"
    TRACE = "trace"


class DeadlineRule(StrEnum):
    """Deadlines that follow from the request."""

    LENGTH_AWARE = "length-aware"


def _option(help: str, panel: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=panel, **more)


@dataclass(frozen=True)
class ServerOptions:
    """Which server is measured, and how it is spoken to."""

    server: Annotated[str | None, _option("A medha-jax server.", _SERVER, metavar="HOST:PORT")] = None
    url: Annotated[str | None, _option("A server with the OpenAI API.", _SERVER, metavar="URL")] = None
    backend: Annotated[
        BackendName | None, _option("How it is spoken to. Default: openai with --url, else grpc.", _SERVER)
    ] = None
    served_model: Annotated[
        str | None, _option("To ask for. Default: the first that /v1/models lists.", _SERVER, metavar="NAME")
    ] = None
    auth_token_file: Annotated[
        Path | None, _option("Bearer token; its first line is sent.", _SERVER, metavar="FILE")
    ] = None
    server_ca: Annotated[
        Path | None, _option("Authority of its certificate (PEM), over gRPC; TLS.", _SERVER, metavar="FILE")
    ] = None
    model: Annotated[
        str, _option("The bundled tiny model, or a Hugging Face model directory.", _OWN, metavar="tiny|DIR")
    ] = "tiny"
    mesh: MeshOption = "tp=1"
    tpot_target_ms: Annotated[float, _option("As serve's option.", _OWN, min=1)] = 50.0
    prefix_cache: Annotated[bool, _option("As serve's option.", _OWN)] = True
    max_context: Annotated[
        int | None, _option("In tokens. Default: the longest request.", _OWN, min=1, metavar="N")
    ] = None
    slots: Annotated[int, _option("Requests that run at once.", _OWN, min=1, metavar="N")] = RuntimeConfig.slots
    pool_tokens: Annotated[
        int | None, _option("KV tokens of each group. Default: from the requests.", _OWN, min=1, metavar="N")
    ] = None

    def __post_init__(self) -> None:
        if self.server is not None and self.url is not None:
            raise typer.BadParameter("--server and --url given; give at most one")
        if self.backend is BackendName.OPENAI and self.url is None:
            raise typer.BadParameter("--backend openai without --url, which says where that server is")
        if self.backend is BackendName.GRPC and self.url is not None:
            raise typer.BadParameter("--url is for --backend openai; give --server HOST:PORT for grpc")
        if self.served_model is not None and self.url is None:
            raise typer.BadParameter("--served-model without --url")
        if self.server_ca is not None and self.server is None:
            raise typer.BadParameter("--server-ca without --server")
        if self.auth_token_file is not None and not self.remote:
            raise typer.BadParameter("--auth-token-file without --server or --url")

    @property
    def remote(self) -> bool:
        """Whether the server is there already."""
        return self.server is not None or self.url is not None


@dataclass(frozen=True)
class PolicyOptions:
    """How one's own server schedules."""

    policy: Annotated[Policy, _option("Order of the prompts.", _OWN)] = DEFAULT_POLICY
    chunk_preemption: Annotated[
        bool, _option("Prompts take turns chunk by chunk; without, one runs to its end before the next begins.", _OWN)
    ] = True

    @property
    def words(self) -> str:
        """As a row is called."""
        return str(self.policy) if self.chunk_preemption else f"{self.policy}, whole prompts"


@dataclass(frozen=True)
class ClientOptions:
    """How requests are sent, beside when."""

    max_concurrency: Annotated[
        int | None, _option("Requests at once; more wait in the client.", _CLIENT, min=1, metavar="N")
    ] = None
    ignore_eos: Annotated[bool, _option("Generate every token that is asked for.", _CLIENT)] = True
    temperature: Annotated[float, _option("0 always takes the likeliest token.", _CLIENT, min=0, max=100)] = 0.0
    timeout: Annotated[
        float | None,
        _option("Seconds after which a request has failed. Default: any.", _CLIENT, min=0.001, metavar="S"),
    ] = None
    vocabulary: Annotated[
        int | None,
        _option(
            "Token ids of prompts are below it. Default: the server's; 1000 with --url.",
            _CLIENT,
            min=1,
            metavar="N",
        ),
    ] = None
    slo_ttft_ms: Annotated[float | None, _option("To the first token.", _SLO, min=0.001, metavar="MS")] = None
    slo_tpot_ms: Annotated[float | None, _option("Per token after it.", _SLO, min=0.001, metavar="MS")] = None
    deadline: Annotated[
        DeadlineRule | None,
        _option("First token within max(1.5 x its prefill alone, 0.5 s); a few are measured before.", _SLO),
    ] = None
    tell_slos: Annotated[bool, _option("Tell the server's scheduler of them (grpc).", _SLO)] = True

    def __post_init__(self) -> None:
        for name, value in (("timeout", self.timeout), ("temperature", self.temperature)):
            if value is not None and not math.isfinite(value):
                raise typer.BadParameter(f"--{name} is {value}; it must be finite")
        if self.deadline is not None and self.slo_ttft_ms is not None:
            raise typer.BadParameter("--deadline and --slo-ttft-ms given; give at most one")

    @property
    def slos(self) -> Slos:
        """The objectives in seconds."""
        from medha_jax.workload import Slos

        ttft, tpot = self.slo_ttft_ms, self.slo_tpot_ms
        return Slos(None if ttft is None else ttft / 1000, None if tpot is None else tpot / 1000)


@dataclass(frozen=True)
class WorkloadOptions:
    """What is asked."""

    workload: Annotated[
        str, _option("A preset; random; or the kind of --file: prompts, mooncake, azure.", _WORKLOAD, metavar=SOURCES)
    ] = "sharegpt-8k"
    file: Annotated[
        Path | None,
        _option("Prompts (JSON lines) or a trace (Mooncake's JSON lines, Azure's CSV).", _WORKLOAD, metavar="FILE"),
    ] = None
    prompt_tokens: Annotated[str, _option("Of random prompts.", _WORKLOAD, metavar="N|N-N")] = "1024"
    output_tokens: Annotated[
        str, _option("Of random requests, and of prompts that name none.", _WORKLOAD, metavar="N|N-N")
    ] = "128"
    scale: Annotated[str, _option("Factor of all lengths, as in 1/32.", _WORKLOAD, metavar="X|1/N")] = "1"
    output_scale: Annotated[
        str | None, _option("Of output lengths, if it is another one.", _WORKLOAD, metavar="X|1/N")
    ] = None
    seed: Annotated[int, _option("Of lengths, arrivals and content.", _WORKLOAD, min=0)] = 0
    warmup: Annotated[int, _option("Requests before the measured ones.", _WORKLOAD, min=0, metavar="N")] = 0
    probe: Annotated[
        float, _option("Short requests a second beside them, in even steps.", _WORKLOAD, min=0, metavar="RATE")
    ] = 0.0
    cancel_rate: Annotated[
        float, _option("Share of requests that the client gives up.", _WORKLOAD, min=0, max=1, metavar="SHARE")
    ] = 0.0
    num_requests: Annotated[int | None, _option("Default: 100 without --duration.", _TIMES, min=1, metavar="N")] = None
    duration: Annotated[float | None, _option("Seconds in which requests are due.", _TIMES, min=0.001, metavar="S")] = (
        None
    )

    def config(self, times: dict[str, Any]) -> WorkloadConfig:
        """The workload.

        Args:
            times: fields of the arrival process.

        Raises:
            WorkloadError: a value is out of its range.
            typer.BadParameter: a value has not the form that it should have.
        """
        from medha_jax.workload import WorkloadConfig

        endless = self.duration is None and times.get("process") != Process.TRACE
        return WorkloadConfig(
            source=self.workload,
            path=None if self.file is None else str(self.file),
            prompt_range=token_range("--prompt-tokens", self.prompt_tokens),
            output_range=token_range("--output-tokens", self.output_tokens),
            scale=factor("--scale", self.scale),
            output_scale=None if self.output_scale is None else factor("--output-scale", self.output_scale),
            num_requests=100 if self.num_requests is None and endless else self.num_requests,
            duration=self.duration,
            seed=self.seed,
            warmup=self.warmup,
            probe_rate=self.probe,
            cancel_rate=self.cancel_rate,
            **times,
        )


@dataclass(frozen=True)
class ArrivalOptions:
    """When requests arrive."""

    arrivals: Annotated[Process, _option("How requests arrive.", _TIMES)] = Process.POISSON
    rate: Annotated[float, _option("Requests a second; inf sends all at once.", _TIMES)] = 1.0
    rate_end: Annotated[float | None, _option("At the end of a ramp.", _TIMES)] = None
    burstiness: Annotated[
        float | None, _option("Shape of gamma's gaps: below 1 in bursts, above 1 more regular.", _TIMES)
    ] = None
    speed: Annotated[float, _option("How much faster a trace's times go by.", _TIMES)] = 1.0

    @property
    def times(self) -> dict[str, Any]:
        """As fields of `WorkloadConfig`."""
        return dict(
            process=str(self.arrivals),
            rate=self.rate,
            rate_end=self.rate_end,
            burstiness=self.burstiness,
            speed=self.speed,
        )


@dataclass(frozen=True)
class OutputOptions:
    """Where results go."""

    out: Annotated[
        Path | None,
        _option("Write summary.json, requests.jsonl, report.html and plots there.", _OUT, metavar="DIR"),
    ] = None
    json: Annotated[bool, _option("Print one JSON object instead of tables.", _OUT, "--json")] = False


def factor(option: str, text: str) -> float:
    """A factor, given as a number or as one over one.

    Raises:
        typer.BadParameter: it is neither, or not above 0.
    """
    above, slash, below = text.partition("/")
    try:
        value = float(above) / float(below) if slash else float(above)
    except (ValueError, ZeroDivisionError):
        value = math.nan
    if not 0 < value < math.inf:
        raise typer.BadParameter(
            f"{text!r} is no factor; give one above 0, as in 0.5 or 1/32", param_hint=f"'{option}'"
        )
    return value


def token_range(option: str, text: str) -> tuple[int, int]:
    """A number of tokens, or the least and the most of them.

    Raises:
        typer.BadParameter: it is neither.
    """
    parts = [part.strip().replace("_", "") for part in text.split("-")]
    if not (1 <= len(parts) <= 2 and all(part.isascii() and part.isdigit() and len(part) <= 10 for part in parts)):
        raise typer.BadParameter(
            f"{text!r} is no number of tokens; give one, or two as in 100-2000", param_hint=f"'{option}'"
        )
    return int(parts[0]), int(parts[-1])
