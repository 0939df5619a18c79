"""Alignment with a frozen teacher: what it computes, what it trains, and what is kept of it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import lvsm_jax
from lvsm_jax.batch import shard_batch
from lvsm_jax.common.tree import named_leaves
from lvsm_jax.frozen import dino
from lvsm_jax.parallel.mesh import MeshConfig, make_mesh, replicate, state_shardings
from lvsm_jax.training import repa
from lvsm_jax.training.checkpoints import Checkpoints
from lvsm_jax.training.frozen_networks import Frozen
from lvsm_jax.training.repa import RepaConfig, Stream, new_projectors, repa_loss
from lvsm_jax.training.train_state import abstract_state, new_state, train_step
from tests.training.test_training import TINY, assert_close, random_batch, run, tiny_config

TEACHER = dino.DinoConfig(num_layers=3, width=48, head_dim=16, image_size=32)


@pytest.fixture(scope="module", autouse=True)
def tiny_teacher():
    dino.TEACHERS["tiny"] = TEACHER
    yield
    del dino.TEACHERS["tiny"]


@pytest.fixture(scope="module")
def frozen():
    return Frozen(teacher=dino.Dino(TEACHER, rngs=nnx.Rngs(5)))


def repa_config(**changes):
    defaults = {"weight": 0.5, "teacher": "tiny", "hidden": 24, "encoder": "1:2", "decoder": "1:2"}
    return RepaConfig(**defaults | changes)


def with_repa(**changes):
    return dataclasses.replace(tiny_config(), repa=repa_config(**changes))


@pytest.fixture(scope="module")
def step(frozen):
    compiled = jax.jit(train_step, static_argnums=0)
    return lambda config, state, batch: compiled(config, state, batch, frozen)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes", [{}, {"co_refinement": False}, {"shared_streams": True, "remat": "full"}]
)
def test_features_are_the_tokens_after_those_layers(changes):
    config = dataclasses.replace(TINY, num_layers=3, **changes)
    model = lvsm_jax.EfficientLVSM(config, rngs=nnx.Rngs(0))
    batch = random_batch(2)
    images = jnp.float32(batch.inputs.images) / 255
    args = images, batch.inputs.cameras, batch.targets.cameras

    def outputs(model, *layers):
        return jax.jit(lambda *x: x[0].render_with_features(*x[1:], *layers))(model, *args)

    render, inputs, targets = outputs(model, (2, 3), (3, 2))
    np.testing.assert_allclose(render, model(*args), atol=1e-6)
    encoded = jax.jit(lambda model, *x: model.encode(*x))(model, *args[:2])
    np.testing.assert_allclose(inputs[1], encoded.tokens[-1], atol=1e-6)
    np.testing.assert_allclose(model.pixels(targets[0], 16, 16), render, atol=1e-6)
    # A model of the first layers alone ends with the same tokens, if it reads the same inputs.
    first = dataclasses.replace(config, num_layers=2)
    shallow = lvsm_jax.EfficientLVSM(first, rngs=nnx.Rngs(1))
    shallow.input_tokenizer, shallow.target_tokenizer = (
        model.input_tokenizer,
        model.target_tokenizer,
    )
    shallow.encoder, shallow.decoder = jax.tree.map(lambda x: x[:2], (model.encoder, model.decoder))
    expected = outputs(shallow, (2,), (2,))
    np.testing.assert_allclose(inputs[0], expected[1][0], atol=1e-6)
    if config.co_refinement:
        np.testing.assert_allclose(targets[1], expected[2][0], atol=1e-6)


@pytest.mark.parametrize("name", ["smooth_l1", "l2", "cosine"])
def test_distances(name):
    a, b = np.random.default_rng(0).normal(0, 1.5, (2, 3, 5, 7))
    expected = {
        "smooth_l1": np.where(abs(a - b) < 1, (a - b) ** 2 / 2, abs(a - b) - 0.5).mean(),
        "l2": ((a - b) ** 2).mean(),
        "cosine": np.mean(
            1 - (a * b).sum(-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))
        ),
    }
    distance = repa.DISTANCES[name]
    np.testing.assert_allclose(distance(*jnp.float32([a, b])), expected[name], rtol=1e-5)
    zero = jnp.zeros((1, 4))
    assert np.isfinite(jax.grad(lambda x: distance(x, zero))(zero)).all()


@pytest.mark.slow
def test_the_loss_is_the_mean_over_all_views_of_projected_tokens(frozen):
    config = repa_config(decoder="2:3,1:2")
    projectors = new_projectors(config, TINY, nnx.Rngs(0))
    assert named_leaves(projectors)["second.kernel"].shape == (2, 24, 24)
    rng = np.random.default_rng(0)
    images = [jnp.float32(rng.uniform(size=(2, v, 16, 24, 3))) for v in (1, 2)]
    tokens = [jnp.float32(rng.normal(size=(2, v, 6, 32))) for v in (1, 2, 2)]
    streams = [
        Stream(config.encoder_pairs, images[0], (tokens[0],)),
        Stream(config.decoder_pairs, images[1], (tokens[1], tokens[2])),
    ]
    loss = jax.jit(lambda *args: repa_loss(config, *args, streams, patch_size=8))
    # The projector of pair 1:2 serves both streams.
    errors = []
    for view_tokens, index, view_images, block in (
        (tokens[0], 0, images[0], 2),
        (tokens[1], 1, images[1], 3),
        (tokens[2], 0, images[1], 2),
    ):
        x = view_tokens
        for layer in ("first", "second", "third"):
            linear = getattr(projectors, layer)
            x = x @ linear.kernel[index] + linear.bias[index]
            x = x if layer == "third" else jax.nn.silu(x)
        for v in range(x.shape[1]):
            (wanted,) = frozen.teacher.features(view_images[:, v], (block,), (2, 3))
            errors.append(repa.DISTANCES["smooth_l1"](x[:, v], wanted.reshape(2, 6, 48)))
    np.testing.assert_allclose(loss(projectors, frozen.teacher), np.mean(errors), rtol=1e-5)


@pytest.mark.slow
def test_it_trains_the_projectors_and_stops_and_resumes(step, tmp_path):
    config, batch = with_repa(stop_step=10), random_batch()
    state = new_state(config, 0)
    # The model begins as without REPA.
    assert_close(state.model, new_state(tiny_config(), 0).model, rtol=0)
    first, metrics = run(step, config, [batch], state)
    total = metrics["loss/mse"] + 0.5 * metrics["loss/repa"]
    np.testing.assert_allclose(metrics["loss"], total, rtol=1e-6)
    last, metrics_at_end = run(step, config, [batch] * 9, first)
    assert metrics_at_end["loss/repa"] < 0.95 * metrics["loss/repa"]
    for name, leaf in named_leaves(state.projectors).items():
        assert np.abs(leaf - named_leaves(last.projectors)[name]).max() > 1e-4, name
    after, metrics = run(step, config, [batch], last)
    assert metrics["loss/repa"] == 0
    assert metrics["loss"] == metrics["loss/mse"]

    mesh, checkpoints = make_mesh(), Checkpoints(tmp_path, keep_last=1)
    checkpoints.save(10, last)
    checkpoints.close()
    checkpoints = Checkpoints(tmp_path, keep_last=None)
    restored = checkpoints.restore(abstract_state(config, mesh), 10)
    checkpoints.close()
    assert not any("teacher" in name or "blocks" in name for name in named_leaves(restored))
    resumed, _ = run(step, config, [batch], jax.tree.map(np.asarray, restored))
    assert_close(resumed, after, rtol=0)


def test_exports_hold_the_model_alone(tmp_path):
    state = new_state(with_repa(), 0)
    lvsm_jax.save(state.best_weights, tmp_path / "export")
    names = named_leaves(lvsm_jax.load(tmp_path / "export")).keys()
    assert names == named_leaves(new_state(tiny_config(), 0).model).keys()


def test_eight_devices_do_as_one(frozen):
    config, rng = repa_config(), np.random.default_rng(0)
    projectors = new_projectors(config, TINY, nnx.Rngs(0))
    images = rng.uniform(size=(8, 2, 16, 16, 3)).astype(np.float32)
    tokens = rng.normal(size=(8, 2, 4, 32)).astype(np.float32)

    @jax.jit
    def grads(projectors, teacher, images, tokens):
        def loss(projectors, tokens):
            stream = Stream(config.encoder_pairs, images, (tokens,))
            return repa_loss(config, projectors, teacher, [stream], patch_size=8, remat="full")

        return jax.value_and_grad(loss, argnums=(0, 1))(projectors, tokens)

    expected = grads(projectors, frozen.teacher, images, tokens)
    mesh = make_mesh(MeshConfig(2, 4))
    with jax.set_mesh(mesh):
        shardings = state_shardings(mesh, jax.eval_shape(lambda: projectors))
        cut = jax.device_put(projectors, shardings)
        teacher = replicate(mesh, frozen.teacher)
        result = grads(cut, teacher, *shard_batch(mesh, (images, tokens)))
    assert np.abs(expected[1][1]).max() > 1e-6
    assert_close(result, expected, rtol=1e-4, atol=1e-7)
    kernel = named_leaves(abstract_state(with_repa(), mesh).projectors)["second.kernel"]
    assert kernel.sharding.shard_shape(kernel.shape) == (1, 6, 24)


@pytest.mark.parametrize("sizes", [(2, 4, 1), (2, 2, 2)])
def test_a_step_on_eight_devices(frozen, sizes):
    """That it compiles with scenes, views and weights cut; the numbers are tested in parts."""
    config, mesh = with_repa(stop_step=1), make_mesh(MeshConfig(*sizes))
    with jax.set_mesh(mesh):
        batch = shard_batch(mesh, random_batch())
        teacher = replicate(mesh, frozen)
        state = abstract_state(config, mesh)
        traced = jax.jit(train_step, static_argnums=0).trace(config, state, batch, teacher)
    after, metrics = traced.out_info
    kernel = named_leaves(after.projectors)["second.kernel"]
    assert kernel.sharding.shard_shape(kernel.shape) == (1, 24 // sizes[1], 24)
    assert metrics["loss/repa"].shape == ()


@pytest.mark.parametrize("grad_accumulation", [1, 2])
def test_types_in_bfloat16(frozen, grad_accumulation):
    model = dataclasses.replace(TINY, dtype="bfloat16")
    config = dataclasses.replace(
        tiny_config(model=model), repa=repa_config(), grad_accumulation=grad_accumulation
    )
    state = jax.eval_shape(lambda: new_state(config, 0))
    after, metrics = jax.eval_shape(
        lambda *args: train_step(config, *args), state, random_batch(), frozen
    )
    types = ({name: x.dtype for name, x in named_leaves(tree).items()} for tree in (state, after))
    assert next(types) == next(types)
    assert metrics["loss/repa"].dtype == jnp.float32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder": "2-8"}, "repa.encoder is '2-8', expected pairs"),
        ({"decoder": "2:8,"}, "repa.decoder is '2:8,', expected pairs"),
        ({"decoder": "0:8"}, "repa.decoder is '0:8', expected pairs"),
        ({"encoder": "2:13", "weight": 0.0}, "'2:13', but dinov3_vitb16 has 12 blocks"),
        ({"encoder": "", "decoder": ""}, "repa.encoder and repa.decoder are empty"),
        ({"distance": "l1"}, "repa.distance is 'l1', expected one of .*'cosine'"),
        ({"teacher": "clip"}, "repa.teacher is 'clip', expected one of .*dinov2_vitb14"),
        ({"weight": -1.0}, "repa.weight is -1.0, expected at least 0"),
        ({"hidden": 0}, "repa.hidden is 0, expected at least 1"),
    ],
)
def test_impossible_settings(changes, message):
    with pytest.raises(ValueError, match=message):
        RepaConfig(**{"weight": 0.5, **changes})


def test_models_that_it_does_not_fit():
    baseline = lvsm_jax.LVSMDecoderOnlyConfig(num_layers=2, width=32, head_dim=16)
    for model, pairs, message in (
        (baseline, {}, "only EfficientLVSM has two streams"),
        (TINY, {"encoder": "3:1"}, "the model has 2 layers"),
    ):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(tiny_config(model=model), repa=repa_config(**pairs))
        dataclasses.replace(tiny_config(model=model), repa=repa_config(**pairs, weight=0.0))


def test_what_a_run_cannot_go_on_without():
    on, off = RepaConfig(weight=0.5), RepaConfig()
    assert on.structure != off.structure
    assert off.structure == RepaConfig(encoder="3:8").structure
    same = {"weight": 0.1, "stop_step": 9, "distance": "cosine", "teacher_weights": "elsewhere"}
    assert on.structure == RepaConfig(**same).structure
    for other in ({"encoder": "3:8"}, {"hidden": 64}, {"teacher": "dinov2_vitb14"}):
        assert on.structure != RepaConfig(weight=0.5, **other).structure
