"""Options that the commands of `medha-jax bench` share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from medha_jax.cli.option_groups import refusal
from medha_jax.cli.prompt import whole_number
from medha_jax.cli.remote import RemoteOptions
from medha_jax.cli.runtime_options import LayoutOptions, RuntimeOptions
from medha_jax.config import RuntimeConfig, SchedulerConfig, same_setting, setting

if TYPE_CHECKING:
    from medha_jax.workload import Slos, WorkloadConfig

_SERVER, _OWN, _WORKLOAD = "The server", "A server of one's own (without --server and --url)", "What is asked"
_TIMES, _CLIENT, _SLO, _OUT = "When it is asked", "The client", "Objectives", "Results"
# as in medha_jax.workload, which needs NumPy and so is not imported for --help
SOURCES = "sharegpt-8k|medha-0pct|medha-1pct|medha-5pct|azure-code-2023|azure-conv-2023|mooncake-conv|random|prompts|…"
PROCESSES = ("poisson", "gamma", "constant", "ramp", "trace")
LENGTH_AWARE = "length-aware"


@dataclass(frozen=True)
class ServerOptions:
    """Which server is measured, and how to reach it."""

    server: str | None = setting(None, "A medha-jax server.", metavar="HOST:PORT", panel=_SERVER)
    url: str | None = setting(None, "A server with the OpenAI API.", metavar="URL", panel=_SERVER)
    backend: str | None = setting(
        None, "How it is spoken to. Default: openai with --url, else grpc.", choices=("grpc", "openai"), panel=_SERVER
    )
    served_model: str | None = setting(
        None, "To ask for. Default: the first that /v1/models lists.", metavar="NAME", panel=_SERVER
    )
    auth_token_file: Path | None = same_setting(RemoteOptions, "auth_token_file", panel=_SERVER)
    server_ca: Path | None = setting(None, "Authority of its certificate (PEM), over gRPC; TLS.", panel=_SERVER)
    model: str = same_setting(RuntimeOptions, "model", panel=_OWN)
    mesh: str = same_setting(LayoutOptions, "mesh")
    tpot_target_ms: float = setting(50.0, "As serve's option.", at_least=1, panel=_OWN)
    prefix_cache: bool = setting(True, "As serve's option.", panel=_OWN)
    max_context: int | None = same_setting(
        RuntimeConfig, "max_context", help="In tokens. Default: the longest request.", panel=_OWN
    )
    slots: int | None = same_setting(RuntimeConfig, "slots", default=None, panel=_OWN)
    pool_tokens: int | None = same_setting(
        RuntimeConfig, "pool_tokens", help="KV tokens of each group. Default: from the requests.", panel=_OWN
    )

    def __post_init__(self) -> None:
        if self.server is not None and self.url is not None:
            raise typer.BadParameter("--server and --url given; give at most one")
        if self.backend == "openai" and self.url is None:
            raise typer.BadParameter("--backend openai without --url, which says where that server is")
        if self.backend == "grpc" and self.url is not None:
            raise typer.BadParameter("--url is for --backend openai; give --server HOST:PORT for grpc")
        if self.served_model is not None and self.url is None:
            raise typer.BadParameter("--served-model without --url")
        if self.server_ca is not None and self.server is None:
            raise typer.BadParameter("--server-ca without --server")
        if self.auth_token_file is not None and not self.remote:
            raise typer.BadParameter("--auth-token-file without --server or --url")

    @property
    def remote(self) -> bool:
        """Whether the server runs already."""
        return self.server is not None or self.url is not None


@dataclass(frozen=True)
class PolicyOptions:
    """Scheduling of a server that the benchmark starts."""

    policy: str = same_setting(SchedulerConfig, "policy", panel=_OWN)
    chunk_preemption: bool = same_setting(SchedulerConfig, "chunk_preemption", panel=_OWN)

    @property
    def words(self) -> str:
        """Name of its row."""
        return self.policy if self.chunk_preemption else f"{self.policy}, whole prompts"


@dataclass(frozen=True)
class ClientOptions:
    """How requests are sent, except when."""

    max_concurrency: int | None = setting(None, "Requests at once; more wait in the client.", at_least=1, panel=_CLIENT)
    ignore_eos: bool = setting(True, "Generate every token that is asked for.", panel=_CLIENT)
    temperature: float = setting(0.0, "0 always takes the likeliest token.", at_least=0, at_most=100, panel=_CLIENT)
    timeout: float | None = setting(
        None, "Seconds after which a request has failed. Default: any.", at_least=0.001, metavar="S", panel=_CLIENT
    )
    vocabulary: int | None = setting(
        None, "Token ids of prompts are below it. Default: the server's; 1000 with --url.", at_least=1, panel=_CLIENT
    )
    slo_ttft_ms: float | None = setting(None, "To the first token.", at_least=0.001, metavar="MS", panel=_SLO)
    slo_tpot_ms: float | None = setting(None, "Per token after it.", at_least=0.001, metavar="MS", panel=_SLO)
    deadline: str | None = setting(
        None,
        "First token within max(1.5 x its prefill alone, 0.5 s); a few are measured before.",
        choices=(LENGTH_AWARE,),
        panel=_SLO,
    )
    tell_slos: bool = setting(True, "Tell the server's scheduler of them (grpc).", panel=_SLO)

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
    """The requests."""

    workload: str = setting(
        "sharegpt-8k",
        "A preset; random; or the kind of --file: prompts, mooncake, azure.",
        metavar=SOURCES,
        panel=_WORKLOAD,
    )
    file: Path | None = setting(
        None, "Prompts (JSON lines) or a trace (Mooncake's JSON lines, Azure's CSV).", panel=_WORKLOAD
    )
    prompt_tokens: str = setting("1024", "Of random prompts.", metavar="N|N-N", panel=_WORKLOAD)
    output_tokens: str = setting(
        "128", "Of random requests, and of prompts that name none.", metavar="N|N-N", panel=_WORKLOAD
    )
    scale: str = setting("1", "Factor of all lengths, as in 1/32.", metavar="X|1/N", panel=_WORKLOAD)
    output_scale: str | None = setting(
        None, "Of output lengths, if it is another one.", metavar="X|1/N", panel=_WORKLOAD
    )
    seed: int = setting(0, "Of lengths, arrivals and content.", at_least=0, panel=_WORKLOAD)
    warmup: int = setting(0, "Requests before the measured ones.", at_least=0, panel=_WORKLOAD)
    probe: float = setting(
        0.0, "Short requests a second beside them, in even steps.", at_least=0, metavar="RATE", panel=_WORKLOAD
    )
    cancel_rate: float = setting(
        0.0, "Share of requests that the client gives up.", at_least=0, at_most=1, metavar="SHARE", panel=_WORKLOAD
    )
    priorities: str | None = setting(
        None, "Classes of shares of the requests; others have 0.", metavar="CLASS:SHARE,…", panel=_WORKLOAD
    )
    num_requests: int | None = setting(None, "Default: 100 without --duration.", at_least=1, panel=_TIMES)
    duration: float | None = setting(
        None, "Seconds in which requests are due.", at_least=0.001, metavar="S", panel=_TIMES
    )

    def config(self, times: ArrivalOptions) -> WorkloadConfig:
        """The workload.

        Raises:
            WorkloadError: a value is out of its range.
            typer.BadParameter: a value is malformed.
        """
        from medha_jax.workload import WorkloadConfig

        endless = self.duration is None and times.arrivals != "trace"
        return WorkloadConfig(
            source=self.workload,
            path=None if self.file is None else str(self.file),
            prompt_range=_token_range("--prompt-tokens", self.prompt_tokens),
            output_range=_token_range("--output-tokens", self.output_tokens),
            scale=_factor("--scale", self.scale),
            output_scale=None if self.output_scale is None else _factor("--output-scale", self.output_scale),
            num_requests=100 if self.num_requests is None and endless else self.num_requests,
            duration=self.duration,
            seed=self.seed,
            warmup=self.warmup,
            probe_rate=self.probe,
            cancel_rate=self.cancel_rate,
            priorities=shares("--priorities", self.priorities),
            process=times.arrivals,
            rate=times.rate,
            rate_end=times.rate_end,
            burstiness=times.burstiness,
            speed=times.speed,
        )


@dataclass(frozen=True)
class ArrivalOptions:
    """When requests arrive, and how often all of it is repeated."""

    arrivals: str = setting("poisson", "How requests arrive.", choices=PROCESSES, panel=_TIMES)
    rate: float = setting(1.0, "Requests a second; inf sends all at once.", panel=_TIMES)
    rate_end: float | None = setting(None, "At the end of a ramp.", panel=_TIMES)
    burstiness: float | None = setting(
        None, "Shape of gamma's gaps: below 1 in bursts, above 1 more regular.", panel=_TIMES
    )
    speed: float = setting(1.0, "How much faster a trace's times go by.", panel=_TIMES)
    repeat: int = setting(
        1,
        "Runs, with the next seeds; tables then have means and 95 % intervals.",
        at_least=1,
        at_most=100,
        panel=_WORKLOAD,
    )


@dataclass(frozen=True)
class OutputOptions:
    """Where results go."""

    out: Path | None = setting(
        None, "Write summary.json, requests.jsonl, report.html and plots there.", metavar="DIR", panel=_OUT
    )
    json: bool = setting(False, "Print one JSON object instead of tables.", switch=True, panel=_OUT)


def _factor(option: str, text: str) -> float:
    """A factor above 0, from a number or a fraction such as 1/32."""
    above, slash, below = text.partition("/")
    try:
        value = float(above) / float(below) if slash else float(above)
    except (ValueError, ZeroDivisionError):
        value = math.nan
    if not 0 < value < math.inf:
        raise refusal(option, f"{text!r} is no factor; give one above 0, as in 0.5 or 1/32")
    return value


def shares(option: str, text: str | None) -> tuple[tuple[int, float], ...]:
    """Classes and their shares, from CLASS:SHARE parts; none from None.

    Raises:
        typer.BadParameter: it is malformed.
    """
    if text is None:
        return ()
    try:
        parts = [part.split(":") for part in text.split(",")]
        return tuple((int(priority), float(share)) for priority, share in parts)
    except ValueError:
        raise refusal(option, f"{text!r} has no classes and shares; give them as in -1:0.1,2:0.5") from None


def _token_range(option: str, text: str) -> tuple[int, int]:
    """Least and most tokens, from one number or two."""
    found = [number for part in text.split("-") if (number := whole_number(part.replace("_", ""))) is not None]
    if not 1 <= len(found) == text.count("-") + 1 <= 2:
        raise refusal(option, f"{text!r} is no number of tokens; give one, or two as in 100-2000")
    return found[0], found[-1]
