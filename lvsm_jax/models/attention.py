"""Softmax attention behind one function, with the fastest kernel of each backend.

Letters: `t` query tokens, `s` key tokens, `m` heads, `c` head size.
"""

import math
import warnings
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from lvsm_jax.common.checks import check_choice
from lvsm_jax.common.errors import UserError
from lvsm_jax.common.platforms import platform_of
from lvsm_jax.models.blocked_attention import Partial, blocked_attention
from lvsm_jax.parallel.mesh import axes_of, per_device

IMPLEMENTATIONS = ("auto", "xla", "blocked", "cudnn", "splash")

# Name by which remat policies save what splash attention's backward pass needs of its forward.
SAVED_ATTENTION = "attention"


def attention(
    q: Float[Array, "*batch t m c"],
    k: Float[Array, "*batch s m c"],
    v: Float[Array, "*batch s m c"],
    *,
    implementation: str = "auto",
) -> Float[Array, "*batch t m c"]:
    """`softmax(q·kᵀ / √c)·v` for each head, with the softmax in float32.

    A mesh cuts queries, keys and values alike, by their leading dimensions. The implementation
    `auto` takes the best for the backend and the shapes, else it is one of
    `xla` (`jax.nn.dot_product_attention`; runs everywhere),
    `blocked` (a few heads at a time so that the scores stay in the CPU's cache),
    `cudnn` (fused, NVIDIA, bfloat16 or float16),
    `splash` (fused, TPU, numbers of tokens that are multiples of 128; interpreted, hence slow, on
    other backends). Raises UserError for an unknown one, or shapes that it cannot take.
    """
    implementation = choose(implementation, q, k)

    def local(q: Array, k: Array, v: Array) -> Array:
        flat = [x.reshape(-1, *x.shape[-3:]) for x in (q, k, v)]  # leading dimensions made one
        if implementation == "blocked":
            out, _ = blocked_attention(*flat)
        elif implementation == "splash":
            out, _ = _splash(*flat)
        else:
            out = jax.nn.dot_product_attention(*flat, implementation=implementation)
        return out.reshape(q.shape)

    scenes = P(*axes_of(q)[:-3])
    return per_device(local, (scenes,) * 3, scenes)(q, k, v)


def attention_with_lse(
    q: Float[Array, "b t m c"],
    k: Float[Array, "b s m c"],
    v: Float[Array, "b s m c"],
    *,
    lengths: Int[Array, "b"] | None = None,
    implementation: str = "auto",
) -> Partial:
    """`attention`, and the `log Σ exp(q·kᵀ / √c)` by which `merge_attention` joins other keys.

    In each scene the first `lengths` keys count, by default all, and at least one; with lengths,
    implementations other than `cudnn` are `xla`. The log-sum-exp is float32 whatever the dtype of
    the keys: where parts are merged, an error of it is one of their weights. Only that of `blocked`
    has a gradient.
    """
    implementation = choose(implementation, q, k)
    if implementation == "blocked" and lengths is None:
        return blocked_attention(q, k, v)
    if implementation == "splash" and lengths is None:
        return _splash(q, k, v, with_lse=True)
    if implementation == "cudnn":
        return _cudnn_with_lse(q, k, v, lengths)
    return _xla_with_lse(q, k, v, lengths)


def attention_entropy(
    q: Float[Array, "b t m c"], k: Float[Array, "b s m c"]
) -> Float[Array, "b t m"]:
    """Entropy of each query's weights in nats: 0 for a single key, log(s) for uniform weights.

    It is `log Σ exp(logits) - Σ weights · logits`. The second sum is `q` times an attention whose
    values are the keys, so no kernel has to return its weights. Float32, because the two terms
    nearly cancel.
    """
    q, k = q.astype(jnp.float32), k.astype(jnp.float32)
    mean_key, lse = attention_with_lse(q, k, k, implementation="blocked")
    return lse - (q * mean_key).sum(axis=-1) / math.sqrt(q.shape[-1])


def skips_by_length(implementation: str, dtype: Any) -> bool:
    """Whether `attention_with_lse` skips keys beyond `lengths`; else it computes and masks them."""
    if implementation != "auto":
        return implementation == "cudnn"
    return _has_cudnn(platform_of(jax.sharding.get_abstract_mesh()), dtype)


def merge_attention(a: Partial, b: Partial) -> Partial:
    """Attention to two sets of keys from that to each; exact. Without keys, log-sum-exp is -inf."""
    (out_a, lse_a), (out_b, lse_b) = a, b
    lse = jnp.logaddexp(lse_a, lse_b)
    # Of two empty sets, -inf - -inf would be NaN.
    finite = jnp.where(jnp.isneginf(lse), 0.0, lse)
    weight_a, weight_b = (jnp.exp(one - finite)[..., None] for one in (lse_a, lse_b))
    return out_a * weight_a + out_b * weight_b, lse


def choose(implementation: str, q: Array, k: Array) -> str:
    """The implementation, with `auto` resolved; see `attention`."""
    check_choice("attention implementation", implementation, IMPLEMENTATIONS)
    if implementation != "auto":
        return implementation
    backend = platform(q)
    if backend == "cpu":
        return "blocked"
    if _has_cudnn(backend, q.dtype):
        return "cudnn"
    if backend == "tpu" and q.shape[-3] % 128 == 0 and k.shape[-3] % 128 == 0:
        return "splash"
    return "xla"


