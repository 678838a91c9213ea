"""The server of a benchmark: one that runs already, or one that the benchmark starts and stops."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import FrameType
from typing import TYPE_CHECKING, Any

import typer

from medha_jax.cli.interrupt import handled, leave
from medha_jax.cli.opening import tell
from medha_jax.cli.option_groups import as_flag, as_flags, stated_options
from medha_jax.cli.remote import connection
from medha_jax.config import load_mesh

if TYPE_CHECKING:
    from medha_jax.bench.backend import Backend
    from medha_jax.cli.bench_options import ClientOptions, PolicyOptions, ServerOptions
    from medha_jax.workload import WorkloadRequest

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
GUESSED_VOCABULARY = 1000  # ids that the vocabulary of any language model has
OWN = ("model", "mesh", "tpot_target_ms", "prefix_cache", "max_context", "slots", "pool_tokens")
POLICY = ("policy", "chunk_preemption", "policies")


@dataclass(frozen=True)
class Target:
    """A server that is ready.

    Args:
        policy: of a server that the benchmark started; for another server it is unknown.
        address: HOST:PORT or URL.
        start_s: seconds until it was ready, None if it ran already.
    """

    options: ServerOptions
    policy: PolicyOptions
    address: str
    start_s: float | None = None

    @property
    def name(self) -> str:
        """Heading of its column."""
        return self.address if self.options.remote else self.policy.words

    @property
    def words(self) -> dict[str, Any]:
        """What results say about it."""
        if self.options.remote:
            return {"address": self.address}
        own = {name: getattr(self.options, name) for name in OWN}
        return own | {"policy": self.policy.words, "start_s": self.start_s}


def check_own(context: typer.Context, options: ServerOptions) -> None:
    """Check that no option of a server to start is stated for a running one.

    Raises:
        typer.BadParameter: one is.
    """
    if not options.remote:
        return
    stated = stated_options(context)
    wrong = [name for name in (*OWN, *POLICY) if name in stated]
    if wrong:
        raise typer.BadParameter(f"{as_flags(wrong)} beside --server or --url, which has its own")


@contextmanager
def opened(options: ServerOptions, policy: PolicyOptions, requests: Iterable[WorkloadRequest]) -> Iterator[Target]:
    """A server that is ready: the running one, or a new one with this policy, stopped after the block.

    A signal that ends this program ends the new one, too.

    Raises:
        ServerStartError: the new one did not start.
    """
    if options.remote:
        yield Target(options, policy, options.server or options.url or "")
        return
    from medha_jax.bench.own_server import OwnServer

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    sized = fitted(options, requests)
    given = arguments(sized, policy)
    with handled(STOPPING, interrupt):
        tell(f"$ medha-jax serve {' '.join(given)}")
        with OwnServer(given, tell) as server:
            tell(f"the server is ready after {server.start_s:.0f} s")
            yield Target(sized, policy, server.address, server.start_s)
            if not server.alive:
                tell(f"the server has ended by itself: {server.last_line}")


def fitted(options: ServerOptions, requests: Iterable[WorkloadRequest]) -> ServerOptions:
    """The options with a context and a pool for these requests, unless stated."""
    from medha_jax.bench.own_server import needs_of

    layout = load_mesh(options.mesh)
    needs = needs_of(requests, options.slots or layout.usual_slots, layout.page_size)
    if needs is None:
        return options
    context = options.max_context or needs.context
    return replace(options, max_context=context, pool_tokens=options.pool_tokens or max(context, needs.pool))


def flags(**settings: object) -> list[str]:
    """Settings as options of a command; None is left out, and True, which is the default of all that can be off."""
    given = []
    for name, value in settings.items():
        if value is False:
            given.append(as_flag(f"no_{name}"))
        elif value is not None and value is not True:
            given.append(f"{as_flag(name)}={value:g}" if isinstance(value, float) else f"{as_flag(name)}={value}")
    return given


def arguments(options: ServerOptions, policy: PolicyOptions) -> list[str]:
    """Arguments of `medha-jax serve`."""
    return flags(
        model=options.model,
        mesh=options.mesh,
        policy=policy.policy,
        slots=options.slots,
        tpot_target_ms=options.tpot_target_ms,
        max_context=options.max_context,
        pool_tokens=options.pool_tokens,
        prefix_cache=options.prefix_cache,
        chunk_preemption=policy.chunk_preemption,
    )


def backend_of(target: Target, client: ClientOptions) -> Backend:
    """The connection to a server; call it in a running event loop.

    Raises:
        BackendError: the address is malformed.
    """
    options = target.options
    reached = connection(target.address, options.auth_token_file, options.server_ca)
    if options.url is None:
        from medha_jax.bench.over_grpc import GrpcBackend

        return GrpcBackend(reached, ignore_eos=client.ignore_eos, temperature=client.temperature)
    from medha_jax.bench.over_http import OpenAiBackend

    return OpenAiBackend(
        options.url,
        model=options.served_model,
        token=reached.token,
        ignore_eos=client.ignore_eos,
        temperature=client.temperature,
    )


@contextmanager
def stopped_by_signals(stop: Callable[[], None]) -> Iterator[None]:
    """In the block, within a running event loop, Ctrl-C calls `stop`, and a second one ends the process at once."""
    loop = asyncio.get_running_loop()
    noted = False

    def note(number: int) -> None:
        nonlocal noted
        if noted:
            leave(number, None)
        noted = True
        tell("stopping; what was measured so far is kept")
        stop()

    with handled(STOPPING, None) as numbers:
        for number in numbers:
            loop.add_signal_handler(number, note, number)
        try:
            yield
        finally:
            for number in numbers:
                loop.remove_signal_handler(number)
