"""Process 0's side of the stream: sends commands to every follower in the same order, receives results."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from queue import SimpleQueue

import grpc

from medha_jax.net import TlsFiles
from medha_jax.protos import plans_pb2 as pb
from medha_jax.runtime.cluster.errors import ClusterError
from medha_jax.runtime.cluster.identity import difference
from medha_jax.runtime.cluster.transport import ACCEPTED, check_protected, options, serve
from medha_jax.runtime.cluster.watchdog import Watchdog, leave

FLUSH = 0.5  # seconds to deliver the last command to the followers
Outgoing = SimpleQueue[pb.Command | None]


@dataclass
class _Follower:
    """One stream; changed only under the leader's lock."""

    process: int
    outgoing: Outgoing = field(default_factory=SimpleQueue)
    ready: bool = False
    ended: bool = False
    results: dict[int, pb.Results] = field(default_factory=dict)


class Leader:
    """Serves the followers; owner of their queues, the sequence and results that are not collected yet.

    If a follower is lost, the leader tells the others and ends this process with one line on stderr.

    Args:
        hello: every follower's must agree with it.
        processes: number in the cluster, including this one.
        address: HOST:PORT to listen on.
        limit: bytes of a message.
        heartbeat: seconds of silence after which a follower counts as lost.
        tls: None is allowed only on loopback or with `insecure`.
        end: ends this process with an error text.

    Raises:
        ClusterError: the address cannot be listened on.
        ClusterSettingError: plans would travel unprotected.
    """

    def __init__(
        self,
        hello: pb.Hello,
        processes: int,
        address: str,
        limit: int,
        heartbeat: float,
        tls: TlsFiles | None = None,
        insecure: bool = False,
        end: Callable[[str], None] = leave,
    ) -> None:
        check_protected(address, tls, insecure)
        self._hello = hello
        self._processes = processes
        self._heartbeat = heartbeat
        self._followers: dict[int, _Follower] = {}
        self._sequence = 0
        self._changed = threading.Condition()
        self._watchdog = Watchdog(self._tell_all, end)
        self._server, self.port = serve(self._follow, address, processes - 1, options(limit, heartbeat), tls)

    def wait_joined(self, seconds: float) -> None:
        """Wait until every follower has connected. Raises ClusterError after `seconds`."""
        self._wait(lambda: set(self._followers), seconds, "did not connect to the plans")

    def wait_ready(self, seconds: float) -> None:
        """Wait until every follower has loaded the model. Raises ClusterError after `seconds`."""
        self._wait(lambda: {f.process for f in self._followers.values() if f.ready}, seconds, "did not become ready")

    def broadcast(self, command: pb.Command) -> int:
        """Send the next command to every follower; returns its sequence number."""
        with self._changed:
            command.sequence = self._sequence
            self._sequence += 1
            for follower in self._followers.values():
                follower.outgoing.put(command)
            return command.sequence

    def results(self, sequence: int, process: int) -> pb.Results:
        """Wait for a follower's results of a tick (a lost follower ends this process)."""
        follower = self._followers[process]
        with self._changed:
            self._changed.wait_for(lambda: sequence in follower.results)
            return follower.results.pop(sequence)

    def await_cause(self) -> None:
        """After an error here, wait briefly in case a lost follower is the cause (that would end this process)."""
        self._watchdog.await_cause(min(1.0, self._heartbeat))

    def stop(self, reason: str, failed: bool) -> None:
        """Send the last command, wait until the followers have it, and stop serving.

        If `failed`, the followers end with an error as well.
        """
        self._watchdog.release()
        self._tell_all(reason, failed, self._heartbeat)
        self._server.stop(FLUSH).wait()

    def _tell_all(self, reason: str, failed: bool = True, seconds: float = FLUSH) -> None:
        self.broadcast(pb.Command(stop=pb.Stop(reason=reason, failed=failed)))
        with self._changed:
            for follower in self._followers.values():
                follower.outgoing.put(None)
            self._changed.wait_for(lambda: all(f.ended for f in self._followers.values()), seconds)

    def _wait(self, done: Callable[[], set[int]], seconds: float, what: str) -> None:
        expected = set(range(1, self._processes))
        with self._changed:
            if self._changed.wait_for(lambda: done() >= expected, seconds):
                return
            missing = ", ".join(map(str, sorted(expected - done())))
        raise ClusterError(f"process {missing} {what} within {seconds:g} s; look at what it printed")

    def _follow(self, incoming: Iterator[pb.FollowerMessage], context: grpc.ServicerContext) -> Iterator[pb.Command]:
        """Handle one stream in a server thread; another thread reads incoming messages."""
        first = next(incoming, None)
        hello = first.hello if first is not None else pb.Hello()
        problem = self._problem(hello)
        if problem is not None:
            if hello.process not in self._followers and 0 < hello.process < self._processes:
                # No other process can take its place, so waiting is useless.
                said = f"process {hello.process} was refused: {problem}"
                threading.Timer(FLUSH, self._watchdog.lost, [said]).start()
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, problem)
        follower = _Follower(hello.process)
        with self._changed:
            self._followers[hello.process] = follower
            self._changed.notify_all()
        context.send_initial_metadata((ACCEPTED,))
        threading.Thread(target=self._read, args=(follower, incoming), daemon=True).start()
        while (command := follower.outgoing.get()) is not None:
            yield command
        with self._changed:  # the follower closes after it read the last command
            self._changed.wait_for(lambda: follower.ended, self._heartbeat)

    def _problem(self, hello: pb.Hello) -> str | None:
        if not 0 < hello.process < self._processes:
            return f"its process id is {hello.process}; allowed are 1 to {self._processes - 1}"
        if hello.process in self._followers:
            return f"there is a process {hello.process} already; give every process its own id"
        return difference(self._hello, hello)

    def _read(self, follower: _Follower, incoming: Iterator[pb.FollowerMessage]) -> None:
        reason = f"its connection broke, or it was silent for {self._heartbeat:g} s"
        try:
            for message in incoming:
                kind = message.WhichOneof("message")
                if kind == "failure":
                    reason = message.failure.text
                    break
                with self._changed:
                    if kind == "ready":
                        follower.ready = True
                    elif kind == "results":
                        follower.results[message.results.sequence] = message.results
                    self._changed.notify_all()
        except Exception as error:  # gRPC raises a plain Exception if the other side is gone
            reason = f"{reason} {error}".strip()
        with self._changed:
            follower.ended = True
            self._changed.notify_all()
        self._watchdog.lost(f"lost process {follower.process}: {reason}")
