"""The loss that teaches a copying head where to look, on worlds whose depth is known."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lvsm_jax.common.config import DataConfig
from lvsm_jax.common.errors import UserError
from lvsm_jax.models.architectures import new_model
from lvsm_jax.models.efficient_lvsm import EfficientLVSMConfig
from lvsm_jax.models.lvsm import LVSMDecoderOnlyConfig
from lvsm_jax.parallel.mesh import MeshConfig, make_mesh
from lvsm_jax.training.copied_points import bounded_points, render_and_compare_points
from lvsm_jax.training.losses import LossConfig
from lvsm_jax.training.optimizer import OptimizerConfig
from lvsm_jax.training.repa import RepaConfig
from lvsm_jax.training.train_state import TrainingConfig, init_state, to_unit, train_step
from lvsm_jax.worlds import stream
from lvsm_jax.worlds.config import WorldsConfig
from tests.helpers.plain_worlds import use_plain_worlds

MODEL = EfficientLVSMConfig(num_layers=1, width=32, head_dim=16, copy_head=True)
TRAINING = TrainingConfig(MODEL, OptimizerConfig(), LossConfig(points=0.5), num_steps=10)


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(), jax.devices()[:1])


@pytest.fixture(scope="module")
def batch(mesh):
    with pytest.MonkeyPatch.context() as patch, jax.set_mesh(mesh):
        use_plain_worlds(patch)
        data = DataConfig("", image_height=16, num_views=6, num_targets=2, worlds_share=1.0)
        data = dataclasses.replace(data, scale_jitter=2.0, frame_turn=60.0)
        how = {"batch_size": 3, "seed": 0, "mesh": mesh, "with_depth": True}
        yield next(itertools.islice(stream.world_batches(data, WorldsConfig(), **how), 1))


def test_points_of_all_views_are_those_of_one_scene(batch):
    points = [np.asarray(bounded_points(views)) for views in (batch.inputs, batch.targets)]
    depth = [np.asarray(views.depth) for views in (batch.inputs, batch.targets)]
    assert any(np.isinf(far).any() for far in depth)
    for scene in range(3):
        walls = []
        for bounded, far in zip(points, depth, strict=True):
            length = np.linalg.norm(bounded[scene], axis=-1, keepdims=True)
            sky = np.isinf(far[scene])
            np.testing.assert_allclose(length[sky], 1, atol=1e-3)
            walls.append((bounded[scene] / (1 - length))[~sky])
        wall = np.concatenate(walls)
        # Turned, moved and scaled, the wall is a plane in all views: no spread across it.
        spread = np.linalg.svd(wall - wall.mean(0), compute_uv=False)
        assert spread[2] < 1e-4 * spread[1]


@pytest.mark.slow
def test_points_are_copied_as_colours_are(batch, mesh):
    with jax.set_mesh(mesh):
        model = new_model(MODEL, nnx.Rngs(0))
        images, cameras = (
            to_unit(batch.inputs.images),
            (batch.inputs.cameras, batch.targets.cameras),
        )
        compare = jax.jit(render_and_compare_points)
        render, loss = compare(model, images, batch)
        np.testing.assert_allclose(render, model(images, *cameras), atol=1e-6)
        assert loss > 1e-3
        # Where all show one point, it is copied from wherever the head looks.
        far = dataclasses.replace(
            batch.inputs.cameras, c2w=0 * batch.inputs.cameras.c2w + jnp.eye(4)
        )
        lens = jnp.broadcast_to(jnp.array([1e9, 1e9, 8, 8]), far.fxfycxcy.shape)
        far = dataclasses.replace(far, fxfycxcy=lens)
        same = dataclasses.replace(batch.inputs, cameras=far)
        same = dataclasses.replace(same, depth=jnp.full_like(same.depth, 3.0))
        _, loss = compare(model, images, dataclasses.replace(batch, inputs=same, targets=same))
        np.testing.assert_allclose(loss, 0, atol=1e-5)


@pytest.mark.slow
def test_steps_bring_the_points_nearer(batch, mesh):
    with jax.set_mesh(mesh):
        how = OptimizerConfig(learning_rate=3e-3, warmup_steps=1)
        config = dataclasses.replace(TRAINING, optimizer=how, num_steps=30)
        state = init_state(config, mesh, 0, None)
        step = jax.jit(lambda state: train_step(config, state, batch))
        losses = []
        for _ in range(25):
            state, metrics = step(state)
            losses.append(float(metrics["loss/points"]))
        assert losses[-1] < 0.7 * losses[0]


@pytest.mark.slow
def test_batches_without_depth_have_the_same_metrics(batch, mesh):
    def bare(views):
        return dataclasses.replace(views, depth=None)

    plain = dataclasses.replace(batch, inputs=bare(batch.inputs), targets=bare(batch.targets))
    with jax.set_mesh(mesh):
        state = init_state(TRAINING, mesh, 0, None)
        with_depth, without = (
            jax.eval_shape(lambda b: train_step(TRAINING, state, b)[1], b) for b in (batch, plain)
        )
        assert with_depth.keys() == without.keys()
        assert float(jax.jit(lambda: train_step(TRAINING, state, plain)[1])()["loss/points"]) == 0


@pytest.mark.parametrize(
    "change, message",
    [
        ({"model": dataclasses.replace(MODEL, copy_head=False)}, "no head that copies"),
        ({"model": LVSMDecoderOnlyConfig(width=32, head_dim=16)}, "no head that copies"),
        ({"repa": RepaConfig(weight=0.5, encoder="1:8", decoder="1:8")}, "exclude each other"),
    ],
)
def test_what_does_not_go_together(change, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(TRAINING, **change)
    with pytest.raises(UserError, match="points"):
        LossConfig(points=-1.0)
