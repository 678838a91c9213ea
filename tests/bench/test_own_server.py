import os
import sys
import time

import pytest

from medha_jax.bench.own_server import OwnServer, ServerStartError
from medha_jax.client import Client
from tests.server.processes import ROOT, wait_until

SAY = [sys.executable, "-u", "-c"]


def test_a_server_is_ready_and_is_ended(monkeypatch):
    monkeypatch.chdir(ROOT)
    with OwnServer(["--tick-ms", "1"], lambda line: None, [sys.executable, "-m", "benchmarks.simulated_server"]) as own:
        assert own.alive and own.start_s > 0
        with Client(own.address) as client:
            assert client.model().name == "simulated"
    assert not own.alive and own.stop() == 0


def test_lines_of_its_start_are_passed_on_and_later_ones_kept():
    lines = []
    script = (
        "import sys, time\nprint('compiling', file=sys.stderr)\nprint('serving x on a:1')\ntime.sleep(0.2)\n"
        "print('later', file=sys.stderr)\ntime.sleep(60)"
    )
    with OwnServer([], lines.append, [*SAY, script]) as own:
        assert own.address == "a:1"
        wait_until(lambda: own.last_line == "later")
    assert lines[0] == "compiling" and own.stop() != 0


@pytest.mark.parametrize(
    "script, code, said",
    [
        ("import sys; print('error: no model', file=sys.stderr); sys.exit(2)", 2, "error: no model"),
        ("print('hello')", 0, "it wrote nothing"),
    ],
)
def test_one_that_does_not_start_says_why(script, code, said):
    with pytest.raises(ServerStartError, match=f"exit code {code} before it was ready: {said}"):
        OwnServer([], lambda line: None, [*SAY, script])


def test_one_that_dies_is_noticed():
    with OwnServer([], lambda line: None, [*SAY, "print('serving x on a:1')"]) as own:
        wait_until(lambda: not own.alive)
    assert own.stop() == 0


def test_an_interrupt_while_it_starts_leaves_no_process():
    script = "import os, time\nprint(os.getpid(), file=__import__('sys').stderr)\ntime.sleep(60)"
    seen = []

    def interrupted(line):
        seen.append(int(line))
        os.kill(os.getpid(), 2)  # as Ctrl-C

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        OwnServer([], interrupted, [*SAY, script])
    assert time.monotonic() - began < 20
    with pytest.raises(ProcessLookupError):
        os.kill(seen[0], 0)
