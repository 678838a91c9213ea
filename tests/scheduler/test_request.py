"""A request's record: its way from phase to phase, and that nothing else writes it."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import medha_jax
from medha_jax.config import SchedulerConfig
from medha_jax.kv.groups import GroupedPages
from medha_jax.scheduler.request import Phase, RequestState, SchedulerRequest

PACKAGE = Path(medha_jax.__file__).parent
FIELDS = {field.name for field in dataclasses.fields(RequestState)}


def test_the_way_of_a_request_that_is_preempted() -> None:
    pages = GroupedPages(1, 10, 4, 2**20)
    state = RequestState.new(0, SchedulerRequest(range(10), 3, 0.0), SchedulerConfig())
    assert (state.phase, state.to_feed, state.queued, state.running) == (Phase.WAITING, 10, True, False)
    state.admit(pages.reserve(8, (0,)), 1)
    assert (state.phase, state.owners, state.slot, state.running) == (Phase.PREFILLING, (0,), 1, True)
    state.plan_prompt_chunk(8)
    assert (state.phase, state.chunks, state.queued) == (Phase.PREFILLING, [8], True)
    state.plan_prompt_chunk(10)
    assert (state.phase, state.chunks, state.queued, state.in_flight) == (Phase.DECODING, [8, 2], False, 2)
    state.chunk_left(8, None)
    state.preempt()
    assert (state.phase, state.running, state.in_flight) == (Phase.LEAVING, False, 1)
    state.chunk_left(10, 77)
    assert (state.computed, list(state.generated)) == (10, [77])
    state.release()
    state.requeue(5.0)
    assert (state.phase, state.to_feed, state.scheduled, state.holding) == (Phase.WAITING, 11, 0, None)
    assert (state.preemptions, state.preempted_at, state.ids(9, 11)) == (1, 5.0, (9, 77))
    state.end()
    assert (state.phase, state.queued) == (Phase.ENDED, False)


def test_an_incomplete_prompt_keeps_its_last_token() -> None:
    state = RequestState.new(0, SchedulerRequest([1, 2, 3], 5, 0.0, bound=8), SchedulerConfig())
    assert (state.to_feed, state.complete) == (2, False)
    state.admit(GroupedPages(1, 10, 4, 2**20).reserve(8, (0,)), 0)
    state.plan_prompt_chunk(2)
    assert (state.phase, state.queued) == (Phase.PREFILLING, False), "more is to come"
    state.grow([4], complete=False)
    assert (state.to_feed, state.queued) == (3, True)
    state.grow([], complete=True)
    assert (state.to_feed, state.request.max_tokens, state.complete) == (4, 4, True)


def test_ids_are_views_of_the_prompt_and_joined_across_its_end() -> None:
    for prompt in ([5, 6, 7], range(5, 8)):
        state = RequestState.new(0, SchedulerRequest(prompt, 3, 0.0), SchedulerConfig())
        state.generated.extend([8, 9])
        read = {(start, end): tuple(state.ids(start, end)) for start in range(6) for end in range(start, 6)}
        assert read == {(start, end): (5, 6, 7, 8, 9)[start:end] for start, end in read}
    state = RequestState.new(0, SchedulerRequest([5, 6, 7], 3, 0.0), SchedulerConfig())
    assert np.shares_memory(np.asarray(state.ids(1, 3)), np.asarray(state.request.prompt))


def written(tree: ast.AST) -> Iterator[ast.Attribute]:
    """Attributes that a file writes; lists that are changed count too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and not isinstance(node.ctx, ast.Load):
            yield node
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            called = node.func
            if called.attr in {"append", "extend", "clear", "insert", "pop"} and isinstance(
                called.value, ast.Attribute
            ):
                yield called.value


def violations(path: Path) -> list[str]:
    """Writes of a request's record: of any object in the scheduler, and of what is called `state` elsewhere."""
    found = []
    for node in written(ast.parse(path.read_text(encoding="utf-8"))):
        name = node.value.id if isinstance(node.value, ast.Name) else ""
        suspect = name not in {"self", "rows"} if "scheduler" in path.parts else name == "state"
        if suspect and node.attr in FIELDS:
            found.append(f"{path.relative_to(PACKAGE)}:{node.lineno}: {name}.{node.attr}")
    return found


def test_only_its_own_methods_write_a_request_s_record() -> None:
    files = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "request.py")
    assert not [line for path in files for line in violations(path)]


@pytest.mark.parametrize(
    "line", ["state.slot = 1", "a.b, state.slot = 1, 2", "state.in_flight -= 1", "state.chunks.append(1)"]
)
def test_a_write_is_seen(line: str) -> None:
    assert FIELDS & {node.attr for node in written(ast.parse(line))}
