"""A process that runs the plans of process 0."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from queue import SimpleQueue

import grpc

from medha_jax.net import TlsFiles
from medha_jax.plan import Slice, StepPlan
from medha_jax.protos import plans_pb2 as pb
from medha_jax.runtime.cluster.answering import answering
from medha_jax.runtime.cluster.errors import ClusterError
from medha_jax.runtime.cluster.transport import ACCEPTED, Stream, check_protected, connect, open_stream, options
from medha_jax.runtime.cluster.watchdog import Watchdog, leave
from medha_jax.runtime.cluster.wire import decode_admission, decode_copies, decode_plan, decode_slice, encode_results
from medha_jax.runtime.executor import MeshExecutor
from medha_jax.runtime.tick_results import local_results, slice_results

PAUSE = 0.2  # seconds between attempts to reach process 0
Message = Callable[[], pb.FollowerMessage | None]  # None: there is nothing to send


class Follower:
    """One stream to process 0. Commands run in the caller's thread; another thread fetches and sends results.

    If the stream breaks, this process ends with one line on stderr, even if its main thread is blocked.

    Args:
        address: HOST:PORT of process 0's plans.
        limit: bytes of a message.
        heartbeat: seconds of silence after which process 0 counts as lost.
        tls: None is allowed only on loopback or with `insecure`.
        end: ends this process with an error text.

    Raises:
        ClusterSettingError: plans would travel unprotected.
    """

    def __init__(
        self,
        hello: pb.Hello,
        address: str,
        limit: int,
        heartbeat: float,
        tls: TlsFiles | None = None,
        insecure: bool = False,
        end: Callable[[str], None] = leave,
    ) -> None:
        check_protected(address, tls, insecure)
        self._hello = hello
        self._address = address
        self._settings = options(limit, heartbeat)
        self._tls = tls
        self._heartbeat = heartbeat
        self._watchdog = Watchdog(None, end)
        self._finished = threading.Event()
        self._commands: SimpleQueue[pb.Command] = SimpleQueue()
        self._outgoing: SimpleQueue[Message | None] = SimpleQueue()

    def join(self, seconds: float) -> None:
        """Connect to process 0, with retries, and then watch the stream.

        Raises:
            ClusterError: process 0 refuses this process, or does not answer within `seconds`.
        """
        deadline = time.monotonic() + seconds
        while True:
            self._channel = connect(self._address, self._settings, self._tls)
            self._outgoing = SimpleQueue()
            self._send(pb.FollowerMessage(hello=self._hello))
            stream = open_stream(self._channel, self._messages(self._outgoing))
            if ACCEPTED in stream.initial_metadata():
                break
            code = stream.code()
            self._channel.close()
            if code != grpc.StatusCode.UNAVAILABLE:
                raise ClusterError(
                    f"process 0 at {self._address} refused process {self._hello.process}: {_said(stream)}"
                )
            if time.monotonic() > deadline:
                raise ClusterError(
                    f"process 0 at {self._address} does not answer within {seconds:g} s ({_said(stream)}); "
                    "check that it runs, --plans and, on both sides, the --tls files"
                )
            time.sleep(PAUSE)
        threading.Thread(target=self._read, args=(stream,), daemon=True).start()

    def run(self, open_executor: Callable[[], MeshExecutor]) -> str:
        """Load the model, then run commands until process 0 stops; returns its reason.

        Raises:
            ClusterError: commands came out of order.
        """
        try:
            executor = open_executor()
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
                self._commands.put(command)
        except grpc.RpcError:
            reason = _said(stream)
        finally:
            self._finished.set()
        self._watchdog.lost(f"lost process 0 at {self._address}: {reason}")


def _said(stream: Stream) -> str:
    said: str = stream.details() or stream.code().name
    return said
