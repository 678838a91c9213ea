"""The executor of process 0 for a mesh over several processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import TypeVar

import numpy as np

from medha_jax.plan import Admission, PageCopy, ScoreQuery, Slice, StepPlan, TokenResult
from medha_jax.protos import plans_pb2 as pb
from medha_jax.runtime.cluster.answering import answering
from medha_jax.runtime.cluster.errors import ClusterError
from medha_jax.runtime.cluster.leader import Leader
from medha_jax.runtime.cluster.wire import (
    COPIES,
    decode_results,
    encode_admission,
    encode_copies,
    encode_masks,
    encode_plan,
    encode_slice,
)
from medha_jax.runtime.executor import MeshExecutor
from medha_jax.runtime.tick_results import SliceHandle, TickHandle, local_results, slice_results

T = TypeVar("T")


@dataclass(frozen=True)
class ClusterHandle:
    """A tick or slice that was sent to every process."""

    sequence: int
    own: TickHandle | SliceHandle


class ClusterExecutor:
    """Runs plans on the devices of all processes, with the interface of `MeshExecutor`.

    Every command goes to the followers before process 0 runs it. The executor is a context manager: its exit stops
    the followers, as failed if an exception is raised. The followers of `leader` must be ready.
    """

    def __init__(self, executor: MeshExecutor, leader: Leader) -> None:
        self._executor, self._leader = executor, leader
        self.config, self.sizes, self.vocab = executor.config, executor.sizes, executor.vocab
        self.prefix_cacheable, self.ahead = executor.prefix_cacheable, executor.ahead
        self.slice_lengths, self.host, self.grid = executor.slice_lengths, executor.host, executor.grid
        self._stages: tuple[StepPlan, ...] = ()  # of the slice that was sent last
        self._closed = self._failed = False

    def usable(self) -> bool:
        """Whether all processes have the same state. An error on this process alone ends that."""
        return not self._failed and self._executor.usable()

    def renew(self) -> None:
        """Raise ClusterError: the followers' state is unknown, so all processes must be restarted."""
        raise ClusterError("an error took the state of one process; all processes have to be started again")

    def grow(self) -> None:
        """There is nothing to wait for: every process compiles all shapes before it is ready."""

    def admit(self, admission: Admission) -> None:
        """Give a slot to a request on every group."""
        self._leader.broadcast(pb.Command(admit=encode_admission(admission)))
        self._run(lambda: self._executor.admit(admission))

    def set_masks(self, slots: Sequence[int], masks: np.ndarray) -> None:
        """Say what admitted requests may sample next; see `MeshExecutor.set_masks`."""
        self._leader.broadcast(pb.Command(masks=encode_masks(slots, masks)))
        self._run(lambda: self._executor.set_masks(slots, masks))

    def adopt(self, slot: int, group: int, pages: Sequence[int]) -> None:
        """Give filled pages to an admitted request; see `MeshExecutor.adopt`."""
        self._leader.broadcast(pb.Command(adopt=pb.Adopt(slot=slot, group=group, pages=pages)))
        self._run(lambda: self._executor.adopt(slot, group, pages))

    def copy_pages(self, copies: Sequence[PageCopy]) -> None:
        """Copy KV pages to and from each process's host memory; see `MeshExecutor.copy_pages`."""
        for first in range(0, len(copies), COPIES):
            some = copies[first : first + COPIES]
            self._leader.broadcast(pb.Command(copy=encode_copies(some)))
            self._run(partial(self._executor.copy_pages, some))

    def submit(self, plan: StepPlan) -> ClusterHandle:
        """Dispatch one tick on every process.

        Raises:
            UnknownShapeError: the plans in flight are larger than every compiled shape; nothing was dispatched.
        """
        self._executor.bucket(plan)
        sequence = self._leader.broadcast(pb.Command(tick=encode_plan(plan)))
        return ClusterHandle(sequence, self._run(lambda: self._executor.submit(plan)))

    def submit_slice(self, work: Slice) -> ClusterHandle:
        """Dispatch a slice on every process.

        Raises:
            UnknownShapeError: its layers or its chunks are no compiled shape's; nothing was dispatched.
        """
        self._executor.slice_shape(work)
        sequence = self._leader.broadcast(pb.Command(slice=encode_slice(work, self._stages)))
        self._stages = work.stages
        return ClusterHandle(sequence, self._run(lambda: self._executor.submit_slice(work)))

    def score(self, handle: ClusterHandle, queries: Mapping[int, ScoreQuery]) -> ClusterHandle:
        """Raise ValueError; `start.lead` refuses such a runtime."""
        raise ValueError("a mesh over several processes does not score prompts")

    def collect(self, handle: ClusterHandle) -> list[TokenResult]:
        """Wait for a tick or slice; one result per chunk that left the last stage in it, in order.

        Raises:
            ClusterError: a follower's results do not match the plan.
        """
        own = handle.own
        if isinstance(own, SliceHandle):
            return self._run(lambda: slice_results(own))
        results = self._run(lambda: local_results(own))
        expected = answering(own)
        missing = {number: process for number, process in expected.items() if number not in results}
        for process in sorted(set(missing.values())):
            wanted = {number for number, of in missing.items() if of == process}
            try:
                theirs = decode_results(self._leader.results(handle.sequence, process))
            except ValueError as error:
                raise ClusterError(f"process {process} sent results that cannot be read: {error}") from None
            if set(theirs) != wanted:
                raise ClusterError(
                    f"process {process} sent results of chunks {sorted(theirs)}; expected were {sorted(wanted)}"
                )
            results.update(theirs)
        return [results[number] for number in range(len(own.leaving.chunks))]

    def close(self, reason: str = "process 0 is done", failed: bool = False) -> None:
        """Stop the followers; further calls do nothing."""
        if not self._closed:
            self._closed = True
            self._leader.stop(reason, failed)

    def __enter__(self) -> ClusterExecutor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            self.close(f"process 0 failed: {str(error) or type(error).__name__}", failed=True)

    def _run(self, work: Callable[[], T]) -> T:
        try:
            return work()
        except Exception as error:
            self._failed = True
            if not isinstance(error, RuntimeError):
                raise
            self._leader.await_cause()  # a collective fails if a partner process is gone
            raise
