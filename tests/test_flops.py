"""The analytic count against published numbers and against the compiler's."""

import jax
import jax.numpy as jnp
from flax import nnx

import lvsm_jax
from lvsm_jax.flops import forward_macs


def test_published_numbers():
    """1,325 G in linear layers is what the paper reports for 6 inputs and 7 targets."""
    macs = forward_macs(lvsm_jax.EfficientLVSMConfig(), views=6, targets=7, height=256, width=256)
    assert (round(macs.linear / 1e9), round(macs.attention / 1e9)) == (1325, 1063)


def test_the_compiler_counts_the_same():
    """With one layer, for XLA counts the body of a loop once."""
    config = lvsm_jax.EfficientLVSMConfig(num_layers=1, width=128, attention="xla")
    shapes = jax.eval_shape(
        lambda key: lvsm_jax.EfficientLVSM(config, rngs=nnx.Rngs(key)), jax.random.key(0)
    )

    def cameras(views):
        arrays = jnp.zeros((1, views, 4, 4)), jnp.ones((1, views, 4))
        return jax.eval_shape(lambda: lvsm_jax.Cameras(*arrays))

    images = jax.ShapeDtypeStruct((1, 2, 64, 64, 3), jnp.float32)
    compiled = jax.jit(lambda model, *args: model(*args)).lower(
        shapes, images, cameras(2), cameras(3)
    )
    counted = compiled.compile().cost_analysis()["flops"]
    ours = forward_macs(config, views=2, targets=3, height=64, width=64).flops
    assert 1.0 < counted / ours < 1.1
