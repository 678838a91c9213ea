"""The decoder of all families: pre-norm blocks of grouped-query attention and a gated MLP.

Modules compute with one device's slice of the weights. They read sizes from the arrays, and `reduce` adds up the
results of the tensor axis. Rows are tokens of any requests. `Form` says how weights and hidden states lie.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from itertools import accumulate
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from medha_jax.models.form import STORED, Form, LayerMatrix
from medha_jax.models.parameters import ParameterSpec, declare
from medha_jax.specs.model import Architecture

Attend = Callable[[Any, Array, Array, Array], tuple[Array, Any]]
Reduce = Callable[[Array], Array]
Parts = tuple[Array, ...]  # hidden states, their rows in parts

normal = nnx.initializers.normal(0.02)
ones, zeros = nnx.initializers.ones, nnx.initializers.zeros


def identity(x: Array) -> Array:
    """The `reduce` of a mesh without a tensor axis."""
    return x


def in_parts(x: Float[Array, "rows width"], sizes: Sequence[int]) -> Parts:
    """The rows of `x` in parts of these sizes, in order."""
    ends = list(accumulate(sizes))
    return tuple(x[end - size : end] for size, end in zip(sizes, ends, strict=True)) if len(ends) > 1 else (x,)


def rms_norm(x: Float[Array, "*shape"], scale: Float[Array, " width"], epsilon: float, axis: int = -1) -> Array:
    """RMS normalisation (arXiv 1910.07467) along an axis of `width` entries, in fp32."""
    wide = x.astype(jnp.float32)
    wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=axis, keepdims=True) + epsilon)
    return (scale if axis == -1 else scale[:, None]) * wide.astype(x.dtype)


class Norm(nnx.Module):
    """`rms_norm` with its learned scale."""

    def __init__(self, epsilon: float, dtype: Any, rngs: nnx.Rngs, axis: int = -1, **axes: int) -> None:
        self.epsilon, self.axis = epsilon, axis
        self.scale = declare(rngs, ones, dtype, **axes)

    def __call__(self, x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """Normalise each row."""
        return rms_norm(x, self.scale[...], self.epsilon, self.axis)


class Projection(nnx.Module):
    """A matrix over named axes; `inputs` and `outputs` may each be several dimensions."""

    def __init__(
        self, inputs: dict[str, int], outputs: dict[str, int], bias: bool, dtype: Any, rngs: nnx.Rngs, form: Form
    ) -> None:
        self.form = form
        self.leading = len(outputs if form.placed else inputs)
        axes = {**outputs, **inputs} if form.placed else {**inputs, **outputs}
        self.kernel = declare(rngs, normal, dtype, **axes)
        self.bias = declare(rngs, zeros, dtype, **outputs) if bias else None

    def __call__(self, x: Array, reduce: Reduce = identity) -> Array:
        """`[rows, in]` to `[rows, out]`, or `[in, rows]` to `[out, rows]` as the form says.

        `reduce` adds up the devices' partial products.
        """
        # 2-D products only, because XLA on CPU is several times slower for dots with more dimensions
        kernel = self.kernel[...]
        y = reduce(self.form.product(x, kernel.reshape(math.prod(kernel.shape[: self.leading]), -1)))
        return y if self.bias is None else y + self.form.along_rows(self.bias[...].reshape(-1))


class SelfAttention(nnx.Module):
    """Grouped-query attention (arXiv 2305.13245); the `attend` argument handles the KV cache."""

    def __init__(self, arch: Architecture, dtype: Any, rngs: nnx.Rngs, form: Form) -> None:
        self.form, self.head_dim = form, arch.head_dim
        width = {"head_dim": arch.head_dim}
        project = partial(Projection, {"embed": arch.embed}, bias=arch.qkv_bias, dtype=dtype, rngs=rngs, form=form)
        if form.placed:
            self.query_key_value = project({"all_heads": arch.heads + 2 * arch.kv_heads, **width})
        else:
            self.query = project({"heads": arch.heads, **width})
            self.key, self.value = (project({"kv_heads": arch.kv_heads, **width}) for _ in range(2))
        queries = {"heads": arch.heads, **width}
        self.output = Projection(queries, {"embed": arch.embed}, arch.output_bias, dtype, rngs, form)
        norm = partial(Norm, arch.norm_epsilon, dtype, rngs, **width)
        self.query_norm = norm() if arch.qk_norm else None
        self.key_norm = norm() if arch.qk_norm else None

    def __call__(self, parts: Parts, cache: Any, attend: Attend, reduce: Reduce) -> tuple[Parts, Any]:
        """Project, attend with all rows at once and project back; returns the cache as well."""
        query, key, value = self._projected(parts)
        if self.query_norm is not None and self.key_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        attended, cache = attend(cache, query, key, value)
        own = in_parts(attended.reshape(attended.shape[0], -1), [self.form.rows(x) for x in parts])
        return tuple(self.output(self.form.turned(x), reduce) for x in own), cache

    def _projected(self, parts: Parts) -> tuple[Array, Array, Array]:
        """Queries, keys and values of all rows, `[rows, heads, head_dim]` each."""

        def heads(project: Projection) -> Array:
            done: list[Array] = []
            for x in parts:
                if done:
                    # else XLA may wait for the sum over the tensor axis in `x` before it multiplies the part before
                    x, done[-1] = jax.lax.optimization_barrier((x, done[-1]))
                done.append(self.form.turned(project(x)))
            y = jnp.concatenate(done)
            return y.reshape(y.shape[0], -1, self.head_dim)

        if not self.form.placed:
            return heads(self.query), heads(self.key), heads(self.value)
        both = heads(self.query_key_value)
        queries = self.form.query_heads
        query, key, value = jnp.split(both, (queries, (queries + both.shape[1]) // 2), axis=1)
        return query, key, value


class MLP(nnx.Module):
    """SwiGLU feed-forward block (arXiv 2002.05202)."""

    def __init__(self, arch: Architecture, dtype: Any, rngs: nnx.Rngs, form: Form) -> None:
        self.form = form
        embed, ffn = {"embed": arch.embed}, {"ffn": arch.ffn}
        project = partial(Projection, embed, bias=arch.mlp_bias, dtype=dtype, rngs=rngs, form=form)
        if form.placed:
            self.gate_up = project({"gate_up": 2 * arch.ffn})
        else:
            self.gate, self.up = project(ffn), project(ffn)
        self.down = Projection(ffn, embed, arch.mlp_bias, dtype, rngs, form)

    def __call__(self, x: Float[Array, "rows embed"], reduce: Reduce) -> Float[Array, "rows embed"]:
        """Widen, gate and project back."""
        if self.form.placed:
            gate, up = jnp.split(self.gate_up(x), 2, axis=self.form.width_axis)
        else:
            gate, up = self.gate(x), self.up(x)
        return self.down(jax.nn.silu(gate) * up, reduce)


class Layer(nnx.Module):
    """One decoder block."""

    def __init__(self, arch: Architecture, dtype: Any, rngs: nnx.Rngs, form: Form = STORED) -> None:
        norm = partial(Norm, arch.norm_epsilon, dtype, rngs, form.width_axis, embed=arch.embed)
        self.attention_norm = norm()
        self.attention = SelfAttention(arch, dtype, rngs, form)
        self.mlp_norm = norm()
        self.mlp = MLP(arch, dtype, rngs, form)

    def __call__(self, parts: Parts, cache: Any, attend: Attend, reduce: Reduce = identity) -> tuple[Parts, Any]:
        """Apply the block; returns hidden states and the cache.

        Args:
            parts: hidden states `[rows, embed]`, or `[embed, rows]` as the form says; so is the result. Rows may be in
                several parts. Only `attend` needs all of them, so a part's sum over the tensor axis can run beside the
                products of another part, those of the next block included.
            cache: keys and values, for `attend`.
            attend: `(cache, query [rows, heads, head_dim], key, value [rows, kv_heads, head_dim]) -> ([rows, heads,
                head_dim], cache)`; rotates queries and keys by position, stores keys and values, then attends to all
                tokens that the rows may see.
            reduce: sums partial results over the tensor axis.
        """
        attended, cache = self.attention(tuple(map(self.attention_norm, parts)), cache, attend, reduce)
        parts = tuple(x + more for x, more in zip(parts, attended, strict=True))
        return tuple(x + self.mlp(self.mlp_norm(x), reduce) for x in parts), cache


class Decoder(nnx.Module):
    """Embedding, blocks and head. `layers` is one `Layer` whose arrays have a leading layer axis."""

    def __init__(self, arch: Architecture, dtype: Any, rngs: nnx.Rngs) -> None:
        self.embedding = declare(rngs, normal, dtype, vocab=arch.vocab, embed=arch.embed)

        @nnx.split_rngs(splits=arch.layers)
        @nnx.vmap(in_axes=(0,), out_axes=0)
        def stack(rngs: nnx.Rngs) -> Layer:
            return Layer(arch, dtype, rngs)

        self.layers = stack(rngs)
        self.norm = Norm(arch.norm_epsilon, dtype, rngs, embed=arch.embed)
        tied = arch.tied_embeddings
        self.head = None if tied else declare(rngs, normal, dtype, vocab=arch.vocab, embed=arch.embed)


@cache
def parameter_specs(arch: Architecture, dtype: Any) -> Mapping[str, ParameterSpec]:
    """Every parameter of the model by dotted path, e.g. `layers.attention.query.kernel`; allocates nothing.

    Stacked parameters have the logical axis `layers` first.
    """
    model = nnx.eval_shape(lambda: Decoder(arch, dtype, nnx.Rngs(0)))
    specs = {}
    for path, variable in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        value = variable.get_value()
        prefix = ("layers",) if path[0] == "layers" else ()
        axes = prefix + tuple(variable.get_metadata()["axes"])
        specs[".".join(map(str, path))] = ParameterSpec(tuple(value.shape), value.dtype, axes)
    return MappingProxyType(specs)


@cache
def layer_graph(
    arch: Architecture, dtype: Any, form: Form = STORED
) -> Callable[[Mapping[str, Array | LayerMatrix]], Layer]:
    """Return a function that makes a `Layer` of one layer's arrays in this form, keyed by path below `layers.`.

    It merges only while tracing, so the compiled program has plain arrays.
    """
    layer = nnx.eval_shape(lambda: Layer(arch, dtype, nnx.Rngs(0), form))
    graph, state = nnx.split(layer, nnx.Param)

    def merge(arrays: Mapping[str, Array | LayerMatrix]) -> Layer:
        flat = [(path, old.replace(arrays[".".join(map(str, path))])) for path, old in nnx.to_flat_state(state)]
        return nnx.merge(graph, nnx.from_flat_state(flat))

    return merge


def final_logits(
    x: Float[Array, "rows embed"], scale: Float[Array, " embed"], head: Float[Array, "vocab embed"], epsilon: float
) -> Float[Array, "rows vocab"]:
    """Logits in fp32 over the given part of the vocabulary, from the output of the last block."""
    x = rms_norm(x, scale, epsilon)

    def product(x: Array) -> Array:
        return jax.lax.dot_general(x, head, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)

    if x.shape[0] > 1:
        return product(x)

    # With a single row, XLA for GPUs would first write the whole head in fp32, in every tick.
    def padded(x: Array) -> Array:
        return product(jnp.pad(x, ((0, 7), (0, 0))))[:1]

    logits: Array = jax.lax.platform_dependent(x, default=product, cuda=padded)
    return logits
