"""Attention to keys and values that are spread over the devices of a mesh axis.

Each device attends to its own keys, and the parts are merged by log-sum-exp. What travels is as
large as queries and outputs, however many keys there are. Queries that are spread too are
gathered for it, and each device gets its part of the sum.

Letters: `b` scenes, `t` query tokens, `s` key tokens, `m` heads, `c` head size.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from lvsm_jax.models.attention import Part, attention, attention_with_lse
from lvsm_jax.models.part_gradients import part_gradients


def cross_attention(
    q: Float[Array, "b t m c"],
    k: Float[Array, "b s m c"],
    v: Float[Array, "b s m c"],
    *,
    implementation: str = "auto",
) -> Float[Array, "b t m c"]:
    """As `lvsm_jax.models.attention.attention`, also where a mesh axis cuts the keys' tokens.

    The queries' tokens are cut by the same axis, or by none.
    """
    if _cut(k)[1] is None:
        return attention(q, k, v, implementation=implementation)
    return _spread(q, k, v, implementation)


def merge_over(
    part: Part, axis: str, *, scatter: bool, dtype: Any
) -> tuple[Float[Array, "b own m c"], Float[Array, "b t m"]]:
    """Attention to the keys of all devices along an axis from that of each to its own.

    For use under `jax.shard_map`. Weights are exact in float32; `dtype` is what travels.

    Args:
        part: what `attention_with_lse` returned on this device; without keys, `-inf` as logarithm.
        axis: name of the mesh axis.
        scatter: whether each device gets its part of the query tokens, else all.
        dtype: of the attention.

    Returns:
        The attention, and the logarithms of sums of all query tokens.
    """
    out, lse = part
    largest = jax.lax.pmax(lse, axis)
    # Where no device has keys, -inf - -inf would be NaN.
    weights = jnp.exp(lse - jnp.where(jnp.isneginf(largest), 0.0, largest))
    sums = jax.lax.psum(weights, axis)
    share = weights / jnp.maximum(sums, jnp.finfo(jnp.float32).tiny)
    out = (out.astype(jnp.float32) * share[..., None]).astype(dtype)
    return sum_over(out, axis, scatter=scatter), largest + jnp.log(sums)


def sum_over(x: Float[Array, "b t m c"], axis: str, *, scatter: bool) -> Float[Array, "b own m c"]:
    """The sum over the devices along an axis, or this device's part of its query tokens."""
    if scatter:
        return jax.lax.psum_scatter(x, axis, scatter_dimension=1, tiled=True)
    return jax.lax.psum(x, axis)


def _cut(x: Array) -> Any:
    """By which mesh axes the dimensions of an array are cut."""
    sharding = jax.typeof(x).sharding
    return (None,) * x.ndim if sharding.mesh.empty else sharding.spec


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _spread(q: Array, k: Array, v: Array, implementation: str) -> Array:
    return _forward(q, k, v, implementation)[0]


def _forward(q: Array, k: Array, v: Array, implementation: str) -> tuple[Array, tuple]:
    queries, keys = _cut(q), _cut(k)
    axis, scatter = keys[1], queries[1] is not None

    def local(q: Array, k: Array, v: Array) -> tuple:
        part = attention_with_lse(all_tokens(q, axis, scatter), k, v, implementation=implementation)
        return merge_over(part, axis, scatter=scatter, dtype=q.dtype)

    out, lse = jax.shard_map(
        local,
        in_specs=(queries, keys, keys),
        out_specs=(queries, P(queries[0])),
        check_vma=False,
    )(q, k, v)
    return out, (q, k, v, out, lse)


def _backward(implementation: str, saved: tuple, g: Array) -> tuple[Array, Array, Array]:
    q, k, v, out, lse = saved
    queries, keys = _cut(q), _cut(k)
    axis, scatter = keys[1], queries[1] is not None

    def local(q: Array, k: Array, v: Array, out: Array, lse: Array, g: Array) -> tuple:
        mean = (out.astype(jnp.float32) * g.astype(jnp.float32)).sum(axis=-1)
        q, mean, g = (all_tokens(x, axis, scatter) for x in (q, mean, g))
        dq, dk, dv = part_gradients(q, k, v, lse, mean, g, implementation=implementation)
        return sum_over(dq.astype(q.dtype), axis, scatter=scatter), dk, dv

    return jax.shard_map(
        local,
        in_specs=(queries, keys, keys, queries, P(queries[0]), queries),
        out_specs=(queries, keys, keys),
        check_vma=False,
    )(q, k, v, out, lse, g)


_spread.defvjp(_forward, _backward)


def all_tokens(x: Float[Array, "b k ..."], axis: str, are_spread: bool) -> Float[Array, "b t ..."]:
    """The tokens of all devices along an axis, where they are spread; under `jax.shard_map`."""
    return jax.lax.all_gather(x, axis, axis=1, tiled=True) if are_spread else x
