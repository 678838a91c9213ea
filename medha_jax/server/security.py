"""TLS credentials and bearer tokens of a server, checked before anything is loaded."""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable, Sequence, Set
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import grpc
from grpc import aio

from medha_jax.config import ConfigError
from medha_jax.net import TlsFiles
from medha_jax.server.connections import Connections, Context
from medha_jax.server.renewal import Renewable, read_file
from medha_jax.server.token_file import Tokens, read_tokens

OPEN_METHODS = "/grpc.health.v1.Health/"  # need no token: health probes send none


@dataclass(frozen=True)
class Certificates:
    """What new handshakes are served with, over gRPC and over HTTP; `mutual`: clients need certificates."""

    offered: grpc.ServerCertificateConfiguration
    context: ssl.SSLContext
    mutual: bool


def read_certificates(files: TlsFiles) -> Certificates:
    """Read the files of TLS, or of mutual TLS if they name an authority for clients.

    Raises:
        ConfigError: a file cannot be read or has the wrong content.
    """
    cert, key = read_file(files.cert), read_file(files.key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(files.cert, files.key, password=b"")  # else it would prompt on the terminal
    except (OSError, ValueError) as error:  # OSError: of TLS, or a file that is gone by now
        raise ConfigError(
            f"{files.cert} and {files.key} are not a certificate and its key ({error}); give PEM files without password"
        ) from None
    if files.ca is None:
        return Certificates(grpc.ssl_server_certificate_configuration([(key, cert)]), context, mutual=False)
    ca = read_file(files.ca)
    try:
        context.load_verify_locations(files.ca)
    except OSError as error:
        raise ConfigError(f"{files.ca} holds no certificate of an authority ({error}); give a PEM file") from None
    context.verify_mode = ssl.CERT_REQUIRED
    return Certificates(grpc.ssl_server_certificate_configuration([(key, cert)], ca), context, mutual=True)


def server_credentials(certificates: Renewable[Certificates]) -> grpc.ServerCredentials:
    """Credentials that serve each new handshake with the newest certificates."""
    first = certificates.value
    offer: Any = _Offer(certificates)  # gRPC's types leave out that it may give None
    return grpc.dynamic_ssl_server_credentials(first.offered, offer, first.mutual)


def server_context(certificates: Renewable[Certificates]) -> ssl.SSLContext:
    """A context for HTTP that serves each new handshake with the newest certificates."""

    def newest(connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        connection.context = certificates.value.context

    first = certificates.value.context
    first.sni_callback = newest  # called in every handshake, whether the client names a host or not
    return first


class _Offer:
    """Called by gRPC before each handshake, one call at a time: what changed since the last one, or None."""

    def __init__(self, certificates: Renewable[Certificates]) -> None:
        self._certificates, self._told = certificates, certificates.value

    def __call__(self) -> grpc.ServerCertificateConfiguration | None:
        newest = self._certificates.value
        if newest is self._told:
            return None
        self._told = newest
        return newest.offered


class Secrets:
    """Certificates and tokens of a server, None where it has none. They are renewed when their files change.

    Raises:
        ConfigError: a file of TLS or of tokens is wrong.
    """

    def __init__(self, tls: TlsFiles | None, token_file: Path | None) -> None:
        self.certificates: Renewable[Certificates] | None = None
        self.tokens: Renewable[Tokens] | None = None
        if tls is not None:
            files = [path for path in (tls.cert, tls.key, tls.ca) if path is not None]
            self.certificates = Renewable("certificates", files, partial(read_certificates, tls))
        if token_file is not None:
            self.tokens = Renewable("tokens", [token_file], partial(read_tokens, token_file))

    @property
    def renewables(self) -> list[Renewable[Any]]:
        """Those that there are."""
        return [secret for secret in (self.certificates, self.tokens) if secret is not None]

    def named_tenants(self) -> Set[str]:
        """All tenants, if the newest token file names some; else none."""
        return frozenset() if self.tokens is None else self.tokens.value.named_tenants


class TokenCheck(aio.ServerInterceptor):
    """Says whose each call is, by the newest tokens in `authorization: Bearer …`; only here that is found out.

    A call without one of them is refused, except health checks. Without tokens all calls are of the tenant "". Methods
    of `service` get the tenant as their third argument. `connections` are told each call without a token.
    """

    def __init__(self, tokens: Renewable[Tokens] | None, connections: Connections, service: str) -> None:
        self._tokens, self._connections, self._methods = tokens, connections, f"/{service}/"
        # fits every method, because it reads no message
        self._refused: grpc.RpcMethodHandler[Any, Any] = grpc.stream_stream_rpc_method_handler(self._refuse)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Pass a call on, or answer it with UNAUTHENTICATED."""
        method = handler_call_details.method
        if method.startswith(OPEN_METHODS):
            return await continuation(handler_call_details)
        tenant = self._tenant(handler_call_details.invocation_metadata or ())
        if tenant is None:
            return self._refused
        handler = await continuation(handler_call_details)
        return handler if handler is None or not method.startswith(self._methods) else _called_by(tenant, handler)

    def _tenant(self, metadata: Sequence[tuple[str, str | bytes]]) -> str | None:
        return tenant_of(self._tokens, [value for name, value in metadata if name == "authorization"])

    async def _refuse(self, messages: Any, context: Context) -> None:
        self._connections.without_token(context.peer())
        await context.abort(
            grpc.StatusCode.UNAUTHENTICATED, "this server needs a token; send the metadata authorization: Bearer TOKEN"
        )


def tenant_of(tokens: Renewable[Tokens] | None, stated: Sequence[str | bytes]) -> str | None:
    """Whose a call is that states these values of `authorization`; None if nobody's. Without tokens it is ""."""
    if tokens is None:
        return ""
    if len(stated) != 1:
        return None
    value = stated[0] if isinstance(stated[0], bytes) else stated[0].encode("utf-8", "replace")
    scheme, _, token = value.partition(b" ")
    tenant = tokens.value.tenant_of(token.strip())
    return tenant if scheme.lower() == b"bearer" else None


def _called_by(tenant: str, handler: Any) -> grpc.RpcMethodHandler[Any, Any]:
    """A method that takes its messages as a stream, for one call of a tenant."""
    kind = "stream_stream" if handler.response_streaming else "stream_unary"
    called: grpc.RpcMethodHandler[Any, Any] = handler._replace(**{kind: partial(getattr(handler, kind), tenant=tenant)})
    return called
