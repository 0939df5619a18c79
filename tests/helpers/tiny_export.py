"""An export so small that programs which take one are tested in seconds."""

import pathlib

from flax import nnx

import lvsm_jax


def save_tiny_export(path: pathlib.Path) -> pathlib.Path:
    """Of random weights: one layer of width 32, patches of 8 px."""
    config = lvsm_jax.EfficientLVSMConfig(num_layers=1, width=32, head_dim=16)
    lvsm_jax.save(lvsm_jax.EfficientLVSM(config, rngs=nnx.Rngs(0)), path)
    return path
