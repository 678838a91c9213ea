"""The error of a call that did not end well."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status

DETAILS = "grpc-status-details-bin"


class ServerError(RuntimeError):
    """A call ended with a status other than OK. The text is the status and the server's message.

    Attributes:
        code: name of the status, such as "RESOURCE_EXHAUSTED".
        message: the server's message.
        retry_s: seconds to wait before a retry; None if the server did not say.
    """

    def __init__(self, code: str, message: str, retry_s: float | None = None) -> None:
        super().__init__(f"{code}: {message}")
        self.code, self.message, self.retry_s = code, message, retry_s


def error_from(error: Any) -> ServerError:
    """Convert a `grpc.RpcError` of a synchronous or asyncio call."""
    return ServerError(error.code().name, error.details() or "no message", _retry_s(error.trailing_metadata() or ()))


def _retry_s(metadata: Iterable[tuple[str, Any]]) -> float | None:
    for name, value in metadata:
        if name != DETAILS:
            continue
        try:
            for detail in Status.FromString(value).details:
                info = RetryInfo()
                if detail.Unpack(info):
                    return float(info.retry_delay.ToNanoseconds()) / 1e9
        except DecodeError:
            return None
    return None
