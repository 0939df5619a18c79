"""Norms and the GELU, whose backward passes compute all they need from the input again.

What autodiff would keep, copies in float32 and statistics, costs more to write and to read than to
compute: at width 768 passes over memory are what a step waits for (docs/developers/gpus.md).
Letters: `d` channels of a token, `c` of a head.
"""

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

Scale = Float[Array, "d"] | None


class LayerNorm(nnx.Module):
    """LayerNorm with statistics in float32."""

    def __init__(self, size: int, *, scale: bool, bias: bool = False, eps: float = 1e-5):
        self.eps = eps
        self.scale = nnx.Param(jnp.ones(size)) if scale else None
        self.bias = nnx.Param(jnp.zeros(size)) if bias else None

    def __call__(self, x: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
        """Normalises the last dimension."""
        scale, bias = (None if p is None else p[...] for p in (self.scale, self.bias))
        return layer_norm(x, scale, bias, self.eps)


class RMSNorm(nnx.Module):
    """RMSNorm with a learned scale, eps 1e-5, statistics in float32."""

    def __init__(self, size: int):
        self.scale = nnx.Param(jnp.ones(size))

    def __call__(self, x: Float[Array, "*batch c"]) -> Float[Array, "*batch c"]:
        """Normalises the last dimension."""
        return rms_norm(x, self.scale[...], 1e-5)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def layer_norm(
    x: Float[Array, "*batch d"], scale: Scale, bias: Scale, eps: float
) -> Float[Array, "*batch d"]:
    """LayerNorm of the last dimension in the dtype of `x`, computed in float32."""
    y, _ = _standardise(x, eps)
    if scale is not None:
        y = y * scale
    if bias is not None:
        y = y + bias
    return y.astype(x.dtype)


def _layer_norm_forward(x: Array, scale: Scale, bias: Scale, eps: float) -> tuple[Array, tuple]:
    return layer_norm(x, scale, bias, eps), (x, scale, bias)


def _layer_norm_backward(eps: float, saved: tuple, g: Array) -> tuple[Array, Scale, Scale]:
    x, scale, bias = saved
    y, inverse = _standardise(_apart(x), eps)
    g = g.astype(jnp.float32)
    to_y = g if scale is None else g * scale
    centred = to_y - to_y.mean(axis=-1, keepdims=True)
    to_x = inverse * (centred - y * (to_y * y).mean(axis=-1, keepdims=True))
    to_scale = None if scale is None else _sum_tokens(g * y)
    return to_x.astype(x.dtype), to_scale, None if bias is None else _sum_tokens(g)


layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def rms_norm(
    x: Float[Array, "*batch c"], scale: Float[Array, "c"], eps: float
) -> Float[Array, "*batch c"]:
    """RMSNorm of the last dimension in the dtype of `x`, computed in float32."""
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.square(y).mean(axis=-1, keepdims=True) + eps)
    return (y * scale).astype(x.dtype)


def _rms_norm_forward(x: Array, scale: Array, eps: float) -> tuple[Array, tuple]:
    return rms_norm(x, scale, eps), (x, scale)


def _rms_norm_backward(eps: float, saved: tuple, g: Array) -> tuple[Array, Array]:
    x, scale = saved
    # Both sums of each row in one pass, then all that is wanted of them in another.
    y, g = _apart(x).astype(jnp.float32), g.astype(jnp.float32)
    squares, product = ((y * other).mean(axis=-1, keepdims=True) for other in (y, g * scale))
    inverse = jax.lax.rsqrt(squares + eps)
    y = y * inverse
    to_x = inverse * (g * scale - y * (product * inverse))
    return to_x.astype(x.dtype), _sum_tokens(g * y)


rms_norm.defvjp(_rms_norm_forward, _rms_norm_backward)


@jax.custom_vjp
def gelu(x: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
    """The exact GELU, `x/2 · (1 + erf(x/√2))`, computed in float32 as PyTorch does."""
    y = x.astype(jnp.float32)
    return (y * _normal_below(y)).astype(x.dtype)


def _gelu_backward(x: Array, g: Array) -> tuple[Array]:
    y = _apart(x).astype(jnp.float32)
    density = jnp.exp(-0.5 * jnp.square(y)) / math.sqrt(2 * math.pi)
    return (((_normal_below(y) + y * density) * g.astype(jnp.float32)).astype(x.dtype),)


gelu.defvjp(lambda x: (gelu(x), x), _gelu_backward)


def _normal_below(y: Array) -> Array:
    """The share of a normal distribution below `y`, to 1e-7.

    Not by `erfc`, which keeps its digits far below zero too, where a GELU is nearly zero, and takes
    twice the arithmetic: on TPUs it is more than the pass over memory.
    """
    return 0.5 * (1 + jax.lax.erf(y * math.sqrt(0.5)))


def _standardise(x: Array, eps: float) -> tuple[Array, Array]:
    """Without mean and with variance 1, and the factor that made it so; float32."""
    y = x.astype(jnp.float32)
    y = y - y.mean(axis=-1, keepdims=True)
    inverse = jax.lax.rsqrt(jnp.square(y).mean(axis=-1, keepdims=True) + eps)
    return y * inverse, inverse


def _apart(x: Array) -> Array:
    """The same, of which XLA does not see that the forward pass has computed anything.

    It would keep the statistics for both, and take three kernels for one.
    """
    return jax.lax.optimization_barrier(x)


def _sum_tokens(x: Float[Array, "*batch d"]) -> Float[Array, "d"]:
    return x.sum(axis=tuple(range(x.ndim - 1)))
