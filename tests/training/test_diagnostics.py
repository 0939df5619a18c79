"""What the logs say of each layer, against direct formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.special import xlogy

import lvsm_jax
from lvsm_jax.common.tree import from_named, named_leaves
from lvsm_jax.models.architectures import CONFIGS, new_model
from lvsm_jax.models.attention import attention_entropy
from lvsm_jax.models.layers import DenseKV
from lvsm_jax.training.diagnostics import norms_by_layer, rows, token_statistics

SIZES = {"num_layers": 3, "width": 32, "head_dim": 16}


def scene(views=2):
    rng = np.random.default_rng(0)
    c2w = np.tile(np.eye(4, dtype=np.float32), (2, views + 1, 1, 1))
    c2w[..., :3, 3] = rng.uniform(-1, 1, (2, views + 1, 3))
    fxfycxcy = np.full((2, views + 1, 4), 8, np.float32)
    images = rng.uniform(size=(2, views, 16, 16, 3)).astype(np.float32)
    cameras = (
        lvsm_jax.Cameras(c2w[:, :views], fxfycxcy[:, :views]),
        lvsm_jax.Cameras(c2w[:, views:], fxfycxcy[:, views:]),
    )
    return images, *cameras


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_entropy(dtype):
    q, k = (4 * jax.random.normal(jax.random.key(i), (2, n, 3, 8)) for i, n in ((0, 5), (1, 7)))
    q, k = q.astype(dtype), k.astype(dtype)
    whole = q.astype(jnp.float32), k.astype(jnp.float32)
    weights = jax.nn.softmax(jnp.einsum("btmc,bsmc->btms", *whole) / np.sqrt(8))
    expected = -(weights * jnp.log(weights)).sum(axis=-1)
    ours = attention_entropy(q, k)
    np.testing.assert_allclose(ours, expected, atol=1e-4)
    alike = attention_entropy(q, 0 * k)
    np.testing.assert_allclose(alike, np.log(7), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "variant",
    [
        {},
        {"co_refinement": False},
        {"shared_streams": True, "camera_encoding": "prope", "copy_head": True},
    ],
)
def test_tokens_are_those_of_a_render(variant):
    config = lvsm_jax.EfficientLVSMConfig(**SIZES, **variant)
    model = new_model(config, nnx.Rngs(0))
    values = token_statistics(model, *scene())
    layers = range(1, 4)
    _, inputs, targets = jax.jit(
        lambda *args: args[0].render_with_features(*args[1:], layers, layers)
    )(model, *scene())
    for name, tokens in (("encoder_rms", inputs), ("decoder_rms", targets)):
        expected = [np.sqrt(np.square(x).mean()) for x in tokens]
        np.testing.assert_allclose(values[name], expected, rtol=1e-4)
    assert values["attention_entropy"].shape == (3,)
    assert (values["attention_entropy"] > 0).all() and (values["attention_entropy"] <= 1.0).all()


@pytest.mark.slow
@pytest.mark.parametrize("decoder_attention", ["self_cross", "cross"])
def test_entropies_are_those_of_the_weights_that_a_render_has(decoder_attention, monkeypatch):
    fields = {"camera_encoding": "plucker_prope", "attention_temperature": "log_views"}
    config = lvsm_jax.EfficientLVSMConfig(**SIZES, **fields, decoder_attention=decoder_attention)
    model = new_model(config, nnx.Rngs(0))
    larger = {name: a * 4 if "decoder" in name else a for name, a in named_leaves(model).items()}
    model = from_named(model, larger)  # which does not look at all tokens alike
    images, inputs, targets = scene(3)
    ours = token_statistics(model, images, inputs, targets)["attention_entropy"]

    seen = []

    def watched(self, q):
        if q.ndim == 4:  # of all targets: cross-attention
            seen.append((np.asarray(q), np.asarray(self.k)))
        return attend(self, q)

    attend = DenseKV.attend
    monkeypatch.setattr(DenseKV, "attend", watched)
    with jax.disable_jit():
        model(images, inputs, targets)
    expected = []
    for q, k in seen:
        weights = jax.nn.softmax(np.einsum("btmc,bsmc->btms", q, k) / np.sqrt(q.shape[-1]))
        expected.append(-xlogy(weights, weights).sum(axis=-1).mean() / np.log(k.shape[1]))
    expected = np.reshape(expected, (3, -1)).mean(axis=1)
    np.testing.assert_allclose(ours, expected, atol=1e-4)
    assert ours.min() < 0.9


@pytest.mark.slow
def test_a_higher_temperature_is_a_higher_entropy():
    """With one view the temperature that follows the views is above the usual one; with 5 below."""
    for views, is_higher in ((1, True), (5, False)):
        entropies = [
            token_statistics(
                new_model(
                    lvsm_jax.EfficientLVSMConfig(**SIZES, attention_temperature=temperature),
                    nnx.Rngs(0),
                ),
                *scene(views),
            )["attention_entropy"]
            for temperature in ("log_views", "constant")
        ]
        assert bool((entropies[0] > entropies[1]).all()) == is_higher


@pytest.mark.slow
@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.parametrize("architecture", CONFIGS)
def test_norms_add_up(architecture, num_layers):
    fields = {"num_latents": 8} if architecture == "LVSMEncoderDecoder" else {}
    config = CONFIGS[architecture](**SIZES | {"num_layers": num_layers}, **fields)
    model = new_model(config, nnx.Rngs(0))
    norms = norms_by_layer(model.stacks, model)
    assert norms.keys() == set(model.stacks)
    for stack, by_layer in norms.items():
        assert by_layer.shape == (num_layers,)
        part, squares = getattr(model, stack), np.zeros(num_layers)
        stacked = part if architecture == "EfficientLVSM" else part.blocks
        for leaf in map(np.asarray, jax.tree.leaves(stacked)):
            squares[: len(leaf)] += np.square(leaf.reshape(len(leaf), -1)).sum(axis=1)
        if stacked is not part:
            squares[-1] += sum(np.square(leaf).sum() for leaf in jax.tree.leaves(part.last))
        np.testing.assert_allclose(np.square(by_layer), squares, rtol=1e-5)


def test_rows_have_a_name_for_each_layer():
    assert rows({"rms": jnp.array([1.0, 2.0])}) == {"rms/layer_01": 1, "rms/layer_02": 2}
