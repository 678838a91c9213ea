"""Both sides of the stream of plans in this process, on a real socket, without JAX's part."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

from medha_jax.net import TlsFiles
from medha_jax.protos import plans_pb2 as pb
from medha_jax.runtime.cluster.follower import Follower
from medha_jax.runtime.cluster.leader import Leader, LeaderEvents
from medha_jax.runtime.cluster.secret import MeshSecret
from medha_jax.runtime.cluster.transport import PlansLink, Stream, connect, open_stream
from tests.runtime.cluster.conftest import free_ports

HELLO = dict(version="1", digest="d")
LIMIT = 2**20
HEARTBEAT = 1.0
HELLO_SECONDS = 1.0


def end(text: str) -> None:
    """Instead of ending this process."""


def link(port: int, tls: TlsFiles | None = None, secret: MeshSecret | None = None) -> PlansLink:
    return PlansLink(f"127.0.0.1:{port}", LIMIT, HEARTBEAT, tls, secret or MeshSecret())


def lead(
    ended: list[str] | None = None,
    tls: TlsFiles | None = None,
    processes: int = 2,
    secret: MeshSecret | None = None,
    **heard: Callable[..., None],
) -> Leader:
    events = LeaderEvents(**{"end": end if ended is None else ended.append, **heard})
    return Leader(pb.Hello(process=0, **HELLO), processes, link(free_ports(), tls, secret), events, HELLO_SECONDS)


def join(
    leader: Leader,
    tls: TlsFiles | None = None,
    seconds: float = 5,
    process: int = 1,
    end: Callable[[str], None] = end,
    part: Callable[[str], None] = end,
    secret: MeshSecret | None = None,
    **hello: str,
) -> Follower:
    said = pb.Hello(process=process, **{**HELLO, **hello})
    follower = Follower(said, link(leader.port, tls, secret), end, part)
    follower.join(seconds)
    return follower


@contextlib.contextmanager
def silent(leader: Leader, number: int) -> Iterator[list[Stream]]:
    """Streams that say nothing, until the end of the block."""
    over = threading.Event()

    def nothing() -> Iterator[pb.FollowerMessage]:
        over.wait(30)
        yield from ()

    with connect(link(leader.port)) as channel:
        streams = [open_stream(channel, nothing()) for _ in range(number)]
        for stream in streams:
            stream.initial_metadata()  # it has arrived
        try:
            yield streams
        finally:
            over.set()
