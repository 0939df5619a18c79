"""GS-LRM: what its channels mean, where its Gaussians are, and how it is trained."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import lvsm_jax
from lvsm_jax.batch import Batch, Views, shard_batch
from lvsm_jax.evaluation.metrics import psnr
from lvsm_jax.evaluation.scoring import evaluate
from lvsm_jax.gaussians.rasterize import rasterize
from lvsm_jax.models.cameras import rays
from lvsm_jax.models.layers import LayerNorm
from lvsm_jax.parallel.mesh import MeshConfig, make_mesh
from lvsm_jax.training.distances import depth_loss, distance_loss
from lvsm_jax.training.frozen_networks import NO_NETWORKS
from lvsm_jax.training.losses import LossConfig
from lvsm_jax.training.optimizer import OptimizerConfig
from lvsm_jax.training.train_state import (
    TrainingConfig,
    compiled_step,
    init_state,
    new_state,
    train_step,
)

SIZE = 16
CONFIG = lvsm_jax.GSLRMConfig(
    num_layers=1,
    width=32,
    head_dim=16,
    near=0.5,
    far=6.0,
    scale_bias=-2.0,
    tile_size=8,
    pairs_per_gaussian=8.0,
)


def cameras(scenes, views, seed):
    rng = np.random.default_rng(seed)
    c2w = np.broadcast_to(np.eye(4, dtype=np.float32), (scenes, views, 4, 4)).copy()
    c2w[..., :3, 3] = rng.uniform(-0.3, 0.3, (scenes, views, 3))
    fxfycxcy = np.float32([14, 15, 7.5, 8.25])
    return lvsm_jax.Cameras(c2w, np.broadcast_to(fxfycxcy, (scenes, views, 4)).copy())


def pictures(scenes, views):
    pixels = np.random.default_rng(5).uniform(0, 1, (scenes, views, SIZE, SIZE, 3))
    return jnp.asarray(pixels, jnp.float32)


@pytest.fixture(scope="module")
def model():
    return lvsm_jax.GSLRM(CONFIG, rngs=nnx.Rngs(0))


@jax.jit
def predict(model, images, inputs):
    return model.gaussians_and_distances(images, inputs)


@jax.jit
def report(model, images, inputs, targets):
    return model.render_and_report(images, inputs, targets)


def with_raw(model, raw):
    """The model with a head that says the same twelve numbers of every pixel."""
    model.head_norm = LayerNorm(CONFIG.width, scale=True, bias=True)
    model.head_norm.scale[...] = jnp.zeros(CONFIG.width)
    model.head_norm.bias[...] = jnp.ones(CONFIG.width)
    kernel = jnp.tile(jnp.asarray(raw, jnp.float32), CONFIG.patch_size**2) / CONFIG.width
    model.head.kernel[...] = jnp.broadcast_to(kernel, model.head.kernel.shape)
    return model


def test_what_the_channels_mean(model):
    raw = [0.3, 1.0, -4.0, 0.2, -1.0, 0.5, 9.0, 0.1, -0.2, 0.3, 0.4, 0.7]
    config = dataclasses.replace(CONFIG, distance_bias=-1.0)
    biased = with_raw(lvsm_jax.GSLRM(config, rngs=nnx.Rngs(0)), raw)
    inputs = cameras(1, 2, 0)
    gaussians, distances = predict(biased, pictures(1, 2), inputs)

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    np.testing.assert_allclose(distances, 0.5 + 5.5 * sigmoid(0.3 - 1), rtol=1e-5)
    harmonic = 0.28209479177387814
    colors = [0.5 + harmonic, 0.0, 0.5 + 0.2 * harmonic]  # clamped at 0, not at 1
    np.testing.assert_allclose(gaussians.colors[0, 7], colors, rtol=1e-5)
    scales = [np.exp(-3.0), np.exp(-1.5), 0.3]
    np.testing.assert_allclose(gaussians.scales[0, 7], scales, rtol=1e-5)
    turn = np.array(raw[7:11]) / np.linalg.norm(raw[7:11])
    np.testing.assert_allclose(gaussians.quaternions[0, 7], turn, rtol=1e-5)
    np.testing.assert_allclose(gaussians.opacities[0, 7], sigmoid(0.7 - 2), rtol=1e-5)


def test_what_they_mean_beside_the_published(model):
    """Shares of 1 / distance, scales in pixels, colours that differ from the pixel's own."""
    raw = [0.3, 1.0, -4.0, 0.2, -1.0, 0.5, 9.0, 0.1, -0.2, 0.3, 0.4, 0.7]
    config = dataclasses.replace(
        CONFIG, distance_space="inverse", scale_unit="pixel", residual_colors=True
    )
    images, inputs = pictures(1, 2), cameras(1, 2, 0)
    other = with_raw(lvsm_jax.GSLRM(config, rngs=nnx.Rngs(0)), raw)
    gaussians, distances = predict(other, images, inputs)
    share = 1 / (1 + np.exp(-0.3))
    wanted = 1 / ((1 - share) / 0.5 + share / 6)
    np.testing.assert_allclose(distances, wanted, rtol=1e-5)
    own = np.asarray(images).reshape(-1, 3)
    harmonic = 0.28209479177387814 * np.array(raw[1:4])
    np.testing.assert_allclose(gaussians.colors[0], np.maximum(own + harmonic, 0), atol=1e-6)
    # The first pixel of the second view: its depth over the focal length is a pixel's side.
    x, y = (0.5 - 7.5) / 14, (0.5 - 8.25) / 15
    side = wanted / np.sqrt(x**2 + y**2 + 1) / 14.5
    scales = side * np.array([np.exp(-3.0), np.exp(-1.5), 0.3])
    np.testing.assert_allclose(gaussians.scales[0, SIZE**2], scales, rtol=1e-5)


