"""Efficient-LVSM against the reference's outputs, and its errors."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import lvsm_jax
from lvsm_jax.cost.memory import abstract_views
from lvsm_jax.models.architectures import abstract_model
from lvsm_jax.models.cameras import plucker
from lvsm_jax.models.layers import LayerNorm
from tests.helpers import torch_zip


@pytest.fixture(scope="module")
def golden(goldens):
    return dict(np.load(goldens / "efficient_lvsm.npz"))


@pytest.fixture(scope="module")
def state_dict(golden):
    prefix = "state_dict/"
    return {k.removeprefix(prefix): a for k, a in golden.items() if k.startswith(prefix)}


@pytest.fixture(scope="module")
def model(state_dict):
    return lvsm_jax.convert.from_state_dict(state_dict)


@pytest.fixture(scope="module")
def inputs(golden):
    """Images, input cameras and target cameras."""
    v = int(golden["num_input_views"])
    c2w, fxfycxcy = golden["c2w"], golden["fxfycxcy"]
    return (
        golden["images"][:, :v],
        lvsm_jax.Cameras(c2w[:, :v], fxfycxcy[:, :v]),
        lvsm_jax.Cameras(c2w[:, v:], fxfycxcy[:, v:]),
    )


def test_published_size():
    shapes = jax.eval_shape(
        lambda key: lvsm_jax.EfficientLVSM(lvsm_jax.EfficientLVSMConfig(), rngs=nnx.Rngs(key)),
        jax.random.key(0),
    )
    assert round(sum(leaf.size for leaf in jax.tree.leaves(shapes)) / 1e6, 2) == 199.07


def test_initial_weights():
    """Of the reference: normal but for the encoder, narrower with depth in the decoder."""
    config = lvsm_jax.EfficientLVSMConfig(num_layers=3, width=256)
    model = lvsm_jax.EfficientLVSM(config, rngs=nnx.Rngs(0))
    for block in (model.decoder.mlp.up, model.decoder.cross_attention.to_kv):
        deviations = np.asarray(block.kernel[...]).std(axis=(1, 2))
        np.testing.assert_allclose(deviations, 0.02 / np.sqrt([2, 4, 6]), rtol=0.02)
    np.testing.assert_allclose(np.asarray(model.head.kernel[...]).std(), 0.02, rtol=0.02)
    for linear, fan_in in ((model.encoder.mlp.up, 256), (model.encoder.mlp.down, 1024)):
        kernel = np.asarray(linear.kernel[...])
        np.testing.assert_allclose(np.abs(kernel).max(), fan_in**-0.5, rtol=1e-3)
        np.testing.assert_allclose(kernel.std(), (3 * fan_in) ** -0.5, rtol=0.02)
        assert not (kernel[0] == kernel[1]).any()  # each layer has weights of its own


def test_plucker(golden, inputs):
    ours = plucker(inputs[1], *inputs[0].shape[2:4])
    np.testing.assert_allclose(ours, golden["plucker_input"], atol=1e-6)


def test_encoder_layer_by_layer(golden, model, inputs):
    tokens = model.encode(jnp.asarray(inputs[0]), inputs[1]).tokens
    for layer in range(3):
        ours = tokens[layer].reshape(-1, *tokens.shape[-2:])
        np.testing.assert_allclose(ours, golden[f"encoder_tokens_layer{layer + 1}"], atol=1e-4)


def test_keys_and_values_of_the_first_layer(golden, model, inputs):
    first = jax.tree.map(lambda x: x[0], model.decoder)
    views = model.encode(jnp.asarray(inputs[0]), inputs[1]).tokens[0]
    (kv,) = first.keys_values(views)
    for ours, name in zip((kv.k, kv.v), ("cache_k_layer1", "cache_v_layer1"), strict=True):
        b, v, n = ours.shape[:3]
        np.testing.assert_allclose(ours.reshape(b, v * n, *ours.shape[3:]), golden[name], atol=1e-4)


@pytest.mark.parametrize("attention", ["xla", "blocked"])
def test_render(golden, state_dict, inputs, attention):
    model = lvsm_jax.convert.from_state_dict(state_dict, attention=attention)
    np.testing.assert_allclose(model(*inputs), golden["render"], atol=1e-4)


def test_any_number_of_inputs(golden, model, inputs):
    images, cameras, targets = inputs
    for views in (1, 2):
        few = jax.tree.map(lambda x, views=views: x[:, :views], cameras)
        ours = model(images[:, :views], few, targets)
        np.testing.assert_allclose(ours, golden["incremental_render"][views - 1], atol=1e-4)


def test_targets_and_order_of_inputs_do_not_matter(model, inputs):
    images, cameras, targets = inputs
    order = np.array([2, 0, 1])
    shuffled = jax.tree.map(lambda x: x[:, order], cameras)
    one_target = jax.tree.map(lambda x: x[:, 1:], targets)
    np.testing.assert_allclose(
        model(images[:, order], shuffled, one_target), model(*inputs)[:, 1:], atol=1e-5
    )


@pytest.mark.parametrize("unroll", [False, True])
def test_remat_recomputes_also_where_layers_are_unrolled(unroll):
    """The compiler must not find that forward and backward pass compute the same."""
    inputs = abstract_views(1, 1, 16, 16)

    def matmuls(remat):
        config = lvsm_jax.EfficientLVSMConfig(
            num_layers=2, width=32, head_dim=16, attention="xla", remat=remat, unroll=unroll
        )
        model = abstract_model(config)
        loss = jax.jit(jax.grad(lambda model, *views: model(*views).sum()))
        text = loss.lower(model, *inputs, inputs[1]).compile().as_text()
        return len(re.findall(r" (?:dot|custom-call)\(", text))

    assert matmuls("full") > matmuls("none") + 5


@pytest.mark.parametrize(
    ("remat", "unroll"),
    [
        ("dots", False),
        ("full", False),
        pytest.param("full", True, marks=pytest.mark.slow),
        ("dots", True),
    ],
)
def test_remat_changes_no_gradient(state_dict, inputs, remat, unroll):
    def gradient(remat, unroll=False):
        model = lvsm_jax.convert.from_state_dict(state_dict, remat=remat, unroll=unroll)
        return jax.jit(jax.grad(lambda model: jnp.square(model(*inputs)).mean()))(model)

    plain = jax.tree.leaves(gradient("none"))
    recomputed = jax.tree.leaves(gradient(remat, unroll))
    assert all(np.abs(g).max() > 0 for g in plain)
    for ours, expected in zip(recomputed, plain, strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-8)


def test_bfloat16_is_close_and_returns_float32(golden, state_dict, inputs):
    model = lvsm_jax.convert.from_state_dict(state_dict, dtype="bfloat16")
    render = model(*inputs)
    assert render.dtype == jnp.float32
    assert 1e-4 < np.abs(render - golden["render"]).mean() < 1e-2
    assert model.encode(jnp.asarray(inputs[0]), inputs[1]).tokens.dtype == jnp.bfloat16


def test_layer_norm_statistics_are_float32():
    x = (jnp.linspace(0, 1, 64) + 100).astype(jnp.bfloat16)
    exact = np.asarray(x, np.float64)
    exact = (exact - exact.mean()) / np.sqrt(exact.var() + 1e-5)
    ours = LayerNorm(64, scale=False)(x)
    np.testing.assert_allclose(ours.astype(np.float32), exact, atol=1e-2)


def test_a_checkpoint_file(golden, state_dict, inputs, tmp_path):
    """As the PyTorch program writes it: weights under `model`, beside other things."""
    torch_zip.save(tmp_path / "checkpoint.pt", {"model": state_dict, "step": 7})
    checkpoint = lvsm_jax.torch_file.load(tmp_path / "checkpoint.pt")
    model = lvsm_jax.convert.from_state_dict(checkpoint["model"])
    np.testing.assert_allclose(model(*inputs), golden["render"], atol=1e-4)


def _cameras(cameras, **changes):
    return dataclasses.replace(cameras, **changes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda i, a, t: (i[0], a, t), r"expected \[b, v, h, w, 3\]"),
        (
            lambda i, a, t: (i[:, :, :30], a, t),
            "30×48 pixels, expected multiples of the patch size 8",
        ),
        (lambda i, a, t: ((i * 255).astype(np.uint8), a, t), "divide 8-bit images by 255"),
        (lambda i, a, t: (i * 255, a, t), r"expected \[0, 1\]"),
        (lambda i, a, t: (np.full_like(i, np.nan), a, t), r"expected \[0, 1\]"),
        (lambda i, a, t: (i[:, :2], a, t), r"input_cameras of \(2, 3\)"),
        (lambda i, a, t: (i[:1], jax.tree.map(lambda x: x[:1], a), t), "target_cameras of 2"),
        (lambda i, a, t: (i, _cameras(a, c2w=a.c2w[..., :3, :]), t), "input_cameras.c2w has shape"),
        (lambda i, a, t: (i, a, _cameras(t, c2w=t.c2w * np.inf)), "target_cameras.c2w holds"),
        (lambda i, a, t: (i, a, _cameras(t, fxfycxcy=t.fxfycxcy * 0)), "focal length of zero"),
        (lambda i, a, t: (i, a, _cameras(t, fxfycxcy=t.fxfycxcy[..., :3])), "fxfycxcy has shape"),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value")
def test_errors(model, inputs, change, message):
    with pytest.raises(ValueError, match=message):
        model(*change(*inputs))


def test_shapes_are_checked_while_tracing(model, inputs):
    images, cameras, targets = inputs
    with pytest.raises(ValueError, match="multiples of the patch"):
        jax.eval_shape(model, images[:, :, :30], cameras, targets)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("width", 100),
        ("num_layers", 0),
        ("dtype", "float64"),
        ("attention", "flash"),
        ("remat", "x"),
    ],
)
def test_config_errors_name_the_field(field, value):
    with pytest.raises(ValueError, match=f"model.{field}"):
        lvsm_jax.EfficientLVSMConfig(**{field: value})
