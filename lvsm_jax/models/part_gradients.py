"""Gradients of an attention whose keys are in several places, from the keys of one of them.

Kernels differentiate a softmax over the keys they are given. Here it is over more, of which the
logarithm of sums is known. Flash attention's backward pass starts from that anyway: on TPUs JAX's
own is called, by a name that is not public, for JAX's version is pinned.

Letters: `b` scenes, `t` query tokens, `s` key tokens, `m` heads, `c` head size.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lvsm_jax.models.attention import blocks, checked, map_parts, platform, splash_kernel

# Scores that a pass may hold on GPUs and TPUs: 256 MB, a few times.
_BLOCK_SCORES = 2**26

Gradients = tuple[Float[Array, "b t m c"], Float[Array, "b s m c"], Float[Array, "b s m c"]]


def part_gradients(
    q: Float[Array, "b t m c"],
    k: Float[Array, "b s m c"],
    v: Float[Array, "b s m c"],
    lse: Float[Array, "b t m"],
    mean: Float[Array, "b t m"],
    g: Float[Array, "b t m c"],
    *,
    implementation: str = "auto",
) -> Gradients:
    """What a part of the keys adds to the gradients of an attention to more keys.

    Args:
        q: queries.
        k: keys of the part.
        v: values of the part.
        lse: logarithm of the sum of `exp(q·kᵀ / √c)` over all keys.
        mean: the attention to all keys times its gradient `g`, summed over the channels.
        g: gradient of the attention to all keys.
        implementation: as of `models.attention.attention`; all but `splash` are `blocked`, with
            larger blocks where there is no CPU's cache to keep them in.

    Returns:
        The part's summand of the queries' gradient, in float32, and the gradients of `k` and `v`.
    """
    implementation = checked(implementation, q, k)
    function = _splash if implementation == "splash" else _blocked
    dq, dk, dv = function(q, k, v, lse, mean, g.astype(q.dtype))
    return dq.astype(jnp.float32), dk.astype(k.dtype), dv.astype(v.dtype)


def _splash(q: Array, k: Array, v: Array, lse: Array, mean: Array, g: Array) -> Gradients:
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash

    kernel, scale = splash_kernel(q, k), 1 / math.sqrt(q.shape[-1])
    blocks = kernel.kwargs["block_sizes"]
    names = ("is_mqa", "mask_value", "attn_logits_soft_cap", "mask_function", "interpret")
    backward = functools.partial(
        splash._splash_attention_bwd_dkv,
        bq=blocks.block_q_dkv,
        bkv=blocks.block_kv_dkv,
        bkv_compute=blocks.block_kv_dkv_compute,
        q_layout=blocks.q_layout,
        k_layout=blocks.k_layout,
        v_layout=blocks.v_layout,
        use_fused_bwd_kernel=True,
        mask_info=kernel.dkv_mask_info,
        **{name: kernel.kwargs[name] for name in names},
    )

    def one_scene(q: Array, k: Array, v: Array, lse: Array, mean: Array, g: Array) -> tuple:
        return backward(q, k, v, None, None, lse, g, mean)

    arrays = (jnp.moveaxis(x, 2, 1) for x in (q * scale, k, v, lse, mean, g))
    dq, dk, dv = (jnp.moveaxis(x, 1, 2) for x in jax.vmap(one_scene)(*arrays))
    return dq * scale, dk, dv


def _blocked(q: Array, k: Array, v: Array, lse: Array, mean: Array, g: Array) -> Gradients:
    (b, t, m, c), s = q.shape, k.shape[1]
    limit = () if platform(q) == "cpu" else (_BLOCK_SCORES,)
    at_once, queries = blocks(b * m, t, s, *limit)
    scale = 1 / math.sqrt(c)

    def product(a: Array, b: Array, contract: tuple[int, int]) -> Array:
        dimensions = (((contract[0],), (contract[1],)), ((0,), (0,)))
        return jax.lax.dot_general(a, b, dimensions, preferred_element_type=jnp.float32)

    def some_heads(xs: tuple) -> tuple:
        (q, g, lse, mean), (k, v) = xs

        def some_queries(done: tuple, xs: tuple) -> tuple[tuple, Array]:
            q, g, lse, mean = xs
            weights = jnp.exp(product(q, k, (2, 2)) * scale - lse[..., None])
            d_scores = weights * (product(g, v, (2, 2)) - mean[..., None]) * scale
            weights, d_scores = weights.astype(v.dtype), d_scores.astype(k.dtype)
            new = product(d_scores, q, (1, 1)), product(weights, g, (1, 1))
            return jax.tree.map(jnp.add, done, new), product(d_scores, k, (2, 1))

        xs = jax.tree.map(
            lambda x: x.reshape(at_once, t // queries, queries, *x.shape[2:]).swapaxes(0, 1),
            (q, g, lse, mean),
        )
        nothing = (jnp.zeros(k.shape, jnp.float32),) * 2
        (dk, dv), dq = jax.lax.scan(some_queries, nothing, xs)
        return dq.swapaxes(0, 1).reshape(at_once, t, c), dk.astype(k.dtype), dv.astype(v.dtype)

    def by_heads(x: Array) -> Array:
        x = jnp.moveaxis(x, 2, 1)
        return x.reshape(b * m // at_once, at_once, *x.shape[2:])

    xs = jax.tree.map(by_heads, ((q, g, lse, mean), (k, v)))
    return tuple(
        jnp.moveaxis(x.reshape(b, m, *x.shape[2:]), 1, 2) for x in map_parts(some_heads, xs)
    )