def test_each_pixel_has_a_gaussian_on_its_ray(model):
    images, inputs = pictures(2, 3), cameras(2, 3, 0)
    gaussians, distances = predict(model, images, inputs)
    origins, directions = rays(inputs, SIZE, SIZE)
    points = origins[:, :, None, None] + distances[..., None] * directions
    # Views after each other, row by row.
    np.testing.assert_allclose(gaussians.means, points.reshape(2, -1, 3), atol=1e-6)
    assert len(np.unique(np.asarray(distances))) > 1000
    reach = lvsm_jax.GSLRM(dataclasses.replace(CONFIG, reach=1.0), rngs=nnx.Rngs(0))
    clipped = predict(reach, images, inputs)[0].means
    np.testing.assert_allclose(clipped, np.clip(gaussians.means, -1, 1), atol=1e-6)


@pytest.mark.slow
def test_renders_are_those_of_its_gaussians(model):
    images, inputs, targets = pictures(2, 2), cameras(2, 2, 0), cameras(2, 2, 1)
    renders = model(images, inputs, targets)
    gaussians, _ = predict(model, images, inputs)
    own = jax.tree.map(lambda x: x[1], gaussians)
    size = {"height": SIZE, "width": SIZE, "capacity": 9000, "tile": 16}
    camera = jnp.asarray(targets.c2w[1, 0]), jnp.asarray(targets.fxfycxcy[1, 0])
    raster = jax.jit(lambda own: rasterize(own, *camera, **size))(own)
    expected = np.clip(raster.features + (1 - raster.alpha) * CONFIG.background, 0, 1)
    np.testing.assert_allclose(renders[1, 0], expected, atol=1e-5)
    # Where there is no room for all pairs, a render is missing, and training is told.
    small = dataclasses.replace(CONFIG, pairs_per_gaussian=0.5)
    cramped = lvsm_jax.GSLRM(small, rngs=nnx.Rngs(0))
    assert np.isnan(cramped(images, inputs, targets)).all()
    splats = report(cramped, images, inputs, targets)
    assert np.isfinite(splats.images).all() and (splats.overflow > 0.1).all()
    assert not report(model, images, inputs, targets).overflow.any()


