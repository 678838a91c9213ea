"""Refusals as HTTP statuses and as errors in OpenAI's form."""

from __future__ import annotations

import json
import math
from typing import Any

from aiohttp import web
from grpc import StatusCode

from medha_jax.server.refusal import Refusal

# as the gRPC gateway maps them
_STATUSES = {
    StatusCode.INVALID_ARGUMENT: 400,
    StatusCode.OUT_OF_RANGE: 400,
    StatusCode.FAILED_PRECONDITION: 400,
    StatusCode.UNAUTHENTICATED: 401,
    StatusCode.PERMISSION_DENIED: 403,
    StatusCode.NOT_FOUND: 404,
    StatusCode.ALREADY_EXISTS: 409,
    StatusCode.RESOURCE_EXHAUSTED: 429,
    StatusCode.CANCELLED: 499,
    StatusCode.UNAVAILABLE: 503,
    StatusCode.DEADLINE_EXCEEDED: 504,
}
_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    409: "conflict_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
    504: "timeout_error",
}
_CODES = {
    StatusCode.OUT_OF_RANGE: "context_length_exceeded",
    StatusCode.UNAUTHENTICATED: "invalid_api_key",
    StatusCode.ALREADY_EXISTS: "request_id_taken",
    StatusCode.CANCELLED: "aborted",
}
UNAVAILABLE_SECONDS = 1.0  # after which a client may try again, where the refusal does not say


class FieldRefusal(Refusal):
    """A field of a request is wrong; `param` names it."""

    def __init__(self, param: str, message: str, code: StatusCode = StatusCode.INVALID_ARGUMENT) -> None:
        super().__init__(code, message)
        self.param = param


class TooLargeRefusal(Refusal):
    """A body has more than so many bytes."""

    def __init__(self, most: int) -> None:
        super().__init__(StatusCode.OUT_OF_RANGE, f"the body has more than {most:,} bytes; longer prompts go over gRPC")


def status_of(refusal: Refusal) -> int:
    """The HTTP status of a refusal; 500 where there is no better one."""
    if isinstance(refusal, TooLargeRefusal):
        return 413
    return _STATUSES.get(refusal.code, 500)


def error_of(message: str, status: int, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    """The body of an error."""
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "internal_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def body_of(refusal: Refusal) -> dict[str, Any]:
    """The body of a refusal."""
    param = (refusal.param or None) if isinstance(refusal, FieldRefusal) else None  # "" is the body itself
    code = "model_not_found" if refusal.code is StatusCode.NOT_FOUND and param == "model" else _CODES.get(refusal.code)
    return error_of(refusal.message, status_of(refusal), code, param)


def answer_of(refusal: Refusal) -> web.Response:
    """The whole answer to a refused request.

    `x-should-retry` says what clients of OpenAI's making would otherwise guess: they repeat conflicts and timeouts.
    """
    status = status_of(refusal)
    seconds = UNAVAILABLE_SECONDS if status == 503 and refusal.retry_s is None else refusal.retry_s
    headers = {"x-should-retry": "false" if seconds is None else "true"}
    if seconds is not None:
        headers["Retry-After"] = str(max(1, math.ceil(seconds)))
        headers["retry-after-ms"] = str(math.ceil(1000 * seconds))
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return json_answer(body_of(refusal), status, headers)


def json_answer(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    """An answer of JSON."""
    return web.Response(body=encoded(body), status=status, headers=headers, content_type="application/json")


def encoded(body: Any) -> bytes:
    """JSON on one line."""
    return json.dumps(body, separators=(",", ":")).encode()
