"""Softmax attention behind one function, with the fastest kernel of each backend.

Letters: `t` query tokens, `s` key tokens, `m` heads, `c` head size.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from lvsm_jax.common.errors import UserError

IMPLEMENTATIONS = ("auto", "xla", "blocked", "cudnn", "splash")

# Scores that one pass of `blocked` may hold: 4 MB, which stays in a CPU's cache.
_BLOCK_SCORES = 2**20
# Name under which remat policies find what the fused kernel's backward pass needs of its forward.
SAVED_ATTENTION = "attention"
# Splash attention works on tiles of 128 tokens; longer ones are faster while VMEM lasts.
_SPLASH_BLOCKS = (1024, 512, 256, 128)


def attention(
    q: Float[Array, "*batch t m c"],
    k: Float[Array, "*batch s m c"],
    v: Float[Array, "*batch s m c"],
    *,
    implementation: str = "auto",
) -> Float[Array, "*batch t m c"]:
    """`softmax(q·kᵀ / √c)·v` for each head, with the softmax in float32.

    Args:
        q: queries.
        k: keys.
        v: values.
        implementation: `auto` takes the best for the backend and the shapes, else one of
            `xla` (`jax.nn.dot_product_attention`; runs everywhere),
            `blocked` (a few heads at a time so that the scores stay in the CPU's cache),
            `cudnn` (fused, NVIDIA, bfloat16 or float16),
            `splash` (fused, TPU, numbers of tokens that are multiples of 128; interpreted,
            hence slow, on other backends).

    Raises:
        ValueError: unknown implementation, or shapes that it cannot take.
    """
    implementation = checked(implementation, q, k)
    kernel = {
        "xla": functools.partial(jax.nn.dot_product_attention, implementation="xla"),
        "blocked": lambda q, k, v: _blocked(q, k, v)[0],
        "cudnn": functools.partial(jax.nn.dot_product_attention, implementation="cudnn"),
        "splash": lambda q, k, v: _splash(q, k, v)[0],
    }[implementation]
    return _on_each_device(kernel, q, k, v)


def attention_with_lse(
    q: Float[Array, "b t m c"],
    k: Float[Array, "b s m c"],
    v: Float[Array, "b s m c"],
    *,
    lengths: Int[Array, "b"] | None = None,
    implementation: str = "auto",
) -> tuple[Float[Array, "b t m c"], Float[Array, "b t m"]]:
    """Attention to a part of the keys, with what `merge_attention` needs to add other parts.

    Args:
        q: queries.
        k: keys.
        v: values.
        lengths: how many keys, from the first, count in each scene; all by default.
        implementation: as of `attention`; `blocked` and `splash` where there are no lengths, and
            `cudnn`, else `xla`.

    Returns:
        The attention, and the logarithm of the sum of `exp(q·kᵀ / √c)`, in float32; `cudnn` and
        `xla` give it as rounded to the dtype of the keys (by `jax.nn.dot_product_attention`).
    """
    implementation = checked(implementation, q, k)
    if implementation == "blocked" and lengths is None:
        return _blocked(q, k, v)
    if implementation == "splash" and lengths is None:
        return _splash(q, k, v, with_lse=True)
    return jax.nn.dot_product_attention(
        q,
        k,
        v,
        key_value_seq_lengths=lengths,
        implementation="cudnn" if implementation == "cudnn" else "xla",
        return_residual=True,
    )


def attention_entropy(
    q: Float[Array, "b t m c"], k: Float[Array, "b s m c"]
) -> Float[Array, "b t m"]:
    """Entropy of each query's weights, in nats: 0 looks at one key, log(s) at all alike.

    By `log Σ exp(logits) - Σ weights · logits`, and the second sum is `q` times the attention whose
    values are the keys: no kernel has to show its weights. In float32, for it is a difference of
    numbers that are much alike.
    """
    q, k = q.astype(jnp.float32), k.astype(jnp.float32)
    mean_key, lse = attention_with_lse(q, k, k, implementation="blocked")
    return lse - (q * mean_key).sum(axis=-1) / math.sqrt(q.shape[-1])


def skips_by_length(implementation: str, dtype: Any) -> bool:
    """Whether `attention_with_lse` does no work for keys beyond `lengths`; else it masks them."""
    return implementation == "cudnn" or (implementation == "auto" and _has_cudnn(dtype))


Part = tuple[Float[Array, "b t m c"], Float[Array, "b t m"]]


def merge_attention(a: Part, b: Part) -> Part:
    """Attention to the keys of two parts from what `attention_with_lse` returned for each.

    Exact, and in float32. A part without keys has the logarithm `-inf`.
    """
    (out_a, lse_a), (out_b, lse_b) = a, b
    lse = jnp.logaddexp(lse_a, lse_b)
    # Of two empty parts, -inf - -inf would be NaN.
    finite = jnp.where(jnp.isneginf(lse), 0.0, lse)
    weight_a, weight_b = (jnp.exp(part - finite)[..., None] for part in (lse_a, lse_b))
    return out_a * weight_a + out_b * weight_b, lse


def checked(implementation: str, q: Array, k: Array) -> str:
    """The implementation, with `auto` resolved; see `attention`."""
    if implementation not in IMPLEMENTATIONS:
        raise UserError(f"attention implementation {implementation!r}: not in {IMPLEMENTATIONS}")
    return _best(q, k) if implementation == "auto" else implementation


def _has_cudnn(dtype: Any) -> bool:
    return jax.default_backend() == "gpu" and jnp.dtype(dtype) in (jnp.bfloat16, jnp.float16)


def _best(q: Array, k: Array) -> str:
    backend = platform(q)
    if backend == "cpu":
        return "blocked"
    if _has_cudnn(q.dtype):
        return "cudnn"
    if backend == "tpu" and q.shape[-3] % 128 == 0 and k.shape[-3] % 128 == 0:
        return "splash"
    return "xla"


def platform(x: Array) -> str:
    """The kind of device that the program is for: that of the mesh of `x`, if it lives on one.

    Programs are also compiled for devices that are not here, see `lvsm_jax.programs.aot`.
    """
    mesh = jax.typeof(x).sharding.mesh
    device = None if mesh.empty else mesh.abstract_device
    return jax.default_backend() if device is None else device.platform


def _on_each_device(kernel: Callable[..., Array], q: Array, k: Array, v: Array) -> Array:
    """Runs the kernel on every device's own scenes, with the leading dimensions made one.

    Fused kernels and loops over scenes know nothing of sharding, so they run under `shard_map`.
    """

    def local(q: Array, k: Array, v: Array) -> Array:
        flat = (x.reshape(-1, *x.shape[-3:]) for x in (q, k, v))
        return kernel(*flat).reshape(q.shape)

    sharding = jax.typeof(q).sharding
    if sharding.mesh.empty or not any(sharding.spec[:-3]):
        return local(q, k, v)
    batch = P(*sharding.spec[:-3])
    return jax.shard_map(local, in_specs=(batch,) * 3, out_specs=batch, check_vma=False)(q, k, v)


def _blocked(q: Array, k: Array, v: Array) -> tuple[Array, Array]:
    """Attention over a few (scene, head) pairs at a time, and the logarithms of its sums.

    On CPUs the time goes into moving scores through memory: with scores that stay in the cache it
    is three times as fast as `jax.nn.dot_product_attention` (docs/benchmarks.md).
    """
    b, t, m, c = q.shape
    s = k.shape[1]
    q = (q * (1 / math.sqrt(c))).transpose(0, 2, 1, 3).reshape(b * m, t, c)
    k = k.transpose(0, 2, 3, 1).reshape(b * m, c, s)
    v = v.transpose(0, 2, 1, 3).reshape(b * m, s, c)
    pairs, queries = blocks(b * m, t, s)

    def batched(a: Array, b: Array) -> Array:
        # jnp.matmul drops a batch of one, and remat policies would take it for a linear layer.
        dimensions = (((2,), (1,)), ((0,), (0,)))
        return jax.lax.dot_general(a, b, dimensions, preferred_element_type=jnp.float32)

    def block(q: Array, k: Array, v: Array) -> tuple[Array, Array]:
        scores = batched(q, k)
        largest = scores.max(axis=-1, keepdims=True)
        weights = jnp.exp(scores - largest)
        sums = weights.sum(axis=-1, keepdims=True)
        out = batched(weights.astype(v.dtype), v)
        return (out / sums).astype(v.dtype), (largest + jnp.log(sums))[..., 0]

    def some_pairs(qkv: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        q, k, v = qkv
        q = q.reshape(pairs, t // queries, queries, c).swapaxes(0, 1)
        out, lse = map_parts(lambda q: block(q, k, v), q)
        return out.swapaxes(0, 1).reshape(pairs, t, c), lse.swapaxes(0, 1).reshape(pairs, t)

    parts = tuple(x.reshape(-1, pairs, *x.shape[1:]) for x in (q, k, v))
    out, lse = map_parts(some_pairs, parts)
    return (
        out.reshape(b, m, t, c).transpose(0, 2, 1, 3),
        lse.reshape(b, m, t).transpose(0, 2, 1),
    )


def map_parts(function: Callable[..., Any], xs: Any) -> Any:
    """`jax.lax.map`, without a loop where there is one element."""
    if len(jax.tree.leaves(xs)[0]) == 1:
        return jax.tree.map(lambda x: x[None], function(jax.tree.map(lambda x: x[0], xs)))
    return jax.lax.map(function, xs)


def blocks(pairs: int, queries: int, keys: int, scores: int | None = None) -> tuple[int, int]:
    """How many (scene, head) pairs and queries to take at once, for so many scores at most."""
    scores = _BLOCK_SCORES if scores is None else scores
    some = _largest_divisor(queries, scores // keys)
    return _largest_divisor(pairs, scores // (some * keys)), some


def _largest_divisor(number: int, limit: int) -> int:
    """The largest divisor up to the limit, and at least 1."""
    return max(n for n in range(1, max(1, min(number, limit)) + 1) if number % n == 0)


def _splash(q: Array, k: Array, v: Array, *, with_lse: bool = False) -> tuple[Array, Array | None]:
    """Has no gradient `with_lse`."""
    kernel = splash_kernel(q, k, with_lse=with_lse)
    q, k, v = (x.transpose(0, 2, 1, 3) for x in (q * (1 / math.sqrt(q.shape[-1])), k, v))
    result = jax.vmap(kernel)(q, k, v)
    out, lse = (result[0], result[1][0].transpose(0, 2, 1)) if with_lse else (result, None)
    return out.transpose(0, 2, 1, 3).astype(v.dtype), lse


def splash_kernel(q: Array, k: Array, *, with_lse: bool = False) -> Any:
    """JAX's kernel for these shapes: of queries times 1 / √c, heads before tokens, one scene."""
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    (t, m), s = q.shape[1:3], k.shape[1]
    if t % 128 or s % 128:
        raise UserError(
            f"splash attention needs numbers of tokens that are multiples of 128, got {t} queries "
            f"and {s} keys; use attention='xla'"
        )
    block_q = next(block for block in _SPLASH_BLOCKS if t % block == 0)
    block_kv = next(block for block in _SPLASH_BLOCKS if s % block == 0)
    return splash.make_splash_mha(
        mask=splash.MultiHeadMask([splash.FullMask((t, s))] * m),
        head_shards=1,
        q_seq_shards=1,
        block_sizes=splash.BlockSizes(
            block_q=block_q,
            block_kv=block_kv,
            block_kv_compute=min(block_kv, 512),
            block_q_dkv=block_q,
            block_kv_dkv=block_kv,
            block_kv_dkv_compute=min(block_kv, 512),
            use_fused_bwd_kernel=True,
            # As the norms before leave them: otherwise the compiler copies them, each channel-minor
            # head padded to twice its size.
            q_layout=splash.QKVLayout.SEQ_MINOR,
            k_layout=splash.QKVLayout.SEQ_MINOR,
            v_layout=splash.QKVLayout.SEQ_MINOR,
        ),
        residual_checkpoint_name=SAVED_ATTENTION,
        interpret=platform(q) != "tpu",
        save_residuals=with_lse,
    )
