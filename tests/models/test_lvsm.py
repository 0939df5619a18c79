"""The LVSM baselines against the reference's outputs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import lvsm_jax
from lvsm_jax.common.tree import named_leaves
from lvsm_jax.models.architectures import abstract_model, new_model
from lvsm_jax.models.layers import LayerNorm, Transformer

NAMES = {"lvsm_decoder_only": "LVSMDecoderOnly", "lvsm_encoder_decoder": "LVSMEncoderDecoder"}


@pytest.fixture(scope="module", params=NAMES)
def case(request, goldens):
    """Name, state dict, arguments of the call, and the reference's render."""
    golden = dict(np.load(goldens / f"{request.param}.npz"))
    v, prefix = int(golden["num_input_views"]), "state_dict/"
    c2w, fxfycxcy = golden["c2w"], golden["fxfycxcy"]
    arguments = (
        golden["images"][:, :v],
        lvsm_jax.Cameras(c2w[:, :v], fxfycxcy[:, :v]),
        lvsm_jax.Cameras(c2w[:, v:], fxfycxcy[:, v:]),
    )
    weights = {k.removeprefix(prefix): a for k, a in golden.items() if k.startswith(prefix)}
    return NAMES[request.param], weights, arguments, golden["render"]


@pytest.mark.parametrize("targets_at_once", [0, 1])
def test_render(case, targets_at_once):
    name, weights, arguments, expected = case
    model = lvsm_jax.convert.from_state_dict(weights, targets_at_once=targets_at_once)
    assert type(model).__name__ == name
    np.testing.assert_allclose(model(*arguments), expected, atol=1e-4)


def test_groups_that_do_not_divide_the_targets(case):
    _, weights, (images, cameras, targets), expected = case
    model = lvsm_jax.convert.from_state_dict(weights, targets_at_once=2)
    three = jax.tree.map(lambda x: x[:, np.array([0, 1, 0])], targets)
    ours = model(images, cameras, three)
    np.testing.assert_allclose(ours, expected[:, [0, 1, 0]], atol=1e-4)


def test_targets_and_order_of_inputs_do_not_matter(case):
    _, weights, (images, cameras, targets), expected = case
    model = lvsm_jax.convert.from_state_dict(weights)
    order = np.array([2, 0, 1])
    shuffled = jax.tree.map(lambda x: x[:, order], cameras)
    one_target = jax.tree.map(lambda x: x[:, 1:], targets)
    ours = model(images[:, order], shuffled, one_target)
    np.testing.assert_allclose(ours, expected[:, 1:], atol=1e-4)


def test_memory_of_the_encoder_decoder_does_not_grow(case):
    name, weights, (images, cameras, _), _ = case
    model = lvsm_jax.convert.from_state_dict(weights)
    sizes = [
        model.encode(
            jnp.asarray(images[:, :v]), jax.tree.map(lambda x, v=v: x[:, :v], cameras)
        ).shape
        for v in (1, 3)
    ]
    tokens = 32 * 48 // 8**2
    expected = (
        [(2, 16, 64)] * 2 if name == "LVSMEncoderDecoder" else [(2, v * tokens, 64) for v in (1, 3)]
    )
    assert sizes == expected


@pytest.mark.slow
def test_gradients_do_not_depend_on_how_targets_are_computed(case):
    _, weights, arguments, _ = case

    def gradient(**options):
        model = lvsm_jax.convert.from_state_dict(weights, **options)
        loss = jax.jit(jax.grad(lambda model: jnp.square(model(*arguments) - 0.5).mean()))
        return named_leaves(loss(model))

    together = gradient(targets_at_once=0)
    apart = gradient(targets_at_once=1, remat="dots")
    for name, ours in apart.items():
        assert np.abs(ours).max() > 0, name
        np.testing.assert_allclose(ours, together[name], rtol=1e-3, atol=1e-7, err_msg=name)


def test_a_float32_residual_stream_is_closer_to_float32(case):
    """Otherwise every layer rounds the sum of all before it."""
    _, weights, arguments, expected = case

    def fidelity(**options):
        model = lvsm_jax.convert.from_state_dict(weights, dtype="bfloat16", **options)
        return -10 * np.log10(np.square(model(*arguments) - expected).mean())

    assert fidelity(residual_dtype="float32") > fidelity() + 0.5  # of three layers alone


@pytest.mark.parametrize(
    ("config", "millions"),
    [
        (lvsm_jax.LVSMDecoderOnlyConfig(), 170.80),
        (lvsm_jax.LVSMEncoderDecoderConfig(), 173.15),
    ],
)
def test_published_size(config, millions):
    leaves = jax.tree.leaves(abstract_model(config))
    assert round(sum(leaf.size for leaf in leaves) / 1e6, 2) == millions


def test_initial_weights():
    """Of the reference: narrower with depth, the last layer included."""
    config = lvsm_jax.LVSMDecoderOnlyConfig(num_layers=3, width=256)
    transformer = new_model(config, nnx.Rngs(0)).transformer
    deviations = [
        *np.asarray(transformer.blocks.mlp.up.kernel[...]).std(axis=(1, 2)),
        np.asarray(transformer.last.mlp.up.kernel[...]).std(),
    ]
    np.testing.assert_allclose(deviations, 0.02 / np.sqrt([2, 4, 6]), rtol=0.02)


def test_one_layer():
    """A transformer of the last layer alone is that block over the whole sequence."""
    config = lvsm_jax.LVSMDecoderOnlyConfig(num_layers=1, width=32, head_dim=16)
    transformer = Transformer(config, 1, rngs=nnx.Rngs(0))
    wanted, others = jax.random.normal(jax.random.key(0), (2, 1, 6, 32))
    whole = transformer.last(jnp.concatenate([wanted, others], axis=1))
    np.testing.assert_allclose(transformer(wanted, others), whole[:, :6], atol=1e-6)


def test_layer_norm_multiplies_by_its_scale():
    norm = LayerNorm(3, scale=True)
    norm.scale[...] = jnp.array([1.0, 2.0, 3.0])
    x = jnp.array([[1.0, 2.0, 6.0]])
    np.testing.assert_allclose(norm(x), LayerNorm(3, scale=False)(x) * norm.scale[...], rtol=1e-6)


def test_sizes_are_checked():
    with pytest.raises(ValueError, match=r"model\.num_latents is 0"):
        lvsm_jax.LVSMEncoderDecoderConfig(num_latents=0)
    with pytest.raises(ValueError, match=r"model\.targets_at_once is -1"):
        lvsm_jax.LVSMDecoderOnlyConfig(targets_at_once=-1)
    config = lvsm_jax.LVSMDecoderOnlyConfig()
    assert dataclasses.asdict(config) == config.structure | config.options
