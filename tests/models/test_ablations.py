"""The paper's ablations, each against the published model with weights that make them equal."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import lvsm_jax
from lvsm_jax.common.tree import from_named, map_named, named_leaves
from lvsm_jax.models.architectures import abstract_model, new_model

SIZES = {"num_layers": 2, "width": 32, "head_dim": 16}
ABLATIONS = [
    {"co_refinement": False},
    {"decoder_attention": "cross"},
    {"shared_streams": True},
    {"shared_streams": True, "co_refinement": False},
]


def make(**fields):
    """A model whose targets see something: the initial weights of the decoder are small."""
    model = new_model(lvsm_jax.EfficientLVSMConfig(**SIZES, **fields), nnx.Rngs(0))
    larger = {name: a * 10 if "decoder" in name else a for name, a in named_leaves(model).items()}
    return from_named(model, larger)


def with_weights(like, leaves):
    """A model of the configuration of `like` with weights by name."""
    return from_named(abstract_model(like.config), leaves)


@pytest.fixture(scope="module")
def scene():
    """Images, input cameras and target cameras of two inputs and one target."""
    rng = np.random.default_rng(0)
    c2w = np.tile(np.eye(4, dtype=np.float32), (1, 3, 1, 1))
    c2w[..., :3, 3] = rng.uniform(-1, 1, (1, 3, 3))
    fxfycxcy = np.full((1, 3, 4), 16, np.float32)
    return (
        rng.uniform(size=(1, 2, 32, 32, 3)).astype(np.float32),
        lvsm_jax.Cameras(c2w[:, :2], fxfycxcy[:, :2]),
        lvsm_jax.Cameras(c2w[:, 2:], fxfycxcy[:, 2:]),
    )


@pytest.mark.slow
def test_last_layer_features(scene):
    """Every layer of the decoder reads what the encoder's last layer returned."""
    images, inputs, targets = scene
    published, ablated = make(), make(co_refinement=False)
    every = published.encode(jnp.asarray(images), inputs)
    last = jnp.broadcast_to(every.tokens[-1], every.tokens.shape)
    expected = published.decode(dataclasses.replace(every, tokens=last), targets, 32, 32)
    np.testing.assert_allclose(ablated(*scene), expected, atol=1e-5)
    assert np.abs(published(*scene) - expected).max() > 1e-3
    tokens = ablated.encode(jnp.asarray(images), inputs).tokens
    assert tokens.shape == (1, *every.tokens.shape[1:])


def test_shared_streams(scene):
    """As if the decoder's self-attention and MLP had the encoder's weights."""
    published, shared = make(), make(shared_streams=True)
    leaves = named_leaves(shared)
    copies = {
        name.replace("encoder", "decoder"): leaf
        for name, leaf in leaves.items()
        if name.startswith("encoder")
    }
    expected = with_weights(published, copies | leaves)(*scene)
    np.testing.assert_allclose(shared(*scene), expected, atol=1e-5)
    assert np.abs(published(*scene) - expected).max() > 1e-3


def test_cross_attention_only(scene):
    """Without its first attention a layer is the published one without self-attention."""
    published, cross = make(), make(decoder_attention="cross")

    def silent(model, part):
        return map_named(
            lambda name, a: a * 0 if name == f"decoder.{part}.out.kernel" else a, model
        )

    expected = silent(published, "self_attention")
    leaves = named_leaves(cross) | {
        name: leaf
        for name, leaf in named_leaves(expected).items()
        if "self" not in name or "en" in name
    }
    ours = silent(with_weights(cross, leaves), "first_cross_attention")
    np.testing.assert_allclose(ours(*scene), expected(*scene), atol=1e-5)
    assert np.abs(with_weights(cross, leaves)(*scene) - expected(*scene)).max() > 1e-3


@pytest.mark.parametrize(("attention", "alone"), [("cross", True), ("self_cross", False)])
def test_only_self_attention_joins_the_tokens_of_a_target(scene, attention, alone):
    images, inputs, targets = scene
    model = make(decoder_attention=attention)
    memory = model.encode(jnp.asarray(images), inputs)
    whole, half = (model.decode(memory, targets, height, 32) for height in (32, 16))
    assert (np.abs(whole[:, :, :16] - half).max() < 1e-5) == alone


def test_cross_attention_only_has_as_many_weights():
    sizes = [
        sum(leaf.size for leaf in jax.tree.leaves(make(decoder_attention=attention)))
        for attention in ("cross", "self_cross")
    ]
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("fields", ABLATIONS)
def test_every_weight_is_used(scene, fields):
    loss = jax.jit(jax.grad(lambda model: jnp.square(model(*scene) - 0.2).mean()))
    for name, gradient in named_leaves(loss(make(**fields))).items():
        assert np.isfinite(gradient).all(), name
        assert np.abs(gradient).max() > 0, name


@pytest.mark.parametrize("fields", ABLATIONS)
def test_export_and_load(scene, tmp_path, fields):
    model = make(**fields)
    lvsm_jax.save(model, tmp_path / "export")
    again = lvsm_jax.load(tmp_path / "export")
    assert again.config == model.config
    np.testing.assert_array_equal(again(*scene), model(*scene))


def test_what_cannot_go_together():
    with pytest.raises(ValueError, match="shared_streams shares self-attention"):
        lvsm_jax.EfficientLVSMConfig(shared_streams=True, decoder_attention="cross")
    with pytest.raises(ValueError, match=r"model\.decoder_attention is 'both'"):
        lvsm_jax.EfficientLVSMConfig(decoder_attention="both")
