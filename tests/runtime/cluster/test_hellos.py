"""Who is let in by process 0, who is refused, and that nobody else notices."""

from __future__ import annotations

import threading
import time

import grpc
import pytest

from medha_jax.runtime.cluster import ClusterError
from tests.runtime.cluster.streams import HELLO_SECONDS, join, lead, silent

pytestmark = pytest.mark.timeout(60)


@pytest.mark.parametrize(
    ("hello", "message"),
    [
        (dict(digest="other"), "its model or configuration differs"),
        (dict(version="2"), "it runs medha-jax 2, process 0 runs 1"),
        (dict(process=7), "its process id is 7; allowed are 1 to 1"),
    ],
)
def test_who_does_not_fit_is_refused_and_nobody_else_notices(hello: dict[str, object], message: str) -> None:
    ended: list[str] = []
    notes: list[str] = []
    leader = lead(ended, note=notes.append)
    with pytest.raises(ClusterError, match=message):
        join(leader, **hello)
    join(leader)
    leader.wait_joined(5)
    with pytest.raises(ClusterError, match=message):
        join(leader, **hello)
    leader.stop("done", failed=False)
    assert [message in note for note in notes] == [True, True]
    assert ended == []


def test_the_log_of_refusals_is_bounded() -> None:
    notes: list[str] = []
    leader = lead(note=notes.append)
    for _ in range(30):
        with pytest.raises(ClusterError):
            join(leader, version="2")
    assert 1 <= len(notes) <= 10
    leader.stop("done", failed=False)


def test_silent_streams_end_and_keep_no_worker_out() -> None:
    ended: list[str] = []
    leader = lead(ended)
    with silent(leader, 50) as streams:
        began = time.monotonic()
        join(leader)
        leader.wait_joined(5)
        assert time.monotonic() - began < HELLO_SECONDS + 1
        for stream in streams:
            with pytest.raises(grpc.RpcError):
                next(stream)
            assert stream.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    with silent(leader, 5) as streams:  # after everybody has joined
        for stream in streams:
            with pytest.raises(grpc.RpcError, match="no hello came within 1 s"):
                next(stream)
    leader.stop("done", failed=False)
    assert ended == []


def test_of_many_processes_of_one_id_one_is_let_in() -> None:
    leader = lead(processes=3)
    start, said = threading.Barrier(12), []

    def try_it() -> None:
        start.wait(10)
        try:
            join(leader)
            said.append("joined")
        except ClusterError as error:
            said.append(str(error).partition("; ")[0].partition(": ")[2])

    threads = [threading.Thread(target=try_it) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(said) == ["joined"] + ["there is a process 1 already"] * 11
    join(leader, process=2)
    leader.wait_joined(1)
    leader.stop("done", failed=False)
