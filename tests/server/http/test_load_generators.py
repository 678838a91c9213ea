"""Load generators of other projects, unmodified, against a server: what they report is what the server counted.

CI has none of them, for each takes 1 to 4 GB. They run where their commands are on the PATH:
`PATH=$PATH:FOLDER python -m pytest tests/server/http/test_load_generators.py`.
"""

import json
import shutil
import urllib.request
from dataclasses import fields, replace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.load_generators import GENERATORS, Figures, Load, Served, chat_model, own_figures, table
from benchmarks.server import free_port
from medha_jax.config import BUNDLED_MODEL
from tests.server.processes import SERVE, SIMULATED, ServerProcess

SHORT = Load(requests=12, streams=4, prompt_tokens=64, output_tokens=16)
LONG = Load(requests=4, streams=2, prompt_tokens=3000, output_tokens=8)  # of several ticks, so their progress is told
CHATS = Load(requests=6, streams=3, prompt_tokens=64, output_tokens=8, chat=True)


def installed(name):
    command = GENERATORS[name].command
    missing = shutil.which(command) is None
    return pytest.param(name, marks=pytest.mark.skipif(missing, reason=f"there is no {command} on the PATH"))


each_generator = pytest.mark.parametrize("name", [installed(name) for name in GENERATORS])


class MeasuredServer:
    """A server over HTTP with its metrics and its log."""

    def __init__(self, *options, model="simulated", directory=BUNDLED_MODEL):
        ports = {"--http-port": free_port(), "--metrics-port": free_port()}
        named = [text for option in ports.items() for text in option]
        self._process = ServerProcess(*options, *named, "--access-log", "json")
        self._metrics = f"http://127.0.0.1:{ports['--metrics-port']}/metrics"
        self.served = Served(f"http://127.0.0.1:{ports['--http-port']}", model, directory, None)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._process.__exit__(*error)

    def post(self, body):
        asked = urllib.request.Request(
            f"{self.served.url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(asked, timeout=60) as answer:
            return answer.read()

    def counted(self):
        """Its own figures once it has ended, and its counters by their names."""
        with urllib.request.urlopen(self._metrics, timeout=10) as answer:
            families = list(text_string_to_metric_families(answer.read().decode()))
        counters = {}
        for sample in (sample for family in families for sample in family.samples):
            counters[sample.name] = counters.get(sample.name, 0) + sample.value
        assert self._process.stop() == 0
        return own_figures(self._process.errors.splitlines()), counters


def check(reported, load, own, counters):
    assert (reported.requests, own.requests) == (load.requests, load.requests)
    assert reported.output_tokens == own.output_tokens == load.requests * load.output_tokens
    assert reported.prompt_tokens == own.prompt_tokens
    assert counters["medha_request_success_total"] == load.requests
    assert counters["medha_generation_tokens_total"] == reported.output_tokens
    assert counters["medha_prompt_tokens_total"] == reported.prompt_tokens
    assert counters.get("medha_requests_refused_total", 0) == 0
    # a client begins before its server, and has a token after it
    assert reported.ttft >= own.ttft
    assert reported.output_tokens_per_s == pytest.approx(load.output_tokens * reported.requests_per_s, rel=0.01)
    assert 0 < reported.tpot < reported.e2e


@each_generator
@pytest.mark.parametrize(("load", "tick_ms"), [(SHORT, 5), (LONG, 300)], ids=["short", "long"])
def test_completions_are_counted_as_the_server_counts_them(name, load, tick_ms, tmp_path):
    with MeasuredServer(*SIMULATED, "--tick-ms", tick_ms) as server:
        reported = GENERATORS[name].run(load, server.served, tmp_path)
        check(reported, load, *server.counted())


@each_generator
def test_chats_are_counted_as_the_server_counts_them(name, tmp_path):
    model = chat_model(tmp_path)
    options = ["--model", model, "--mesh", "cpu-small", "--port", 0, "--max-context", 1024]
    with MeasuredServer(*SERVE, *options, model=model.name, directory=model) as server:
        reported = GENERATORS[name].run(CHATS, server.served, tmp_path)
        check(reported, CHATS, *server.counted())


def test_the_long_load_is_told_its_progress():
    """So the generators have read comments."""
    with MeasuredServer(*SIMULATED, "--tick-ms", 300) as server:
        body = {"prompt": [5] * LONG.prompt_tokens, "max_tokens": LONG.output_tokens, "ignore_eos": True}
        assert server.post(body | {"stream": True}).count(b" of 3000 prompt tokens are computed\n\n") > 0


def test_the_figures_of_a_server_are_those_of_its_log():
    with MeasuredServer(*SIMULATED) as server:
        for output in (2, 3, 4):
            server.post({"prompt": [5, 6, 7], "max_tokens": output, "ignore_eos": True})
        own, counters = server.counted()
    assert (own.requests, own.prompt_tokens, own.output_tokens) == (3, 9, 9)
    assert counters["medha_generation_tokens_total"] == 9
    assert own.output_tokens_per_s == pytest.approx(3 * own.requests_per_s)
    assert 0 < own.ttft <= own.ttft_p99 < own.e2e_p99


def test_no_first_token_is_later_than_the_end_of_its_call():
    """Both count from the message, whose parts that mean nothing take a while to read here."""
    with MeasuredServer(*SIMULATED) as server:
        for _ in range(3):
            server.post({"prompt": [5], "max_tokens": 1, "ignore_eos": True, "metadata": [[]] * 30_000})
        own, _ = server.counted()
    assert own.ttft <= own.e2e


def test_a_table_marks_what_differs_by_more_than_5_percent():
    own = Figures(**{field.name: 100 for field in fields(Figures)})
    lines = list(table(replace(own, ttft=104, ttft_p50=106, ttft_p99=94), own))
    assert [line.split("|")[1].strip() for line in lines if "(!)" in line] == ["ttft_p50", "ttft_p99"]
    assert "| ttft | 104 | 100 | +4.0 % |" in lines