def _has_cudnn(backend: str, dtype: Any) -> bool:
    return backend == "gpu" and jnp.dtype(dtype) in (jnp.bfloat16, jnp.float16)


def platform(x: Array) -> str:
    """The platform to compile for: of the mesh of `x`, which need not be here (`programs.aot`)."""
    return platform_of(jax.typeof(x).sharding.mesh)


def _xla_with_lse(q: Array, k: Array, v: Array, lengths: Array | None) -> Partial:
    """Attention with all scores in memory, and its log-sum-exp in float32.

    That of `jax.nn.dot_product_attention` is rounded to the dtype of the keys.
    """
    scores = jnp.einsum("btmc,bsmc->bmts", q, k, preferred_element_type=jnp.float32)
    scores = scores * (1 / math.sqrt(q.shape[-1]))
    if lengths is not None:
        counts = jnp.arange(k.shape[1]) < lengths[:, None, None, None]
        scores = jnp.where(counts, scores, jnp.finfo(jnp.float32).min)
    lse = jax.nn.logsumexp(scores, axis=-1)
    weights = jnp.exp(scores - lse[..., None]).astype(v.dtype)
    out = jnp.einsum("bmts,bsmc->btmc", weights, v)
    return out, jax.lax.stop_gradient(lse.swapaxes(1, 2))


def _cudnn_with_lse(q: Array, k: Array, v: Array, lengths: Array | None) -> Partial:
    """Attention by cuDNN, and its log-sum-exp in float32 as the kernel writes it.

    `jax.nn.dot_product_attention` rounds it to the dtype of the keys; the function below that one,
    whose name is not public, does not.
    """
    try:
        from jax._src.cudnn import fused_attention_stablehlo as cudnn

        attend, masks = cudnn.dot_product_attention, cudnn.MaskType
    except (ImportError, AttributeError):
        warnings.warn(
            f"jax {jax.__version__} has its cuDNN attention elsewhere: where attention is merged "
            "from parts, it is up to 3 % off, unlike with the version that pyproject names",
            stacklevel=2,
        )
        options = {"key_value_seq_lengths": lengths, "implementation": "cudnn"}
        return jax.nn.dot_product_attention(q, k, v, return_residual=True, **options)
    options = {"scale": 1 / math.sqrt(q.shape[-1]), "return_residual": True}
    if lengths is not None:
        queries = jnp.full(len(q), q.shape[1], jnp.int32)
        options |= {"q_seqlen": queries, "kv_seqlen": lengths, "mask_type": masks.PADDING}
    out, lse = attend(q, k, v, **options)
    return out, lse.swapaxes(1, 2)


def _splash(q: Array, k: Array, v: Array, *, with_lse: bool = False) -> tuple[Array, Array | None]:
    """Splash attention, and `with_lse` its log-sum-exp; then it has no gradient."""
    kernel = splash_kernel(q, k, with_lse=with_lse)
    q, k, v = (x.swapaxes(1, 2) for x in (q * (1 / math.sqrt(q.shape[-1])), k, v))
    result = jax.vmap(kernel)(q, k, v)
    out, lse = (result[0], result[1][0].swapaxes(1, 2)) if with_lse else (result, None)
    return out.swapaxes(1, 2).astype(v.dtype), lse


def splash_kernel(q: Array, k: Array, *, with_lse: bool = False) -> Any:
    """JAX's kernel for one scene of these shapes: heads first, queries already times 1 / √c."""
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    (t, m), s = q.shape[1:3], k.shape[1]
    if t % 128 or s % 128:
        raise UserError(
            f"splash attention needs numbers of tokens that are multiples of 128, got {t} queries "
            f"and {s} keys; use attention='xla'"
        )

    # Tiles of 128 tokens; longer ones are faster while VMEM lasts. The backward pass writes a part
    # of the queries' gradient for each block of keys, in bfloat16, and sums the parts.
    block_q, block_kv, keys_of_gradient = (
        next(size for size in (2048, 1024, 512, 256, 128) if size <= most and tokens % size == 0)
        for tokens, most in ((t, 1024), (s, 1024), (s, 2048))
    )
    return splash.make_splash_mha(
        mask=splash.MultiHeadMask([splash.FullMask((t, s))] * m),
        head_shards=1,
        q_seq_shards=1,
        block_sizes=splash.BlockSizes(
            block_q=block_q,
            block_kv=block_kv,
            block_kv_compute=min(block_kv, 512),
            block_q_dkv=block_q,
            block_kv_dkv=keys_of_gradient,
            block_kv_dkv_compute=min(block_kv, 512),
            use_fused_bwd_kernel=True,
            # As the norms leave them. Otherwise the compiler copies them, each channel-minor head
            # padded to twice its size.
            q_layout=splash.QKVLayout.SEQ_MINOR,
            k_layout=splash.QKVLayout.SEQ_MINOR,
            v_layout=splash.QKVLayout.SEQ_MINOR,
        ),
        residual_checkpoint_name=SAVED_ATTENTION,
        interpret=platform(q) != "tpu",
        save_residuals=with_lse,
    )
