"""The endpoint of the metrics on a real socket: what it answers, and who cannot keep it from that."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import urllib.error
import urllib.request
from collections.abc import Callable
from email.message import Message

import pytest
from prometheus_client.parser import text_string_to_metric_families

from medha_jax.server import metrics_endpoint
from medha_jax.server.listening import ListenError
from medha_jax.server.metrics_endpoint import MetricsEndpoint
from medha_jax.server.prometheus import Metrics
from medha_jax.server.server import serve
from medha_jax.server.settings import ServerSettings
from tests.server.embedded import embedded


def served(use: Callable[[int], None]) -> None:
    """Run `use` in a thread, with the port of an endpoint."""

    async def run() -> None:
        metrics = Metrics()
        metrics.refused("draining", "")
        async with MetricsEndpoint(metrics.registry).listening("127.0.0.1", 0) as port:
            await asyncio.to_thread(use, port)

    asyncio.run(run())


def scrape(port: int, path: str = "/metrics", **headers: str) -> tuple[str, Message]:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers=headers)
    with urllib.request.urlopen(request, timeout=10) as answer:
        return answer.read().decode(), answer.headers


def test_it_answers_with_the_metrics_in_the_form_that_is_asked_for() -> None:
    def use(port: int) -> None:
        text, headers = scrape(port)
        names = {family.name for family in text_string_to_metric_families(text)}
        assert {"medha_requests_refused", "medha_time_to_first_token_seconds", "process_open_fds"} <= names
        assert headers["Content-Type"].startswith("text/plain")
        text, headers = scrape(port, "/metrics?x=1", Accept="application/openmetrics-text; version=1.0.0")
        assert text.endswith("# EOF\n") and headers["Content-Type"].startswith("application/openmetrics-text")
        with pytest.raises(urllib.error.HTTPError, match="404"):
            scrape(port, "/other")
        with socket.create_connection(("127.0.0.1", port)) as taken:
            taken.sendall(b"POST /metrics HTTP/1.1\r\n\r\n")
            assert taken.recv(100).startswith(b"HTTP/1.1 405 ")

    served(use)


def test_silent_and_slow_connections_stop_no_scrape_and_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_endpoint, "SECONDS", 1.0)

    def use(port: int) -> None:
        crowd = [socket.create_connection(("127.0.0.1", port)) for _ in range(100)]
        for slow in crowd[50:]:
            slow.sendall(b"GET /metrics HTTP/1.1\r\nX-")
        assert "medha_requests_refused_total" in scrape(port)[0]
        for one in crowd:
            one.settimeout(10)
            with contextlib.suppress(ConnectionResetError):
                assert one.recv(1) == b"", "it is closed without an answer"
            one.close()
        assert "medha_requests_refused_total" in scrape(port)[0]

    served(use)


def test_a_request_without_an_end_is_cut() -> None:
    def use(port: int) -> None:
        with socket.create_connection(("127.0.0.1", port), 10) as endless:
            with contextlib.suppress(ConnectionError):
                endless.sendall(b"GET " + b"/" * 100 * metrics_endpoint.MOST_HEAD)
            with contextlib.suppress(ConnectionError):
                assert endless.recv(1) == b""

    served(use)


def test_a_taken_address_is_refused_in_one_line() -> None:
    def use(port: int) -> None:
        model, loader = embedded()
        with pytest.raises(ListenError, match=f"cannot listen on 127.0.0.1:{port} for metrics: .*in use"):
            asyncio.run(serve(ServerSettings(port=0, metrics_port=port), model, loader))
        assert not loader.loads

    served(use)


@pytest.mark.parametrize("host", ["no such host", "a" * 70])
def test_a_wrong_host_is_refused_in_one_line(host: str) -> None:
    model, loader = embedded()
    with pytest.raises(ListenError, match="for metrics: "):
        asyncio.run(serve(ServerSettings(port=0, metrics_port=0, metrics_host=host), model, loader))
