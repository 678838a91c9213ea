"""Real processes on this machine: equal to one device, refused where they differ, gone when one of them is."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from medha_jax.runtime import open_executor
from medha_jax.text import Tokenizer
from tests.runtime.cluster.conftest import Cluster, free_ports, write_model
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
    [(2, 1, 2, 2), (2, 2, 1, 2), (2, 2, 2, 1)],
    ids=lambda number: str(number),
)
def test_processes_together_give_what_one_device_gives(
    start: Start, expected: dict[str, list[int]], processes: int, tp: int, spp: int, kvp: int
) -> None:
    cluster = start(processes, tp=tp, spp=spp, kvp=kvp, heartbeat=20)
    assert cluster.wait(200) == [0] * processes
    assert [cluster.errors(number) for number in range(processes)] == [""] * processes
    assert cluster.result() == dict(tokens=expected, groups=kvp)


def test_slurm_says_who_is_who(start: Start, expected: dict[str, list[int]]) -> None:
    port = free_ports()
    job = str(random.randrange(2**12))  # the port of JAX's coordinator follows from it

    def slurm(number: int) -> dict[str, str]:
        return {
            "SLURM_JOB_ID": job,
            "SLURM_STEP_NODELIST": "127.0.0.1",
            "SLURM_NTASKS": "2",
            "SLURM_PROCID": str(number),
            "SLURM_LOCALID": str(number),
            "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=2",
        }

    cluster = start(2, slurm, tp=2, spp=2, coordinator=None, plans=f"127.0.0.1:{port}", trusted=True)
    assert cluster.wait(200) == [0, 0], [cluster.errors(number) for number in range(2)]
    assert cluster.result()["tokens"] == expected


def one_line(err: str) -> str:
    """The only line of stderr."""
    assert err.startswith("error: ") and err.count("\n") == 1, err
    return err.removeprefix("error: ").strip()


@pytest.mark.parametrize(
    ("victim", "how", "message"),
    [
        (0, signal.SIGKILL, "lost process 0 at 127.0.0.1"),
        (1, signal.SIGSTOP, "lost process 1: its connection broke, or it was silent for 4 s"),
        (0, signal.SIGSTOP, "lost process 0 at 127.0.0.1"),
    ],
    ids=["leader killed", "follower frozen", "leader frozen"],
)
def test_when_one_process_is_gone_the_other_ends_with_one_line(
    start: Start, victim: int, how: signal.Signals, message: str
) -> None:
    cluster = start(2, tp=2, spp=2, kvp=1, heartbeat=HEARTBEAT, endless=True)
    cluster.wait_serving()
    cluster.members[victim].send_signal(how)
    left = 1 - victim
    assert cluster.wait(60, left) == [1]
    assert message in one_line(cluster.errors(left))


def test_four_processes_give_the_same_and_when_one_is_gone_every_other_one_ends(
    start: Start, expected: dict[str, list[int]]
) -> None:
    cluster = start(4, tp=2, spp=2, kvp=2, heartbeat=2 * HEARTBEAT, endless=True)
    cluster.wait_serving(200)
    assert cluster.result() == dict(tokens=expected, groups=2)
    cluster.members[2].kill()
    assert cluster.wait(60, 0, 1, 3) == [1, 1, 1]
    for number in (0, 1, 3):
        assert "lost process 2: its connection broke" in one_line(cluster.errors(number))


def test_a_process_with_other_settings_is_refused_and_process_0_says_why(start: Start) -> None:
    cluster = start(2, tp=2, spp=2, kvp=1, patience=10, only={1: {"slots": 9}})
    assert cluster.wait(120) == [1, 1], [cluster.errors(number) for number in range(2)]
    said = "process 1 did not connect to the plans within 10 s; process 1 was refused: "
    assert f"{said}its model or configuration differs" in cluster.errors(0)
    assert "refused process 1: " in one_line(cluster.errors(1))
    for number in range(2):
        assert "slots (9; process 0 has 8)" in cluster.errors(number)


@pytest.mark.parametrize(
    ("number", "message"),
    [(0, "process 1 did not connect to the plans within 3 s"), (1, "process 0 at 127.0.0.1")],
    ids=["alone as leader", "alone as follower"],
)
def test_a_process_whose_partner_never_comes_says_who(start: Start, number: int, message: str) -> None:
    cluster = start(2, tp=2, patience=3, only={1 - number: {"absent": True}})
    assert cluster.wait(60, number) == [1]
    assert message in cluster.errors(number)


def test_what_a_process_is_tells_models_and_settings_apart(model: Path, tmp_path: Path) -> None:
    from medha_jax.runtime.cluster.identity import difference, hello

    own = hello(0, config(model))
    copy = write_model(tmp_path / "copy", model / "tokenizer.json", 0)
    other = write_model(tmp_path / "other", model / "tokenizer.json", 1)
    assert difference(own, hello(1, config(copy, compilation_cache=tmp_path))) is None
    assert "process 0: config" not in str(difference(own, hello(1, config(other))))
    assert "process 0: model.safetensors (" in str(difference(own, hello(1, config(other))))
    assert "slots (9; process 0 has 8)" in str(difference(own, hello(1, config(model, slots=9))))
    assert "mesh.kvp (2; process 0 has 1)" in str(difference(own, hello(1, config(model, kvp=2))))
    older = hello(1, config(model))
    older.version = "0.0.1"
    assert "it runs medha-jax 0.0.1, process 0 runs" in str(difference(own, older))
    another = hello(1, config(model))
    another.version = own.version.partition("jaxlib ")[0] + "jaxlib 0.4.2"
    assert "jaxlib 0.4.2, process 0 runs" in str(difference(own, another))
