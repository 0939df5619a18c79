"""Weights of a head that copies with which its parts all count."""

import jax.numpy as jnp
import numpy as np

from lvsm_jax.common.tree import from_named, named_leaves

_ZERO_AT_FIRST = ("copy_head.to_pixels.kernel", "copy_head.from_features.kernel")


def with_random_copies(model, seed=1):
    """The model with random offsets, weights and gates; at first they are zero."""
    rng, leaves = np.random.default_rng(seed), named_leaves(model)
    for name in _ZERO_AT_FIRST:
        random = rng.normal(size=leaves[name].shape) / len(leaves[name]) ** 0.5
        leaves[name] = jnp.asarray(random, jnp.float32)
    return from_named(model, leaves)
