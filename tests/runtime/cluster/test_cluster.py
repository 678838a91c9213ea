"""Real processes on this machine: equal to one device, refused where they differ, gone when one of them is."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from medha_jax.runtime import open_executor
from medha_jax.text import Tokenizer
from tests.runtime.cluster.conftest import Cluster, write_model
from tests.runtime.cluster.member import config, serve

Start = Callable[..., Cluster]
pytestmark = pytest.mark.timeout(240)
HEARTBEAT = 4.0


@pytest.fixture(scope="module")
def expected(model: Path) -> dict[str, list[int]]:
    """What one device gives."""
    return serve(open_executor(config(model), lambda line: None), Tokenizer.from_directory(model))


@pytest.mark.parametrize(
    ("processes", "tp", "spp", "kvp"),
    [(2, 1, 2, 2), (2, 2, 2, 1)],
    ids=lambda number: str(number),
)
def test_processes_together_give_what_one_device_gives(
    start: Start, expected: dict[str, list[int]], processes: int, tp: int, spp: int, kvp: int
) -> None:
    done = start(processes, tp=tp, spp=spp, kvp=kvp, heartbeat=20).wait(200)
    assert [(code, err) for code, _, err in done] == [(0, "")] * processes
    said = json.loads(done[0][1].splitlines()[-1])
    alone, adopted = said.pop("adopted")
    assert alone == adopted
    assert said == dict(tokens=expected, groups=kvp)


def one_line(err: str) -> str:
    """The only line of stderr."""
    assert err.startswith("error: ") and err.count("\n") == 1, err
    return err.removeprefix("error: ").strip()


@pytest.mark.parametrize(
    ("victim", "how", "message"),
    [
        (1, signal.SIGKILL, "lost process 1: its connection broke"),
        (0, signal.SIGKILL, "lost process 0 at 127.0.0.1"),
    ],
    ids=["follower killed", "leader killed"],
)
def test_when_one_process_is_gone_the_others_end_with_one_line(
    start: Start, victim: int, how: signal.Signals, message: str
) -> None:
    cluster = start(2, tp=2, spp=2, kvp=1, heartbeat=HEARTBEAT, endless=True)
    cluster.wait_serving()
    cluster.members[victim].send_signal(how)
    left = cluster.members[1 - victim]
    _, err = left.communicate(timeout=60)
    assert left.returncode == 1
    assert message in one_line(err)


def test_what_a_process_is_tells_models_and_settings_apart(model: Path, tmp_path: Path) -> None:
    from medha_jax.runtime.cluster.identity import difference, hello

    own = hello(0, config(model))
    copy = write_model(tmp_path / "copy", model / "tokenizer.json", 0)
    other = write_model(tmp_path / "other", model / "tokenizer.json", 1)
    assert difference(own, hello(1, config(copy, compilation_cache=tmp_path))) is None
    assert "differs" in str(difference(own, hello(1, config(other))))
    assert "differs" in str(difference(own, hello(1, config(model, seed=1))))
    older = hello(1, config(model))
    older.version = "0.0.1"
    assert "it runs medha-jax 0.0.1, process 0 runs" in str(difference(own, older))
