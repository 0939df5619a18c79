"""Attention to keys and values that are sharded over the mesh axis `view`.

Each device attends to its own keys, and the results are merged by log-sum-exp. What travels is as
large as queries and outputs, however many keys there are. Sharded queries are gathered for it, and
each device gets the outputs of its own.

Letters: `b` scenes, `t` query tokens, `s` key tokens, `m` heads, `c` head size.
"""

import functools
import math
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from lvsm_jax.models import attention
from lvsm_jax.models.attention import attention_with_lse
from lvsm_jax.models.blocked_attention import Gradients, Partial, blocked_gradients
from lvsm_jax.parallel.mesh import axes_of, per_device, view_devices


def merge_shards(
    attend: Callable[[Float[Array, "b t m c"]], Partial],
    q: Float[Array, "b own m c"],
    *,
    sharded_queries: bool,
) -> tuple[Float[Array, "b own m c"], Float[Array, "b t m"]]:
    """Attention of `q` to the keys of all devices along `view`, and the log-sum-exp of all queries.

    For use under `per_device`. `attend` is attention of all queries to this device's keys. `q` are
    this device's queries, or all. Weights are exact in float32; what travels has the dtype of the
    queries.
    """
    return merge_devices(attend(gather_tokens(q, sharded_queries)), q.dtype, sharded_queries)


def merge_devices(
    partial: Partial, dtype: Any, are_sharded: bool
) -> tuple[Float[Array, "b own m c"], Float[Array, "b t m"]]:
    """Of all queries' attention to each device's keys, that to the keys of all devices.

    For use under `per_device`. Outputs travel in `dtype`; each device gets those of its own
    queries where these are sharded, else all.
    """
    out, lse = partial
    if view_devices() == 1:
        return out.astype(dtype), lse
    # A constant to gradients, of which pmax has none: it cancels.
    largest = jax.lax.pmax(jax.lax.stop_gradient(lse), "view")
    # Where no device has keys, -inf - -inf would be NaN.
    weights = jnp.exp(lse - jnp.where(jnp.isneginf(largest), 0.0, largest))
    sums = jax.lax.psum(weights, "view")
    share = weights / jnp.maximum(sums, jnp.finfo(jnp.float32).tiny)
    out = (out.astype(jnp.float32) * share[..., None]).astype(dtype)
    return _sum_tokens(out, are_sharded), largest + jnp.log(sums)


def gather_tokens(x: Float[Array, "b own ..."], are_sharded: bool) -> Float[Array, "b t ..."]:
    """The tokens of all devices along `view`, where they are sharded; under `per_device`."""
    return jax.lax.all_gather(x, "view", axis=1, tiled=True) if are_sharded else x


def _sum_tokens(x: Float[Array, "b t m c"], are_sharded: bool) -> Float[Array, "b own m c"]:
    if are_sharded:
        return jax.lax.psum_scatter(x, "view", scatter_dimension=1, tiled=True)
    return jax.lax.psum(x, "view")


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def sharded_attention(
    q: Float[Array, "b t m c"],
    k: Float[Array, "b s m c"],
    v: Float[Array, "b s m c"],
    implementation: str,
) -> Float[Array, "b t m c"]:
    """As `attention`, of keys whose tokens `view` cuts, and queries whose tokens it cuts or not."""
    return _forward(q, k, v, implementation)[0]


def _forward(q: Array, k: Array, v: Array, implementation: str) -> tuple[Array, tuple]:
    queries, keys, sharded_queries = P(*axes_of(q)), P(*axes_of(k)), axes_of(q)[1] is not None

    def local(q: Array, k: Array, v: Array) -> tuple[Array, Array]:
        attend = functools.partial(attention_with_lse, k=k, v=v, implementation=implementation)
        return merge_shards(attend, q, sharded_queries=sharded_queries)

    out, lse = per_device(local, (queries, keys, keys), (queries, P(queries[0])))(q, k, v)
    return out, (q, k, v, out, lse)


def _backward(implementation: str, saved: tuple, g: Array) -> tuple[Array, Array, Array]:
    q, k, *_ = saved
    queries, keys, sharded_queries = P(*axes_of(q)), P(*axes_of(k)), axes_of(q)[1] is not None

    def local(q: Array, k: Array, v: Array, out: Array, lse: Array, g: Array) -> tuple:
        mean = (out.astype(jnp.float32) * g.astype(jnp.float32)).sum(axis=-1)
        q, mean, g = (gather_tokens(x, sharded_queries) for x in (q, mean, g))
        dq, dk, dv = shard_gradients(q, k, v, lse, mean, g, implementation=implementation)
        return _sum_tokens(dq.astype(q.dtype), sharded_queries), dk, dv

    specs = (queries, keys, keys, queries, P(queries[0]), queries)
    return per_device(local, specs, (queries, keys, keys))(*saved, g)


sharded_attention.defvjp(_forward, _backward)


def shard_gradients(
    q: Float[Array, "b t m c"],
    k: Float[Array, "b s m c"],
    v: Float[Array, "b s m c"],
    lse: Float[Array, "b t m"],
    mean: Float[Array, "b t m"],
    g: Float[Array, "b t m c"],
    *,
    implementation: str = "auto",
) -> Gradients:
    """Backward pass of attention for one shard of the keys, given the global log-sum-exp.

    `g` is the gradient of the attention to all keys, and `mean` that attention times `g`, summed
    over the channels. All implementations but `splash` go by blocks. Returns the shard's summand of
    the queries' gradient, in float32, and the gradients of `k` and `v`.
    """
    splash = _splash_backward() if attention.choose(implementation, q, k) == "splash" else None
    saved = q, k, v, lse, mean, g.astype(q.dtype)
    if splash is None:
        dq, dk, dv = blocked_gradients(*saved)
    else:
        dq, dk, dv = _splash(splash, *saved)
    return dq.astype(jnp.float32), dk.astype(k.dtype), dv.astype(v.dtype)


def _splash_backward() -> Callable[..., Any] | None:
    """The backward pass of JAX's splash attention, whose name is not public; None if it is gone."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash

    if (function := getattr(splash, "_splash_attention_bwd_dkv", None)) is None:
        warnings.warn(
            f"jax {jax.__version__} has no _splash_attention_bwd_dkv: where mesh.view is above 1, "
            "the backward pass of attention is slower than with the version that pyproject names",
            stacklevel=2,
        )
    return function


def _splash(
    backward: Callable, q: Array, k: Array, v: Array, lse: Array, mean: Array, g: Array
) -> Gradients:
    kernel, scale = attention.splash_kernel(q, k), 1 / math.sqrt(q.shape[-1])
    blocks = kernel.kwargs["block_sizes"]
    names = ("is_mqa", "mask_value", "attn_logits_soft_cap", "mask_function", "interpret")
    one_scene = functools.partial(
        backward,
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
    q, k, v, lse, g, mean = (x.swapaxes(1, 2) for x in (q * scale, k, v, lse, g, mean))
    gradients = jax.vmap(one_scene)(q, k, v, None, None, lse, g, mean)
    dq, dk, dv = (x.swapaxes(1, 2) for x in gradients)
    return dq * scale, dk, dv
