"""Health of a server, as `grpc.health.v1` tells it under three names."""

from __future__ import annotations

from grpc import aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

LIVENESS = "liveness"


class Vitals:
    """Answers health checks. Belongs to the event loop.

    Args:
        service: name of the service. It and the empty name are SERVING while new requests are taken. `LIVENESS` is
            SERVING as long as the process can do its work, also while it loads or drains.
    """

    def __init__(self, service: str) -> None:
        self._ready_names = ("", service)
        self._servicer = health.aio.HealthServicer()

    def add_to(self, server: aio.Server) -> None:
        """Answer the calls of a server."""
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, server)

    async def tell(self, ready: bool, alive: bool = True) -> None:
        """Answer so from now on, also who watches."""
        for name in self._ready_names:
            await self._servicer.set(name, _status(ready))
        await self._servicer.set(LIVENESS, _status(alive))


def _status(good: bool) -> health_pb2.HealthCheckResponse.ServingStatus:
    return health_pb2.HealthCheckResponse.SERVING if good else health_pb2.HealthCheckResponse.NOT_SERVING
