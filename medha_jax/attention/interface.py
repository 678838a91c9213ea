"""The interface of attention to the runtime.

To add an implementation, write a class with these methods and add a case to `implementations.choose`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from jax import Array

from medha_jax.attention.pool import Pool
from medha_jax.attention.rotate import Angles
from medha_jax.specs.buckets import Bucket

Fields = Mapping[str, Array]  # of a plan on the device, by name
FieldViews = Mapping[str, np.ndarray]  # of a plan on the host, to write into


@dataclass(frozen=True)
class PlanField:
    """One int32 field of a plan. A `shape` of `()` is a single number; `meaning` is a sentence."""

    name: str
    shape: tuple[int, ...]
    meaning: str


class RowRun(NamedTuple):
    """Consecutive rows of one request in a tick, as one group sees them.

    Local positions count from the request's first token on this group.

    Args:
        row: the first row in the tick.
        length: number of rows.
        start: local position of the first row; beyond `limit` on a group that holds an earlier part of the request.
        limit: the request's tokens on this group after this tick's are stored; 0 if it holds none.
        owner: the group stores the rows' keys and values.
        shared: every group has the rows.
    """

    row: int
    length: int
    slot: int
    start: int
    limit: int
    owner: bool
    shared: bool


class TickRows(NamedTuple):
    """The rows of a tick, as one group sees them: decodes, by columns `[decodes]`, and longer runs.

    Args:
        row: of each decode.
        slot: of its request.
        start: its local position, as in `RowRun`.
        seen: local tokens that it sees, itself included if this group owns it.
        stored: places of the decodes that this group stores.
        longer: the runs of prompt chunks.
    """

    row: np.ndarray
    slot: np.ndarray
    start: np.ndarray
    seen: np.ndarray
    stored: np.ndarray | slice
    longer: Sequence[RowRun] = ()


class WorkLayout(Protocol):
    """The plan fields that attention needs for one compiled shape."""

    @property
    def fields(self) -> Sequence[PlanField]:
        """Fields beside those of every tick (`runtime.plan_layout`)."""

    def write(self, view: FieldViews, rows: TickRows) -> None:
        """Write the fields, initially 0, for the rows of a tick on one group."""

    def work(self, fields: Fields) -> Any:
        """The `work` argument of `Attention.store` and `Attention.attend`; traced."""


class Attention(Protocol):
    """Stores keys and values in the paged pool and attends to them, on one mesh."""

    @property
    def name(self) -> str:
        """Name in messages, e.g. `xla`."""

    @property
    def why(self) -> str:
        """Reason for the choice, for messages."""

    @property
    def lowers_alone(self) -> bool:
        """Whether programs must be lowered one at a time."""

    def layout(self, bucket: Bucket) -> WorkLayout:
        """The plan fields that it needs for one compiled shape."""

    def store(
        self,
        pool: Pool,
        layer: Array,
        table: Array,
        queries: Array,
        keys: Array,
        values: Array,
        angles: Angles,
        work: Any,
    ) -> tuple[Array, Pool]:
        """Rotate the tick's queries and keys of one layer, and store keys and values.

        Args:
            pool: all layers; changed in place if donated.
            layer: a scalar.
            table: pages of every slot `[slots, pages_per_slot]`.
            queries: `[rows, heads, head_dim]`.
            keys: `[rows, kv_heads, head_dim]`, as `values`; padding rows are not stored. What is not finite is stored
                as 0.
            work: from the layout of the tick's shape.

        Returns:
            The rotated queries, and the pool. Queries of a row are NaN where its keys or values are not finite, at
            least those that share the KV head: zeros are stored there, which must not look like an answer.
        """

    def attend(self, queries: Array, pool: Pool, layer: Array, table: Array, work: Any) -> tuple[Array, Array]:
        """Attend from every row to the tokens of its request that this pool holds, up to its own position.

        Args:
            queries: `[rows, heads, head_dim]`, as `store` returns them.
            pool: all layers, with this tick's keys and values.

        Returns:
            Output `[rows, heads, head_dim]` in the queries' dtype, and the fp32 natural log-sum-exp `[rows, heads]` of
            the scaled scores. Rows that see no token here are 0, with a log-sum-exp of -inf. Where a query is NaN and
            sees a token, so is its output.
        """

    def merge_groups(self, out: Array, packed: Array, first: int) -> Array:
        """Merge the groups' attention over disjoint parts of the KV of shared rows (`attention.merge`).

        Args:
            out: this group's `[rows, heads, head_dim]`.
            packed: every group's part of the shared rows, as `attention.merge.pack` packs it
                `[groups, shared_rows, heads, packed]`.
            first: the first shared row.

        Returns:
            `out` with the merged rows from `first` on.
        """
