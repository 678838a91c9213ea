"""`medha-jax generate --server`: the prompt goes to a server, nothing is loaded here."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medha_jax.cli.interrupt import noted_interrupts
from medha_jax.config import ConfigError

if TYPE_CHECKING:
    from medha_jax.client import Connection, TokenLogprob

PANEL = "From a server"
ServerOption = Annotated[
    str | None,
    typer.Option(metavar="HOST:PORT", help="Send the prompt to `medha-jax serve`.", rich_help_panel=PANEL),
]
TokenFileOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Bearer token; its first line is sent.", rich_help_panel=PANEL),
]
ServerCaOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Authority of the server's certificate (PEM); TLS.", rich_help_panel=PANEL),
]
TimeoutOption = Annotated[
    float | None,
    typer.Option(min=0, metavar="SECONDS", help="Give up after this; the server is told.", rich_help_panel=PANEL),
]
# options of `generate` that mean the same to a server; any other one is refused beside --server
PASSED_ON = {
    "prompt",
    "prompt_file",
    "prompt_ids",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "logprobs",
    "max_tokens",
    "min_tokens",
    "stop",
    "stop_token_id",
    "include_stop",
    "ignore_eos",
    "json",
    "server",
    "auth_token_file",
    "server_ca",
    "timeout",
}
REMOTE = {"auth_token_file", "server_ca", "timeout"}


@dataclass(frozen=True)
class RemoteCompletion:
    """A generation that a server has finished, with the fields of `engine.Completion` that are reported."""

    token_ids: tuple[int, ...]
    text: str
    finish_reason: str
    matched: str | int | None
    prompt_tokens: int
    logprobs: tuple[TokenLogprob, ...]
    ttft_s: float
    tpot_s: float | None
    chunks: tuple[int, ...]


def check_options(context: typer.Context, server: str | None) -> None:
    """Check that no option was given that would do nothing.

    Raises:
        typer.BadParameter: an option of the local runtime beside `--server`, or the reverse.
    """
    given = {name for name in context.params if _stated(context, name)}
    wrong = given & REMOTE if server is None else given - PASSED_ON
    if wrong:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(wrong))
        raise typer.BadParameter(
            f"{names} without --server" if server is None else f"{names} beside --server, which has its own"
        )


def connection(server: str, token_file: Path | None, ca: Path | None) -> Connection:
    """How the server is reached.

    Raises:
        ConfigError: the token file cannot be read or is empty.
    """
    from medha_jax.client import Connection

    token = None
    if token_file is not None:
        try:
            lines = token_file.read_text(encoding="ascii").split()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot read a token from {token_file}: {error}") from None
        if not lines:
            raise ConfigError(f"{token_file} holds no token")
        token = lines[0]
    return Connection(server, ca=ca, token=token)


def stream(
    connected: Connection,
    prompt: str | Sequence[int],
    given: Mapping[str, Any],
    timeout: float | None,
    show_text: bool,
) -> RemoteCompletion:
    """Generate; with `show_text`, each piece of text goes to stdout as it comes.

    Raises:
        ServerError: the server refused the request or ended it.
    """
    from medha_jax.client import Client, Delta, Finished

    ids: list[int] = []
    pieces: list[str] = []
    logprobs: list[TokenLogprob] = []
    with Client(connected) as client, noted_interrupts() as check:
        for event in client.generate(prompt, timeout=timeout, **given):
            check()
            match event:
                case Delta():
                    ids += event.token_ids
                    logprobs += event.logprobs
                    pieces.append(event.text)
                    if show_text and event.text:
                        sys.stdout.write(event.text)
                        sys.stdout.flush()
                case Finished(reason, matched, usage, timings):
                    decodes = len(ids) - 1
                    return RemoteCompletion(
                        tuple(ids),
                        "".join(pieces),
                        reason,
                        matched,
                        usage.prompt_tokens,
                        tuple(logprobs),
                        timings.ttft_s,
                        timings.decode_s / decodes if decodes else None,
                        timings.chunk_tokens,
                    )
    raise RuntimeError("the server ended the stream without a last event")


def _stated(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"
