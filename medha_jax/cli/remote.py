"""`medha-jax generate --server`: sends the prompt to a server and loads nothing here."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from medha_jax.cli.interrupt import noted_interrupts
from medha_jax.cli.option_groups import as_flags, option_names, stated_options
from medha_jax.cli.progress import PrefillProgress
from medha_jax.config import PRIORITIES, ConfigError, setting
from medha_jax.plan import InvalidRequestError, SamplingParams

if TYPE_CHECKING:
    from medha_jax.client import Answer, Connection, ServerError


@dataclass(frozen=True)
class RemoteOptions:
    """The server that generates instead of this process."""

    server: str | None = setting(None, "Send the prompt to `medha-jax serve`.", metavar="HOST:PORT")
    auth_token_file: Path | None = setting(None, "Bearer token: the last word of its first line.")
    server_ca: Path | None = setting(None, "Authority of the server's certificate (PEM); TLS.")
    timeout: float | None = setting(
        None, "Give up after this; the server is told. inf: never.", at_least=0, at_most=math.inf, metavar="SECONDS"
    )
    priority: int | None = setting(
        None,
        "Class of the request; a lower one goes first.",
        at_least=PRIORITIES[0],
        at_most=PRIORITIES[-1],
    )


def check_options(context: typer.Context, server: str | None) -> None:
    """Check that every given option has an effect.

    Raises:
        typer.BadParameter: an option of the local runtime beside `--server`, or the reverse.
    """
    remote = {one.name for one in fields(RemoteOptions)}
    prompt = {"prompt", "prompt_file", "prompt_ids", "add_special_tokens"}
    passed_on = remote | prompt | {"json", "n", *option_names(SamplingParams)}
    given = stated_options(context)
    wrong = given & (remote - {"server"}) if server is None else given - passed_on
    if wrong:
        names = as_flags(sorted(wrong))
        raise typer.BadParameter(
            f"{names} without --server" if server is None else f"{names} beside --server, which has its own"
        )


def connection(server: str, token_file: Path | None, ca: Path | None) -> Connection:
    """How to reach the server.

    Raises:
        ConfigError: the token file cannot be read or is empty.
    """
    from medha_jax.client import Connection

    token = None
    if token_file is not None:
        try:
            lines = [line for line in token_file.read_text(encoding="ascii").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot read a token from {token_file}: {error}") from None
        if not lines:
            raise ConfigError(f"{token_file} holds no token")
        *names, token = lines[0].split()
        if len(names) > 1:
            raise ConfigError(
                f"{token_file}: its first line has {len(names) + 1} words; give a token, or a name and a token"
            )
    return Connection(server, ca=ca, token=token)


@contextmanager
def _shown(kind: type[ServerError]) -> Iterator[None]:
    """Let a server's refusal say what to do: other values, or when to come again."""
    try:
        yield
    except kind as error:
        if error.code in ("INVALID_ARGUMENT", "OUT_OF_RANGE"):
            raise InvalidRequestError(str(error)) from None
        if error.retry_s is not None:
            raise kind(error.code, f"{error.message}; come again in {error.retry_s:g} s", error.retry_s) from None
        raise


def stream(
    connected: Connection,
    prompt: str | Sequence[int],
    given: Mapping[str, Any],
    timeout: float | None,
    n: int,
    show_text: bool,
) -> Answer:
    """Generate `n` outputs; with `show_text`, each piece of a lone text goes to stdout as it comes.

    Raises:
        InvalidRequestError: a value is out of its range, here or in the server.
        ServerError: the server refused the request or ended it.
    """
    from medha_jax.client import AnswerBuilder, Client, Delta, PromptProgress, ServerError

    sampling = {one.name for one in fields(SamplingParams)}
    stated = {name: value for name, value in given.items() if value is not None and name in sampling}
    SamplingParams(**stated)  # refused as without --server
    if biases := stated.get("logit_bias"):  # pairs here, where two of one token could be seen
        given = {**given, "logit_bias": dict(biases)}
    building = AnswerBuilder()
    with (
        _shown(ServerError),
        Client(connected) as client,
        noted_interrupts() as check,
        PrefillProgress(0, time.perf_counter) as bar,
    ):
        for event in client.generate(prompt, timeout=timeout, progress=True, n=n, **given):
            check()
            building.add(event)
            match event:
                case PromptProgress(done_tokens, prompt_tokens):
                    bar.total = prompt_tokens
                    bar.update(done_tokens)
                case Delta():
                    bar.close()
                    if show_text and event.text and n == 1:
                        sys.stdout.write(event.text)
                        sys.stdout.flush()
        return building.answer()
