"""Attention block by block, so that a CPU's cache holds the scores, forward and backward.

The backward pass computes the scores again, as flash attention does (arXiv 2205.14135).
Letters: `t` query tokens, `s` key tokens, `m` heads, `c` head size.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lvsm_jax.common.platforms import platform_of

# Scores that a block may hold: on CPUs 4 MB, which stay in the cache. Elsewhere 256 MB, since the
# launches of many small blocks cost more there than the passes over memory.
_SCORES_ON_CPUS, _SCORES_ON_CHIPS = 2**20, 2**26

# Attention, and the log-sum-exp of its logits.
Partial = tuple[Float[Array, "b t m c"], Float[Array, "b t m"]]
Gradients = tuple[Float[Array, "b t m c"], Float[Array, "b s m c"], Float[Array, "b s m c"]]


@jax.custom_vjp
def blocked_attention(
    q: Float[Array, "b t m c"], k: Float[Array, "b s m c"], v: Float[Array, "b s m c"]
) -> Partial:
    """Attention of a few (scene, head) pairs at a time, and its log-sum-exp.

    On CPUs the time goes into moving scores through memory: where they stay in the cache, this is
    three times as fast as `jax.nn.dot_product_attention` (docs/benchmarks.md).
    """
    b, t, m, c = q.shape
    s = k.shape[1]
    q = (q * (1 / math.sqrt(c))).transpose(0, 2, 1, 3).reshape(b * m, t, c)
    k = k.transpose(0, 2, 3, 1).reshape(b * m, c, s)
    v = v.transpose(0, 2, 1, 3).reshape(b * m, s, c)
    pairs, queries = block_sizes(b * m, t, s, block_scores(q))

    def block(q: Array, k: Array, v: Array) -> tuple[Array, Array]:
        scores = batched_product(q, k)
        largest = scores.max(axis=-1, keepdims=True)
        weights = jnp.exp(scores - largest)
        sums = weights.sum(axis=-1, keepdims=True)
        out = batched_product(weights.astype(v.dtype), v)
        return (out / sums).astype(v.dtype), (largest + jnp.log(sums))[..., 0]

    def some_pairs(qkv: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        q, k, v = qkv
        q = q.reshape(pairs, t // queries, queries, c).swapaxes(0, 1)
        out, lse = map_blocks(lambda q: block(q, k, v), q)
        return out.swapaxes(0, 1).reshape(pairs, t, c), lse.swapaxes(0, 1).reshape(pairs, t)

    out, lse = map_blocks(some_pairs, tuple(x.reshape(-1, pairs, *x.shape[1:]) for x in (q, k, v)))
    return out.reshape(b, m, t, c).swapaxes(1, 2), lse.reshape(b, m, t).swapaxes(1, 2)


def _forward(q: Array, k: Array, v: Array) -> tuple[Partial, tuple]:
    out, lse = blocked_attention(q, k, v)
    return (out, lse), (q, k, v, out, lse)


def _backward(saved: tuple, gradients: Partial) -> Gradients:
    q, k, v, out, lse = saved
    g, g_lse = gradients
    # The log-sum-exp changes with the logits by the weights, as the mean does that is subtracted.
    mean = (out.astype(jnp.float32) * g.astype(jnp.float32)).sum(axis=-1) - g_lse
    dq, dk, dv = blocked_gradients(q, k, v, lse, mean, g.astype(q.dtype))
    return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype)


blocked_attention.defvjp(_forward, _backward)


def blocked_gradients(
    q: Float[Array, "b t m c"],
    k: Float[Array, "b s m c"],
    v: Float[Array, "b s m c"],
    lse: Float[Array, "b t m"],
    mean: Float[Array, "b t m"],
    g: Float[Array, "b t m c"],
) -> Gradients:
    """Gradients of `q`, `k` and `v` where that of the attention to them is `g`.

    `lse` is the log-sum-exp, of all keys where these are some of them; `mean` the attention times
    `g`, summed over the channels.
    """
    (b, t, m, c), s = q.shape, k.shape[1]
    pairs, queries = block_sizes(b * m, t, s, block_scores(q))
    product, scale = batched_product, 1 / math.sqrt(c)

    def some_pairs(xs: tuple) -> tuple:
        by_query, (k, v) = xs

        def some_queries(done: tuple, xs: tuple) -> tuple[tuple, Array]:
            q, g, lse, mean = xs
            weights = jnp.exp(product(q, k, (2, 2)) * scale - lse[..., None])
            d_scores = weights * (product(g, v, (2, 2)) - mean[..., None]) * scale
            weights, d_scores = weights.astype(v.dtype), d_scores.astype(k.dtype)
            # [c, s]: on CPUs [s, c] takes four times as long.
            new = product(q, d_scores, (1, 1)), product(g, weights, (1, 1))
            return jax.tree.map(jnp.add, done, new), product(d_scores, k)

        def by_block(x: Array) -> Array:
            return x.reshape(pairs, t // queries, queries, *x.shape[2:]).swapaxes(0, 1)

        zeros = (jnp.zeros((pairs, c, s), jnp.float32),) * 2
        (dk, dv), dq = jax.lax.scan(some_queries, zeros, jax.tree.map(by_block, by_query))
        dk, dv = (x.swapaxes(1, 2).astype(k.dtype) for x in (dk, dv))
        return dq.swapaxes(0, 1).reshape(pairs, t, c), dk, dv

    def by_pairs(x: Array) -> Array:
        x = x.swapaxes(1, 2)
        return x.reshape(b * m // pairs, pairs, *x.shape[2:])

    xs = jax.tree.map(by_pairs, ((q, g, lse, mean), (k, v)))
    gradients = map_blocks(some_pairs, xs)
    return tuple(x.reshape(b, m, *x.shape[2:]).swapaxes(1, 2) for x in gradients)


def batched_product(a: Array, b: Array, contract: tuple[int, int] = (2, 1)) -> Array:
    """The matmul of each pair in a batch, summed over these dimensions, in float32."""
    # jnp.matmul drops a batch of one, and remat policies would take it for a linear layer.
    dimensions = (contract[:1], contract[1:]), ((0,), (0,))
    return jax.lax.dot_general(a, b, dimensions, preferred_element_type=jnp.float32)


def map_blocks(function: Callable[..., Any], xs: Any) -> Any:
    """`jax.lax.map`, without a loop where there is one element."""
    if len(jax.tree.leaves(xs)[0]) == 1:
        return jax.tree.map(lambda x: x[None], function(jax.tree.map(lambda x: x[0], xs)))
    return jax.lax.map(function, xs)


def block_scores(x: Array) -> int:
    """How many scores a block may hold where `x` is, or is compiled for."""
    is_cpu = platform_of(jax.typeof(x).sharding.mesh) == "cpu"
    return _SCORES_ON_CPUS if is_cpu else _SCORES_ON_CHIPS


def block_sizes(pairs: int, queries: int, keys: int, scores: int) -> tuple[int, int]:
    """How many (scene, head) pairs and queries a block takes, to hold at most so many scores."""
    some = largest_divisor(queries, scores // keys)
    return largest_divisor(pairs, scores // (some * keys)), some


def largest_divisor(number: int, limit: int) -> int:
    """The largest divisor up to the limit, and at least 1."""
    return max(n for n in range(1, max(1, min(number, limit)) + 1) if number % n == 0)
