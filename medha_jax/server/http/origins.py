"""Web pages that may use the server from a browser (CORS). A browser names the page's origin in every such request."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from aiohttp import web
from grpc import StatusCode

from medha_jax.server.refusal import Refusal

ANY = "*"
PREFLIGHT_SECONDS = "600"  # that a browser may keep the answer
EXPOSED = "x-request-id, x-ignored-fields, x-should-retry, retry-after, retry-after-ms"


class Origins:
    """Refuses requests of pages whose origin is not `allowed`; "*" allows all. Requests of other programs have none.

    Without that, any page that a user visits could ask a server on the user's own machine.
    """

    def __init__(self, allowed: Collection[str]) -> None:
        self._allowed = frozenset(allowed)

    @web.middleware
    async def check(self, request: web.Request, handler: Any) -> web.StreamResponse:
        """Refuse a request, or answer a browser that asks whether it may send one."""
        origin = request.headers.get("Origin")
        if origin is not None and not self._allows(origin):
            raise Refusal(
                StatusCode.PERMISSION_DENIED,
                f"web pages of {origin[:128]!r} may not ask this server; --http-origins says which may",
            )
        if origin is not None and request.method == "OPTIONS":
            return web.Response(status=204)
        answer: web.StreamResponse = await handler(request)
        return answer

    async def sign(self, request: web.Request, answer: web.StreamResponse) -> None:
        """Tell the browser that the page may read an answer; called before its head is sent."""
        origin = request.headers.get("Origin")
        if origin is None or not self._allows(origin):
            return
        answer.headers["Access-Control-Allow-Origin"] = origin
        answer.headers["Access-Control-Expose-Headers"] = EXPOSED
        answer.headers["Vary"] = "Origin"
        if request.method == "OPTIONS":
            answer.headers["Access-Control-Allow-Methods"] = "GET, POST"
            answer.headers["Access-Control-Allow-Headers"] = request.headers.get("Access-Control-Request-Headers", ANY)
            answer.headers["Access-Control-Max-Age"] = PREFLIGHT_SECONDS

    def _allows(self, origin: str) -> bool:
        return ANY in self._allowed or origin in self._allowed