def test_weights_are_those_of_the_paper():
    model = lvsm_jax.GSLRM(dataclasses.replace(CONFIG, num_layers=3), rngs=nnx.Rngs(0))
    for kernel in (
        model.transformer.blocks.mlp.up.kernel,
        model.transformer.last.self_attention.to_kv.kernel,
        model.head.kernel,
    ):
        assert abs(float(kernel[...].std()) - 0.02) < 0.001  # the same at any depth
    assert not hasattr(model, "target_tokenizer")
    plain = lvsm_jax.GSLRM(dataclasses.replace(CONFIG, qk_norm=False), rngs=nnx.Rngs(0))
    assert plain.transformer.last.self_attention.q_norm is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"far": 0.1}, r"model.far is 0.1, expected more than model.near 0.5"),
        ({"max_scale": 0.0}, r"model.max_scale is 0.0, expected above 0"),
        ({"background": 2.0}, r"model.background is 2.0, expected 0 to 1"),
        ({"distance_space": "log"}, r"model.distance_space is 'log', expected .*inverse"),
        ({"scale_unit": "metre"}, r"model.scale_unit is 'metre', expected .*pixel"),
        ({"near": 0.0, "distance_space": "inverse"}, r"model.near is 0.0, expected above 0"),
        ({"pairs_per_gaussian": 0.0}, r"model.pairs_per_gaussian is 0.0, expected above 0"),
    ],
)
def test_what_cannot_be(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **change)


def test_the_shell_of_the_warm_up():
    rng = np.random.default_rng(0)
    posed, distances = cameras(2, 3, 0), rng.uniform(1, 9, (2, 3, 4, 4)).astype("f4")
    on_device = jnp.asarray(distances)
    wanted = np.empty_like(distances)
    for place in np.ndindex(2, 3):
        own = distances[place]
        middle = np.linalg.norm(posed.c2w[place][:3, 3])
        wanted[place] = (own - own.mean()) / own.std() * 0.5 + middle
    np.testing.assert_allclose(
        distance_loss(on_device, posed, 0.0), np.square(distances - wanted).mean(), rtol=1e-5
    )
    shift = distance_loss(on_device, posed, 7.0) - distance_loss(on_device, posed, 6.0)
    np.testing.assert_allclose(shift, 13 - 2 * distances.mean(), rtol=1e-4)
    # The targets of the shell are constants: each distance is pulled alone.
    grad = jax.grad(distance_loss)(on_device, posed, 0.0)
    np.testing.assert_allclose(grad, 2 * (distances - wanted) / distances.size, rtol=1e-4)


def test_the_depth_of_the_inputs():
    inputs = a_batch().inputs
    directions = np.asarray(rays(inputs.cameras, SIZE, SIZE)[1])
    along = directions[..., 2]  # these cameras look along z
    true = jnp.asarray(inputs.depth / along)
    assert float(depth_loss(true, inputs, 99.0)) < 1e-6
    np.testing.assert_allclose(depth_loss(1.5 * true, inputs, 99.0), np.log(1.5), rtol=1e-4)
    # The sky is at the farthest distance, and what is beyond.
    sky = dataclasses.replace(inputs, depth=np.full_like(inputs.depth, np.inf))
    four = jnp.full_like(true, 4.0)
    np.testing.assert_allclose(depth_loss(four, sky, 6.0), np.log(1.5), rtol=1e-4)
    beyond = dataclasses.replace(inputs, depth=np.full_like(inputs.depth, 1e3))
    np.testing.assert_allclose(depth_loss(four, beyond, 6.0), np.log(1.5), rtol=1e-4)


def training_config(**loss):
    return TrainingConfig(CONFIG, OptimizerConfig(warmup_steps=1), LossConfig(**loss), num_steps=20)


def test_losses_that_do_not_fit():
    with pytest.raises(ValueError, match=r"loss.distance is 0.1 and loss.distance_steps 0"):
        LossConfig(distance=0.1)
    other = lvsm_jax.EfficientLVSMConfig()
    with pytest.raises(ValueError, match=r"loss.depth is 0.2, but only GSLRM"):
        TrainingConfig(other, OptimizerConfig(), LossConfig(depth=0.2), num_steps=9)
    with pytest.raises(ValueError, match=r"loss.distance is 0.1, but only GSLRM"):
        TrainingConfig(
            other, OptimizerConfig(), LossConfig(distance=0.1, distance_steps=9), num_steps=9
        )


