"""The analytic counts against published numbers, the traced program's and the compiler's."""

import math

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import lvsm_jax
from lvsm_jax.cost.flops import Macs, forward_macs, stages, teacher_macs, training_flops, vgg_macs
from lvsm_jax.frozen import vgg
from lvsm_jax.frozen.dino import TEACHERS, Dino, DinoConfig
from lvsm_jax.models.architectures import abstract_model

EFFICIENT = lvsm_jax.EfficientLVSMConfig
DECODER_ONLY = lvsm_jax.LVSMDecoderOnlyConfig
ENCODER_DECODER = lvsm_jax.LVSMEncoderDecoderConfig
PUBLISHED = {"views": 6, "targets": 7, "height": 256, "width": 256}


def giga(macs):
    return round(macs.linear / 1e9), round(macs.attention / 1e9)


def trace(config, views, targets, height, width):
    """The function that renders one scene, and the shapes that it takes."""

    def shapes(count):
        c2w = jax.ShapeDtypeStruct((1, count, 4, 4), jnp.float32)
        return lvsm_jax.Cameras(c2w, jax.ShapeDtypeStruct((1, count, 4), jnp.float32))

    images = jax.ShapeDtypeStruct((1, views, height, width, 3), jnp.float32)
    arguments = abstract_model(config), images, shapes(views), shapes(targets)
    return jax.jit(lambda model, *args: model(*args)).trace(*arguments)


def matmuls(jaxpr):
    """Multiply-accumulates of all matmuls; those of attention are the batched ones."""
    total = Macs()
    for equation in jaxpr.eqns:
        inner = sum((matmuls(j) for j in jax.core.jaxprs_in_params(equation.params)), Macs())
        total += equation.params.get("length", 1) * inner
        if equation.primitive.name == "dot_general":
            (contracted, _), (batched, _) = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            count = equation.outvars[0].aval.size * math.prod(left[i] for i in contracted)
            total += Macs(attention=count) if batched else Macs(linear=count)
    return total


def test_published_numbers():
    """Reported for 6 inputs and 7 targets; of decoder-only, the layers alone are meant."""
    assert giga(forward_macs(EFFICIENT(), **PUBLISHED)) == (1325, 1063)
    decoder_only = stages(DECODER_ONLY(), **PUBLISHED)
    assert giga(decoder_only["layers over all inputs and one target"]) == (8523, 13259)


TINY = {"width": 32, "head_dim": 16, "mlp_ratio": 3, "patch_size": 4, "attention": "xla"}


@pytest.mark.parametrize(
    "config",
    [
        EFFICIENT(num_layers=3, **TINY),
        EFFICIENT(num_layers=3, co_refinement=False, **TINY),
        EFFICIENT(num_layers=3, decoder_attention="cross", **TINY),
        EFFICIENT(num_layers=3, shared_streams=True, **TINY),
        EFFICIENT(num_layers=2, copy_head=True, **TINY),
        DECODER_ONLY(num_layers=3, targets_at_once=0, **TINY),
        DECODER_ONLY(num_layers=2, targets_at_once=1, **TINY),
        ENCODER_DECODER(num_layers=3, num_latents=10, targets_at_once=1, **TINY),
        lvsm_jax.GSLRMConfig(num_layers=3, tile_size=4, **TINY),
    ],
    ids=lambda config: f"{type(config).__name__}-{config.num_layers}",
)
def test_the_program_has_as_many(config):
    """To the last one, so that no stage can be left out or counted twice."""
    scene = {"views": 2, "targets": 3, "height": 8, "width": 12}
    assert matmuls(trace(config, **scene).jaxpr.jaxpr) == forward_macs(config, **scene)


@pytest.mark.parametrize(
    "config",
    [
        EFFICIENT(num_layers=1, width=128, attention="xla"),
        DECODER_ONLY(num_layers=2, width=128, targets_at_once=0, attention="xla"),
        ENCODER_DECODER(
            num_layers=2, width=128, num_latents=128, targets_at_once=0, attention="xla"
        ),
    ],
    ids=lambda config: type(config).__name__,
)
def test_the_compiler_counts_the_same(config):
    """With one layer in a loop, for XLA counts its body once; and it counts norms and softmax."""
    scene = {"views": 2, "targets": 3, "height": 64, "width": 64}
    counted = trace(config, **scene).lower().compile().cost_analysis()["flops"]
    assert 1.0 < counted / forward_macs(config, **scene).flops < 1.1


@pytest.mark.parametrize("block", [1, 2])
def test_a_teachers_pass_has_as_many(block):
    config = DinoConfig(num_layers=2, width=32, head_dim=16, patch_size=4, attention="xla")
    teacher = jax.eval_shape(lambda key: Dino(config, rngs=nnx.Rngs(key)), jax.random.key(0))
    image = jax.ShapeDtypeStruct((1, 8, 12, 3), jnp.float32)
    traced = jax.jit(lambda teacher, image: teacher.block_outputs(image, [block])).trace(
        teacher, image
    )
    counted = teacher_macs(config, height=8, width=12, blocks=block)
    assert matmuls(traced.jaxpr.jaxpr) == counted
    published = teacher_macs(TEACHERS["dinov3_vitb16"], height=512, width=512, blocks=8)
    assert giga(published) == (59, 13)


def test_convolutions_of_vgg():
    plan = ((4,), (8, 8))
    macs = vgg_macs(plan, height=9, width=6)
    assert macs == Macs(9 * (9 * 6 * 3 * 4 + 4 * 3 * (4 * 8 + 8 * 8)))
    # As is known of VGG-19 at 224 px, without its linear layers.
    assert round(vgg_macs(vgg.VGG19, height=224, width=224).total / 1e9, 1) == 19.5


def test_only_what_is_left_out_is_negative():
    for config in (EFFICIENT(), DECODER_ONLY(), ENCODER_DECODER()):
        for name, macs in stages(config, **PUBLISHED).items():
            assert (macs.linear < 0) == (macs.attention < 0) == ("left out" in name)


def test_training_takes_three_forward_passes():
    assert training_flops(Macs(linear=5, attention=2)) == 3 * 2 * 7


def test_size_that_is_no_multiple_of_the_patch():
    with pytest.raises(ValueError, match="250×256 pixels are no multiples of the patch size 8"):
        forward_macs(EFFICIENT(), views=1, targets=1, height=250, width=256)
