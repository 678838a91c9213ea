"""What one device of a layout keeps, computes and sends, from the sizes of model and mesh, without JAX.

Tests compare the counts with `medha_jax.runtime.memory` and with the collectives that `medha-jax inspect` reads from
traced programs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from medha_jax.config import GROUP, STAGE, TENSOR, MeshConfig
from medha_jax.plan import mask_words
from medha_jax.simulate.hardware import SpecError
from medha_jax.specs.buckets import Bucket, all_buckets, slice_shapes
from medha_jax.specs.layout import Layout
from medha_jax.specs.model import Architecture
from medha_jax.specs.sizes import ITEM_BYTES, Sizes, pages_for

SLOT_COLUMNS = 6 + 9 + 24 + 2 * 300 + 1024  # 4-byte settings of a slot; the last three are its lists
COUNTS = 4 + 1  # bytes per vocabulary entry: how often it was generated, whether it was in the prompt


@dataclass(frozen=True)
class Collective:
    """A collective that runs `count` times a tick or slice; its result on one device has `nbytes`."""

    kind: str
    axis: str
    nbytes: int
    count: int


@dataclass(frozen=True)
class DeviceSizes:
    """One device's part of a model on a mesh; weights, activations and KV have the same dtype.

    Raises:
        SpecError: the model cannot be divided over the mesh, or the size of the dtype is not known.
    """

    model: Architecture
    mesh: MeshConfig
    dtype: str = "bfloat16"

    def __post_init__(self) -> None:
        if self.dtype not in ITEM_BYTES:
            raise SpecError(f"dtype is {self.dtype!r}; allowed are {', '.join(ITEM_BYTES)}")
        if found := self.layout.misfits(self.model):
            raise SpecError("; ".join(found))

    @cached_property
    def layout(self) -> Layout:
        """How the model is divided."""
        return Layout.of(self.mesh)

    @property
    def itemsize(self) -> int:
        """Bytes of one number."""
        return ITEM_BYTES[self.dtype]

    @property
    def layers(self) -> int:
        """Layers of a stage after padding: 5 on 4 stages are 2."""
        return self.layout.padded_layers(self.model.layers) // self.mesh.spp

    @property
    def heads(self) -> int:
        """Query heads of the device."""
        return self.model.heads // self.mesh.tp

    @property
    def kv_heads(self) -> int:
        """KV heads of the device; heads are repeated if there are fewer than devices."""
        return self.layout.expanded_kv_heads(self.model.kv_heads) // self.mesh.tp

    @cached_property
    def vocab(self) -> int:
        """Rows of the padded vocabulary on all devices that share it."""
        return self.layout.padded_vocab(self.model.vocab)

    @cached_property
    def buckets(self) -> tuple[Bucket, ...]:
        """Every shape that the mesh compiles."""
        return all_buckets(self.mesh.buckets, self.mesh.spread_buckets)

    @cached_property
    def slice_shapes(self) -> tuple[Bucket, ...]:
        """Every shape of slices that the mesh compiles."""
        return slice_shapes(self.mesh.buckets, self.mesh.spread_buckets)

    @cached_property
    def layer_weights(self) -> int:
        """Elements of one layer's matrices."""
        model = self.model
        ffn = model.ffn // self.mesh.tp
        return model.embed * (2 * (self.heads + self.kv_heads) * model.head_dim + 3 * ffn)

    @cached_property
    def head_weights(self) -> int:
        """Elements of the device's part of the output head; stages divide it, too."""
        return self.vocab // (self.mesh.tp * self.mesh.spp) * self.model.embed

    @cached_property
    def weight_bytes(self) -> int:
        """Bytes of all parameters; stages have the embedding whole and a share of the head, unless it is the same."""
        model = self.model
        queries, keys = self.heads * model.head_dim, self.kv_heads * model.head_dim
        vectors = 2 * model.embed + model.qk_norm * 2 * model.head_dim
        vectors += model.qkv_bias * (queries + 2 * keys) + model.output_bias * model.embed
        vectors += model.mlp_bias * (2 * model.ffn // self.mesh.tp + model.embed)
        head = 0 if model.tied_embeddings else self.head_weights
        ends = self.vocab // self.mesh.tp * model.embed + head + model.embed
        return (self.layers * (self.layer_weights + vectors) + ends) * self.itemsize

    @cached_property
    def kv_token_bytes(self) -> int:
        """Bytes of a token's KV in all layers and heads of the device."""
        return 2 * self.layers * self.kv_heads * self.model.head_dim * self.itemsize

    @cached_property
    def attention_flops(self) -> int:
        """FLOP for one row to attend to one token of its context, in all layers and heads of the device."""
        return 4 * self.layers * self.heads * self.model.head_dim

    @cached_property
    def register_bytes(self) -> int:
        """Bytes of the hidden states that a stage receives."""
        rows = max(bucket.rows for bucket in self.buckets) if self.mesh.spp > 1 else 1
        return rows * self.model.embed * self.itemsize

    @cached_property
    def held_bytes(self) -> int:
        """Bytes of the hidden states that rest between slices."""
        return max((shape.rows for shape in self.slice_shapes), default=1) * self.model.embed * self.itemsize

    def slot_bytes(self, slots: int, context: int) -> int:
        """Bytes of page tables, sampling settings, masks and token counts of all slots."""
        width = Sizes.on(self.mesh, context).table_width
        words = width + 1 + SLOT_COLUMNS + mask_words(self.model.vocab)
        return slots * (4 * words + COUNTS * self.model.vocab)

    def pool_bytes(self, tokens: int) -> int:
        """Bytes of a group's pool of `tokens` tokens, in whole pages."""
        return pages_for(tokens, self.mesh.page_size) * self.mesh.page_size * self.kv_token_bytes

    def collectives(self, bucket: Bucket) -> tuple[Collective, ...]:
        """Every collective of one tick of a shape."""
        mesh, model, size = self.mesh, self.model, self.itemsize
        hidden, samples = bucket.rows * model.embed * size, bucket.samples
        found = []
        if mesh.tp > 1:
            # after attention and MLP of every layer, and after the embedding
            found.append(Collective("all-reduce", TENSOR, hidden, 2 * self.layers + 1))
            found.append(Collective("all-gather", TENSOR, samples * self.vocab * 4, 1))
        if mesh.spp > 1:
            found.append(Collective("collective-permute", STAGE, hidden, 1))
            found.append(Collective("all-reduce", STAGE, samples * model.embed * size, 1))
            found.append(Collective("all-gather", STAGE, samples * self.vocab // mesh.tp * 4, 1))
        found += self._merges(bucket, self.layers)
        return tuple(found)

    def slice_collectives(self, shape: Bucket, layers: int) -> tuple[Collective, ...]:
        """Every collective of a slice of `layers` layers. It always embeds and hands on, used or not."""
        mesh = self.mesh
        hidden = shape.rows * self.model.embed * self.itemsize
        found = []
        if mesh.tp > 1:
            found.append(Collective("all-reduce", TENSOR, hidden, 2 * layers + 1))
        if mesh.spp > 1:
            found.append(Collective("collective-permute", STAGE, hidden, 1))
        return (*found, *self._merges(shape, layers))

    def _merges(self, shape: Bucket, layers: int) -> list[Collective]:
        """What groups exchange about the rows that they share: attention output and its log-sum-exp in fp32."""
        mesh = self.mesh
        if mesh.kvp == 1 or not shape.shared.rows:
            return []
        row = self.heads * (self.model.head_dim * self.itemsize + 4)
        return [Collective("all-gather", GROUP, mesh.kvp * shape.shared.rows * row, layers)]
