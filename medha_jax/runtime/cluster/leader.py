"""Process 0's side of the stream: sends commands to every follower in the same order, receives results."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import NoReturn

import grpc

from medha_jax.protos import plans_pb2 as pb
from medha_jax.runtime.cluster.errors import ClusterError
from medha_jax.runtime.cluster.hellos import HELLO_SECONDS, Hellos, RefusalNotes
from medha_jax.runtime.cluster.identity import difference
from medha_jax.runtime.cluster.secret import LEADER, WORKER, draw, is_proof, proof
from medha_jax.runtime.cluster.transport import CHALLENGE, PlansLink, listen
from medha_jax.runtime.cluster.watchdog import Watchdog, leave

FLUSH = 0.5  # seconds to deliver the last command to the followers
UNKNOWN = (
    "it does not know the secret of this mesh; start it as the same user, or each process with the same "
    "--plans-token-file"
)
Outgoing = SimpleQueue[pb.Command | None]


def _ignore(said: object) -> None:
    """Nobody wants to hear of it."""


@dataclass(frozen=True)
class LeaderEvents:
    """Whom process 0 tells what it hears; called in threads of its own.

    Args:
        lost: a process is lost, and why; called at once, before the others are told.
        end: called after that; ends this process, at once or soon.
        leaving: the number of a process that was asked to end.
        note: a line for the log.
    """

    lost: Callable[[str], None] = _ignore
    end: Callable[[str], None] = leave
    leaving: Callable[[int], None] = _ignore
    note: Callable[[str], None] = _ignore


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

    Who does not fit is refused, and nobody else notices. If a follower is lost, the leader tells the others.

    Args:
        hello: every follower's must agree with it.
        processes: number in the cluster, including this one.
        link: where to listen, and how.
        events: whom to tell what is heard.
        hello_seconds: that a stream may take to say whose it is.

    Raises:
        ClusterError: the address cannot be listened on, or the secret cannot be kept.
        ClusterSettingError: a file of TLS or of the secret cannot be used.
    """

    def __init__(
        self,
        hello: pb.Hello,
        processes: int,
        link: PlansLink,
        events: LeaderEvents,
        hello_seconds: float = HELLO_SECONDS,
    ) -> None:
        self._hello, self._processes, self._heartbeat = hello, processes, link.heartbeat
        self._link, self._events, self._hellos = link, events, Hellos(seconds=hello_seconds)
        self._notes = RefusalNotes(events.note)
        # everything below is read and changed under this lock
        self._changed = threading.Condition()
        self._followers: dict[int, _Follower] = {}
        self._refused: dict[int, str] = {}  # processes that know the secret, and why they were refused last
        self._sequence = 0
        self._stopped = False
        self._watchdog = Watchdog(self._tell_all, events.end, events.lost)
        self._server, self.port = listen(self._follow, link, processes - 1)
        link.secret.make()  # before anybody is let in, and not where another process 0 has the port
        self._secret = link.secret.read()
        self._server.start()

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

    def stop(self, reason: str, failed: bool, at_once: bool = False) -> None:
        """Send the last command, wait until the followers have it, and stop serving.

        If `failed`, the followers end with an error as well. If `at_once`, they end without waiting for this process,
        which does the same.
        """
        self._watchdog.release()
        with self._changed:
            self._stopped = True
        self._tell_all(reason, failed, self._heartbeat, at_once)
        self._link.secret.forget()
        self._server.stop(FLUSH).wait()

    def _tell_all(self, reason: str, failed: bool = True, seconds: float = FLUSH, at_once: bool = False) -> None:
        self.broadcast(pb.Command(stop=pb.Stop(reason=reason, failed=failed, at_once=at_once)))
        with self._changed:
            for follower in self._followers.values():
                follower.outgoing.put(None)
            self._changed.wait_for(lambda: all(f.ended for f in self._followers.values()), seconds)

    def _wait(self, done: Callable[[], set[int]], seconds: float, what: str) -> None:
        expected = set(range(1, self._processes))
        with self._changed:
            if self._changed.wait_for(lambda: done() >= expected, seconds):
                return
            lacking = sorted(expected - done())
            refused = [
                f"process {number} was refused: {self._refused[number]}"
                for number in lacking
                if number in self._refused
            ]
        missing = ", ".join(map(str, lacking))
        hint = "; ".join(refused) or "look at what it printed"
        raise ClusterError(f"process {missing} {what} within {seconds:g} s; {hint}")

    def _follow(self, incoming: Iterator[pb.FollowerMessage], context: grpc.ServicerContext) -> Iterator[pb.Command]:
        """Handle one stream in a server thread; another thread reads incoming messages."""
        challenge = draw()
        context.send_initial_metadata(((CHALLENGE, challenge),))
        hello = self._hellos.first(incoming)
        if isinstance(hello, str):
            self._refuse(context, grpc.StatusCode.DEADLINE_EXCEEDED, "a stream of plans", hello)
        follower = self._enter(hello, challenge)
        if isinstance(follower, str):
            self._refuse(context, grpc.StatusCode.FAILED_PRECONDITION, f"process {hello.process}", follower)
        threading.Thread(target=self._read, args=(follower, incoming), daemon=True).start()
        yield pb.Command(welcome=pb.Welcome(proof=self._proof(LEADER, hello, challenge)))
        while (command := follower.outgoing.get()) is not None:
            yield command
        with self._changed:  # the follower closes after it read the last command
            self._changed.wait_for(lambda: follower.ended, self._heartbeat)

    def _refuse(self, context: grpc.ServicerContext, code: grpc.StatusCode, who: str, why: str) -> NoReturn:
        """End a stream with a status."""
        self._notes.refused(f"{who} was refused: {why} (it came from {context.peer()})")
        context.abort(code, why)
        raise RuntimeError(why)  # abort has raised

    def _enter(self, hello: pb.Hello, challenge: bytes) -> _Follower | str:
        """Let a follower in, or say why not: one at a time, so that only one of each number passes."""
        if not is_proof(hello.proof, self._proof(WORKER, hello, challenge)):
            return UNKNOWN
        if not 0 < hello.process < self._processes:
            return f"its process id is {hello.process}; allowed are 1 to {self._processes - 1}"
        with self._changed:
            problem = "process 0 is about to end" if self._stopped else difference(self._hello, hello)
            if problem is not None:
                self._refused[hello.process] = problem
                return problem
            if hello.process in self._followers:
                return f"there is a process {hello.process} already; give every process its own id"
            follower = self._followers[hello.process] = _Follower(hello.process)
            self._changed.notify_all()
            return follower

    def _proof(self, who: bytes, hello: pb.Hello, challenge: bytes) -> bytes:
        return proof(self._secret, who, challenge, hello.nonce, hello.process)

    def _read(self, follower: _Follower, incoming: Iterator[pb.FollowerMessage]) -> None:
        reason = f"its connection broke, or it was silent for {self._heartbeat:g} s"
        try:
            for message in incoming:
                kind = message.WhichOneof("message")
                if kind == "failure":
                    reason = message.failure.text
                    break
                if kind == "leaving":
                    self._events.leaving(follower.process)
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