def a_batch():
    def views(count, seed):
        images = np.asarray(pictures(4, count) * 255).astype(np.uint8)
        depth = np.random.default_rng(seed).uniform(1, 5, images.shape[:-1]).astype(np.float32)
        return Views(images, cameras(4, count, seed), np.zeros((4, count), np.int32), depth)

    number = np.zeros(4, np.int32)
    return Batch(views(2, 0), views(2, 1), number, np.ones(4, bool), number)


@pytest.mark.slow
def test_steps_are_the_same_on_several_devices_and_begin_with_distances():
    config = training_config(distance=0.1, distance_steps=2, distance_middle=2.5, depth=0.5)
    found = {}
    for devices, remat in ((1, "none"), (4, "full")):
        model = dataclasses.replace(CONFIG, remat=remat)
        own = dataclasses.replace(config, model=model)
        mesh = make_mesh(MeshConfig(fsdp=2 if devices > 1 else 1), jax.devices()[:devices])
        with jax.set_mesh(mesh):
            state, batch = init_state(own, mesh, 0), shard_batch(mesh, a_batch())
            step, rows = compiled_step(own, mesh), []
            for _ in range(4):
                state, metrics = step(state, batch, NO_NETWORKS)
                rows.append({k: float(v) for k, v in metrics.items() if np.ndim(v) == 0})
            found[devices] = rows, jax.device_get(nnx.to_pure_dict(nnx.state(state.model)))
    (rows, weights), (other_rows, other_weights) = found.values()
    for row, other in zip(rows, other_rows, strict=True):
        assert row == pytest.approx(other, rel=2e-4, abs=1e-7)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), weights, other_weights)
    for row in rows[:2]:
        assert row["loss"] == pytest.approx(0.1 * row["loss/distance"])
    for row in rows[2:]:
        assert row["loss"] == pytest.approx(row["loss/mse"] + 0.5 * row["loss/depth"])
        assert row["loss/depth"] > 0.01
    assert rows[0]["overflow"] == 0


def test_without_depth_the_metrics_are_the_same():
    config, batch = training_config(depth=0.5), a_batch()
    plain = dataclasses.replace(batch, inputs=dataclasses.replace(batch.inputs, depth=None))
    state = jax.eval_shape(lambda: new_state(config, 0))
    names = [
        jax.eval_shape(functools.partial(train_step, config), state, some)[1].keys()
        for some in (batch, plain)
    ]
    assert names[0] == names[1] and "loss/depth" in names[0]


class Batches(list):
    """An evaluation's set of one batch."""

    num_scenes, rows = 4, np.arange(4)
    scenes = types.SimpleNamespace(key=np.array(["a", "b", "c", "d"]))


def test_an_evaluation_that_lacks_gaussians_fails():
    small = dataclasses.replace(CONFIG, pairs_per_gaussian=0.5)
    batch = dataclasses.replace(a_batch(), scene=np.arange(4, dtype=np.int32))
    how = {"metrics": {"psnr": psnr}, "baselines": False, "progress": False}
    found = evaluate(lvsm_jax.GSLRM(small, rngs=nnx.Rngs(0)), Batches([batch]), **how)
    with pytest.raises(ValueError, match=r"8 of 8 renders are not finite.*pairs_per_gaussian is"):
        found.check_finite()


@pytest.mark.long
@pytest.mark.slow
def test_it_learns_a_batch():
    """Flat pictures of one colour a scene: distances first, then colours and opacities."""
    batch = a_batch()
    flat = np.random.default_rng(2).integers(0, 255, (4, 1, 1, 1, 3), np.uint8)
    filled = [
        dataclasses.replace(views, images=np.broadcast_to(flat, views.images.shape).copy())
        for views in (batch.inputs, batch.targets)
    ]
    batch = dataclasses.replace(batch, inputs=filled[0], targets=filled[1])
    config = dataclasses.replace(
        training_config(distance=0.1, distance_steps=5, distance_middle=2.5),
        optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=5, schedule="constant"),
        num_steps=100,
    )
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    with jax.set_mesh(mesh):
        state, placed = init_state(config, mesh, 0), shard_batch(mesh, batch)
        step, scores = compiled_step(config, mesh), []
        for _ in range(100):
            state, metrics = step(state, placed, NO_NETWORKS)
            scores.append(float(metrics["psnr"]))
    assert scores[-1] > scores[0] + 8
