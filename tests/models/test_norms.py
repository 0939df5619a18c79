"""Norms and the GELU against plain formulas, forward and backward."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lvsm_jax.models.norms import gelu, layer_norm, rms_norm


def plain_layer_norm(x, scale, bias):
    y = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return y * (1 if scale is None else scale) + (0 if bias is None else bias)


def plain_rms_norm(x, scale):
    return x / jnp.sqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-5) * scale


def ours_and_plain(name):
    """The two functions and their arguments, of rows with a mean and of a size of their own."""
    keys = jax.random.split(jax.random.key(0), 3)
    size = jnp.array([1e-3, 0.1, 1, 30])[:, None]  # in the first eps is what counts
    x = size * (jax.random.normal(keys[0], (3, 4, 16)) + 0.5)
    scale, bias = (jax.random.normal(key, (16,)) for key in keys[1:])
    if name == "gelu":
        return gelu, lambda x: 0.5 * x * (1 + jax.lax.erf(x / np.sqrt(2))), (x,)
    if name == "rms_norm":
        return lambda *a: rms_norm(*a, 1e-5), plain_rms_norm, (x, scale)
    given = (x, scale if "scale" in name else None, bias if "bias" in name else None)
    return lambda *a: layer_norm(*a, 1e-5), plain_layer_norm, given


NAMES = ["gelu", "rms_norm", "layer_norm", "layer_norm, scale", "layer_norm, scale and bias"]


@pytest.mark.parametrize("name", NAMES)
def test_values_and_gradients_are_those_of_the_formula(name):
    ours, plain, arguments = ours_and_plain(name)
    x = arguments[0]
    weights = jnp.cos(jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape)
    values, gradients = [], []
    for function in (ours, plain):
        value, pullback = jax.vjp(function, *arguments)
        values.append(value)
        gradients.append(pullback(weights))
    np.testing.assert_allclose(*values, rtol=1e-4, atol=1e-5)
    for found, expected in zip(*map(jax.tree.leaves, gradients), strict=True):
        np.testing.assert_allclose(found, expected, rtol=2e-4, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("name", NAMES)
def test_only_the_input_is_kept_for_the_backward_pass(name):
    ours, _, arguments = ours_and_plain(name)
    x, *parameters = arguments
    _, pullback = jax.vjp(ours, x.astype(jnp.bfloat16), *parameters)
    kept = [leaf for leaf in jax.tree.leaves(pullback) if leaf.ndim == x.ndim]
    assert [leaf.dtype for leaf in kept] == [jnp.bfloat16]
