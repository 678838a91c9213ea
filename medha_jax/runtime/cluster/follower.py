"""A process that runs the plans of process 0."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from queue import SimpleQueue

import grpc

from medha_jax.plan import Slice, StepPlan
from medha_jax.protos import plans_pb2 as pb
from medha_jax.runtime.cluster.answering import answering
from medha_jax.runtime.cluster.errors import ClusterError
from medha_jax.runtime.cluster.secret import LEADER, WORKER, draw, is_proof, proof
from medha_jax.runtime.cluster.transport import CHALLENGE, PlansLink, Stream, connect, open_stream
from medha_jax.runtime.cluster.watchdog import Watchdog, depart, leave
from medha_jax.runtime.cluster.wire import (
    decode_admission,
    decode_copies,
    decode_masks,
    decode_plan,
    decode_slice,
    encode_results,
)
from medha_jax.runtime.executor import MeshExecutor
from medha_jax.runtime.tick_results import local_results, slice_results

PAUSE = 0.2  # seconds between attempts to reach process 0
# process 0 is not there yet, or too many others ask it at once
AGAIN = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
}
Message = Callable[[], pb.FollowerMessage | None]  # None: there is nothing to send


class Follower:
    """One stream to process 0. Commands run in the caller's thread; another thread fetches and sends results.

    If the stream breaks, this process ends with one line on stderr, even if its main thread is blocked.

    Args:
        hello: what this process is, without a proof.
        link: where process 0 listens, and how.
        end: ends this process with an error text.
        part: ends it with a text and exit code 0, because it was asked to stop before it ran anything.
    """

    def __init__(
        self,
        hello: pb.Hello,
        link: PlansLink,
        end: Callable[[str], None] = leave,
        part: Callable[[str], None] = depart,
    ) -> None:
        self._hello, self._link, self._heartbeat, self._part = hello, link, link.heartbeat, part
        self._watchdog = Watchdog(None, end)
        self._finished = threading.Event()
        self._commands: SimpleQueue[pb.Command] = SimpleQueue()
        self._outgoing: SimpleQueue[Message | None] = SimpleQueue()
        # read and changed under the lock
        self._lock = threading.Lock()
        self._joined = self._running = False

    def join(self, seconds: float) -> None:
        """Connect to process 0, with retries, and then watch the stream.

        Raises:
            ClusterError: process 0 refuses this process, does not answer within `seconds`, or is not this mesh's.
            ClusterSettingError: a file of TLS or of the secret cannot be used.
        """
        deadline, address = time.monotonic() + seconds, self._link.address
        while True:
            self._channel = connect(self._link)
            self._outgoing = SimpleQueue()
            stream = open_stream(self._channel, self._messages(self._outgoing))
            if self._introduce(stream):
                break
            code, said = stream.code(), _said(stream)
            self._outgoing.put(None)
            self._channel.close()
            if code not in AGAIN:
                raise ClusterError(f"process 0 at {address} refused process {self._hello.process}: {said}")
            if time.monotonic() > deadline:
                raise ClusterError(
                    f"process 0 at {address} does not answer within {seconds:g} s ({said}); "
                    "check that it runs, --plans and, on both sides, the --tls files"
                )
            time.sleep(PAUSE)
        with self._lock:
            self._joined = True
        threading.Thread(target=self._read, args=(stream,), daemon=True).start()

    def leave(self) -> None:
        """This process was asked to end. Before it joined it does; then process 0 decides when all have finished."""
        with self._lock:
            if not self._joined:
                self._part("stopped before process 0 let it in")
        self._send(pb.FollowerMessage(leaving=pb.Leaving()))

    def run(self, open_executor: Callable[[], MeshExecutor]) -> str:
        """Load the model, then run commands until process 0 stops; returns its reason.

        Raises:
            ClusterError: commands came out of order.
        """
        try:
            executor = open_executor()
            with self._lock:
                self._running = True
            self._send(pb.FollowerMessage(ready=pb.Ready()))
            reason = self._run_commands(executor)
        except Exception as error:
            # If a lost process caused the error, the watchdog reports it and ends this process.
            self._watchdog.await_cause(min(1.0, self._heartbeat))
            self._watchdog.release()
            self._send(pb.FollowerMessage(failure=pb.Failure(text=str(error)[:1000] or type(error).__name__)))
            self._leave()
            raise
        self._leave()
        return reason

    def _run_commands(self, executor: MeshExecutor) -> str:
        expected, stages = 0, tuple[StepPlan, ...]()
        while True:
            command = self._commands.get()
            if command.sequence != expected:
                raise ClusterError(f"command {command.sequence} came where {expected} was due")
            expected += 1
            match command.WhichOneof("command"):
                case "admit":
                    executor.admit(decode_admission(command.admit))
                case "adopt":
                    executor.adopt(command.adopt.slot, command.adopt.group, tuple(command.adopt.pages))
                case "masks":
                    executor.set_masks(*decode_masks(command.masks))
                case "copy":
                    executor.copy_pages(decode_copies(command.copy))
                case "tick":
                    self._tick(executor, command)
                case "slice":
                    work = decode_slice(command.slice, stages)
                    stages = work.stages
                    self._slice(executor, work)
                case "stop":
                    return command.stop.reason
                case other:
                    raise ClusterError(f"command {command.sequence} is of unknown kind {other}")

    def _tick(self, executor: MeshExecutor, command: pb.Command) -> None:
        handle = executor.submit(decode_plan(command.tick))
        mine = {number for number, process in answering(handle).items() if process == self._hello.process}
        if not mine:
            return

        def message() -> pb.FollowerMessage:
            results = {number: result for number, result in local_results(handle).items() if number in mine}
            return pb.FollowerMessage(results=encode_results(command.sequence, results))

        self._outgoing.put(message)

    def _slice(self, executor: MeshExecutor, work: Slice) -> None:
        handle = executor.submit_slice(work)

        def message() -> None:
            slice_results(handle)  # an error ends this process, as one of a tick does

        self._outgoing.put(message)

    def _introduce(self, stream: Stream) -> bool:
        """Say who this is, and wait to be let in; returns whether it was.

        Raises:
            ClusterError: there is no secret here, or who listens there does not know it.
        """
        challenge = dict(stream.initial_metadata()).get(CHALLENGE)
        if challenge is None:
            return False
        secret, nonce, process = self._link.secret.read(), draw(), self._hello.process
        self._hello.nonce, self._hello.proof = nonce, proof(secret, WORKER, challenge, nonce, process)
        self._send(pb.FollowerMessage(hello=self._hello))
        try:
            first = next(stream)
        except (grpc.RpcError, StopIteration):
            return False
        if not is_proof(first.welcome.proof, proof(secret, LEADER, challenge, nonce, process)):
            raise ClusterError(f"who listens on {self._link.address} does not know the secret of this mesh")
        return True

    def _send(self, message: pb.FollowerMessage) -> None:
        self._outgoing.put(lambda: message)

    def _leave(self) -> None:
        """End this side of the stream, and wait for sent messages to arrive."""
        self._outgoing.put(None)
        self._finished.wait(self._heartbeat)
        self._channel.close()

    def _messages(self, outgoing: SimpleQueue[Message | None]) -> Iterator[pb.FollowerMessage]:
        """Messages for gRPC, made in its own thread, so that waiting for results delays no command."""
        while (make := outgoing.get()) is not None:
            try:
                message = make()
            except Exception as error:
                self._watchdog.await_cause(min(1.0, self._heartbeat))
                self._watchdog.lost(f"process {self._hello.process} failed: {error}")
                return
            if message is not None:
                yield message

    def _read(self, stream: Stream) -> None:
        reason = "it ended the connection"
        try:
            for command in stream:
                if command.WhichOneof("command") == "stop":
                    if command.stop.failed:
                        self._watchdog.lost(f"process 0 stopped: {command.stop.reason}")
                    self._watchdog.release()
                    with self._lock:
                        # one that loads waits for the other processes, so it might never see the command
                        if command.stop.at_once or not (command.stop.failed or self._running):
                            self._part(command.stop.reason)
                self._commands.put(command)
        except grpc.RpcError:
            reason = _said(stream)
        finally:
            self._finished.set()
        self._watchdog.lost(f"lost process 0 at {self._link.address}: {reason}")


def _said(stream: Stream) -> str:
    said: str = stream.details() or stream.code().name
    return said
