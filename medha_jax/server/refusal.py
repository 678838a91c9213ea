"""Refusals: answers of a call with a status other than OK."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from google.protobuf.any_pb2 import Any as Packed
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from grpc import StatusCode

DETAILS = "grpc-status-details-bin"  # the metadata key of a google.rpc.Status


class Refusal(Exception):
    """The reason why a call is refused or ended.

    Args:
        code: the status.
        message: the error and what is allowed.
        retry_s: seconds after which the client should try again; None if that does not help.
        logged: the message for the log, without any part of a prompt; None if the message is.
    """

    def __init__(self, code: StatusCode, message: str, retry_s: float | None = None, logged: str | None = None) -> None:
        super().__init__(message)
        self.code, self.message, self.retry_s = code, message, retry_s
        self.logged = message if logged is None else logged

    async def abort(self, context: Any) -> None:
        """End a call with this status. `context` is gRPC's, whose `abort` always raises, or stands in its place."""
        await context.abort(self.code, self.message, self.trailers())

    def trailers(self) -> tuple[tuple[str, bytes], ...]:
        """Trailing metadata: `google.rpc.Status` with a `RetryInfo`, or nothing."""
        if self.retry_s is None:
            return ()
        delay = Duration()
        delay.FromNanoseconds(round(self.retry_s * 1e9))
        details = Packed()
        details.Pack(RetryInfo(retry_delay=delay))
        status = Status(code=self.code.value[0], message=self.message, details=[details])
        return ((DETAILS, status.SerializeToString()),)


def retry_seconds(trailers: Sequence[tuple[str, bytes]]) -> float | None:
    """The `retry_s` of the refusal with these trailers."""
    for _, data in trailers:
        info = RetryInfo()
        if any(details.Unpack(info) for details in Status.FromString(data).details):
            return float(info.retry_delay.ToNanoseconds()) / 1e9
    return None


def invalid(message: str, logged: str | None = None) -> Refusal:
    """A field is out of its range."""
    return Refusal(StatusCode.INVALID_ARGUMENT, message, logged=logged)


def never_fits(message: str) -> Refusal:
    """A request is larger than this server ever takes."""
    return Refusal(StatusCode.OUT_OF_RANGE, message)


def too_busy(message: str, retry_s: float = 1.0) -> Refusal:
    """The queue or the number of streams is at its limit."""
    return Refusal(StatusCode.RESOURCE_EXHAUSTED, message, retry_s)


def too_slow(message: str) -> Refusal:
    """A client reads more slowly than the server keeps its output; to come again does not help."""
    return Refusal(StatusCode.RESOURCE_EXHAUSTED, message)


def internal() -> Refusal:
    """An error of the server, which was logged."""
    return Refusal(StatusCode.INTERNAL, "an error in the server; its log says more")


def unavailable(message: str) -> Refusal:
    """The server is not ready yet, or about to end."""
    return Refusal(StatusCode.UNAVAILABLE, message)
