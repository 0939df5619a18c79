"""Input views spread over devices: the same pixels, gradients and cache as on one device."""

import dataclasses
import functools
import re
import types
from contextlib import closing
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import lvsm_jax
from lvsm_jax.batch import Batch, Views, shard_batch
from lvsm_jax.common.tree import from_named, named_leaves
from lvsm_jax.evaluation.metrics import psnr
from lvsm_jax.evaluation.scoring import evaluate
from lvsm_jax.models.attention import attention, attention_with_lse, merge_attention
from lvsm_jax.models.layers import DenseKV
from lvsm_jax.models.sharded_attention import shard_gradients
from lvsm_jax.parallel.mesh import MeshConfig, data_shard, make_mesh
from lvsm_jax.training.checkpoints import Checkpoints
from lvsm_jax.training.losses import LossConfig
from lvsm_jax.training.optimizer import OptimizerConfig
from lvsm_jax.training.train_state import (
    TrainingConfig,
    abstract_state,
    init_state,
    new_state,
    to_unit,
    train_step,
)
from tests.helpers.copying import with_random_copies

SIZE = (8, 16)
TINY = lvsm_jax.EfficientLVSMConfig(num_layers=2, width=16, head_dim=8)
# With the usual eps, a gradient of 1e-9 that is all rounding would move a weight as any other.
FAST = OptimizerConfig(
    learning_rate=1e-3, warmup_steps=0, skip_after=0, schedule="constant", eps=1e-6
)


def some_views(count, scenes=1, seed=0):
    """Noise, as 8-bit images."""
    rng = np.random.default_rng(seed)
    c2w = np.tile(np.eye(4, dtype=np.float32), (scenes, count, 1, 1))
    c2w[..., :3, 3] = rng.uniform(-1, 1, (scenes, count, 3))
    cameras = lvsm_jax.Cameras(c2w, np.full((scenes, count, 4), 12, np.float32))
    images = rng.integers(0, 256, (scenes, count, *SIZE, 3), dtype=np.uint8)
    return Views(images, cameras, np.zeros((scenes, count), np.int32))


def some_batch(seed, inputs=8, targets=4, scenes=8):
    rows = np.arange(scenes, dtype=np.int32)
    views = some_views(inputs, scenes, seed), some_views(targets, scenes, seed + 100)
    return Batch(*views, rows, rows >= 0, rows * 0)


def unit(views):
    return views.images.astype(np.float32) / 255


def assert_close(ours, expected, **tolerance):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, **tolerance)


@pytest.fixture(scope="module")
def model():
    """With a decoder that reads its inputs more than one with random weights does."""
    model = lvsm_jax.EfficientLVSM(TINY, rngs=nnx.Rngs(0))
    larger = {name: a * 3 if "decoder" in name else a for name, a in named_leaves(model).items()}
    return from_named(model, larger)


@pytest.fixture(scope="module")
def one_device(model, step):
    """Two steps on one device: batches, the state and the metrics."""
    batches = [some_batch(seed) for seed in range(2)]
    return batches, *steps(training(), batches, new_state(training(), 0, model), step)


@pytest.fixture(scope="module")
def step():
    return jax.jit(train_step, static_argnums=0)


def training(parts=1, model=TINY):
    return TrainingConfig(model, FAST, LossConfig(), num_steps=10, grad_accumulation=parts)


def steps(config, batches, state, step):
    for batch in batches:
        state, metrics = step(config, state, batch)
    return state, metrics


@pytest.mark.parametrize(
    ("targets", "dtype"), [(8, jnp.float32), (3, jnp.float32), (8, jnp.bfloat16)]
)
def test_attention_to_spread_keys(targets, dtype):
    """Forward and gradients, with spread queries and with queries that all devices have."""
    mesh = make_mesh(MeshConfig(2, 1, 4))
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = [(2, n, 2, 8) for n in (targets, 24, 24, targets)]
    *qkv, weights = (2 * jax.random.normal(k, s, dtype) for k, s in zip(keys, shapes, strict=True))

    def gradients(q, k, v, weights):
        def value(q, k, v):
            out = DenseKV(k, v, "auto").attend(q)
            return (out * weights).astype(jnp.float32).sum(), out

        return jax.grad(value, argnums=(0, 1, 2), has_aux=True)(q, k, v)

    expected = jax.jit(gradients)(*(x.astype(jnp.float32) for x in (*qkv, weights)))
    queries = P("data", "view" if targets % 4 == 0 else None)
    specs = (queries, P("data", "view"), P("data", "view"), queries)
    with jax.set_mesh(mesh):
        arrays = [
            jax.device_put(x, NamedSharding(mesh, spec))
            for x, spec in zip((*qkv, weights), specs, strict=True)
        ]
        ours = jax.jit(gradients)(*arrays)
    exact = dtype == jnp.float32
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        # Gradients reach 5, of which the last digit is 5e-7.
        np.testing.assert_allclose(
            np.asarray(a, np.float32), b, atol=1e-5 if exact else 0.1, rtol=2e-6 if exact else 0.05
        )


@pytest.mark.parametrize(("sizes", "parts"), [((2, 2, 2), 2), ((1, 1, 8), 4)])
def test_steps_are_those_of_one_device(model, one_device, step, sizes, parts):
    batches, expected, expected_metrics = one_device
    mesh, config = make_mesh(MeshConfig(*sizes)), training(parts)
    with jax.set_mesh(mesh):
        state = init_state(config, mesh, 0, model)
        placed = [shard_batch(mesh, batch) for batch in batches]
        state, metrics = steps(config, placed, state, step)
    assert_close(state.model, expected.model, atol=1e-5)
    assert_close(metrics, expected_metrics, rtol=1e-4)
    images = placed[0].inputs.images
    scenes, views = 8 // (sizes[0] * sizes[1]), 8 // sizes[2]
    assert images.sharding.shard_shape(images.shape)[:2] == (scenes, views)


@pytest.mark.parametrize("implementation", ["splash", "xla"])
def test_gradients_from_a_part_of_the_keys(implementation):
    keys = jax.random.split(jax.random.key(0), 4)
    q, k, v, g = (jax.random.normal(key, (1, 256, 1, 64)) for key in keys)

    def dense(q, k, v):
        return (attention(q, k, v, implementation="xla") * g).sum()

    dq, dk, dv = jax.grad(dense, argnums=(0, 1, 2))(q, k, v)
    halves = [(x[:, :128], x[:, 128:]) for x in (k, v)]
    parts = [
        attention_with_lse(q, *kv, implementation=implementation)
        for kv in zip(*halves, strict=True)
    ]
    out, lse = merge_attention(*parts)
    mean = (out * g).sum(axis=-1)
    ours = [
        shard_gradients(q, *half, lse, mean, g, implementation=implementation)
        for half in zip(*halves, strict=True)
    ]
    np.testing.assert_allclose(sum(part[0] for part in ours), dq, atol=1e-4)
    for i, expected in ((1, dk), (2, dv)):
        joined = np.concatenate([part[i] for part in ours], axis=1)
        np.testing.assert_allclose(joined, expected, atol=1e-4)


def test_gradients_where_jax_has_no_such_backward_pass(monkeypatch):
    """The one of splash attention is called by a private name, which may go."""
    monkeypatch.delattr(splash_attention_kernel, "_splash_attention_bwd_dkv")
    with pytest.warns(UserWarning, match="has no _splash_attention_bwd_dkv"):
        test_gradients_from_a_part_of_the_keys("splash")


@pytest.mark.slow
def test_a_run_goes_on_on_another_mesh(model, one_device, step, tmp_path):
    batches, expected, _ = one_device
    mesh = make_mesh(MeshConfig(4, 2, 1))
    with jax.set_mesh(mesh), closing(Checkpoints(tmp_path, keep_last=2)) as checkpoints:
        state = init_state(training(), mesh, 0, model)
        state, _ = steps(training(), [shard_batch(mesh, batches[0])], state, step)
        checkpoints.save(1, state)
    checkpoints = Checkpoints(tmp_path, keep_last=None)
    for sizes, parts in [((1, 8, 1), 1), ((2, 2, 2), 2)]:
        mesh, config = make_mesh(MeshConfig(*sizes)), training(parts)
        with jax.set_mesh(mesh):
            state = checkpoints.restore(abstract_state(config, mesh), 1)
            kernel = state.opt_state[1][0].mu.decoder.mlp.up.kernel[...]
            assert kernel.sharding.shard_shape(kernel.shape) == (2, 16 // sizes[1], 64)
            state, _ = steps(config, [shard_batch(mesh, batches[1])], state, step)
        assert_close(state.model, expected.model, atol=1e-5)
    checkpoints.close()


def test_what_the_mesh_does_not_divide():
    mesh = make_mesh(MeshConfig(2, 1, 4))
    with pytest.raises(ValueError, match=r"6 input views do not divide over mesh\.view = 4"):
        shard_batch(mesh, some_batch(0, inputs=6))
    with jax.set_mesh(mesh):
        with pytest.raises(ValueError, match=r"a cache: 6 input views do not divide over"):
            lvsm_jax.init_cache(lvsm_jax.EfficientLVSM(TINY, rngs=nnx.Rngs(0)), 2, 6, SIZE)
        batch = shard_batch(mesh, some_batch(0, scenes=2))
        with pytest.raises(ValueError, match=r"2 scenes / grad_accumulation=2: 1 scenes do not"):
            jax.eval_shape(lambda: train_step(training(2), new_state(training(), 0), batch))
        for config in (
            lvsm_jax.LVSMDecoderOnlyConfig(num_layers=1, width=16, head_dim=8),
            lvsm_jax.LVSMEncoderDecoderConfig(num_layers=1, width=16, head_dim=8, num_latents=4),
        ):
            with pytest.raises(ValueError, match=r"mesh\.view is 4, but in LVSM\w+ the"):
                jax.eval_shape(
                    lambda config=config: train_step(
                        training(model=config), new_state(training(model=config), 0), batch
                    )
                )


def on_mesh(model, mesh):
    return jax.device_put(model, NamedSharding(mesh, P()))


def test_random_changes_of_a_spread_cache(model):
    """Two scenes on two devices each by four, with different numbers of views."""
    rng, mesh, most = np.random.default_rng(0), make_mesh(MeshConfig(2, 1, 4)), 8
    everything, cameras = some_views(200, 2), some_views(3, 2, seed=1).cameras
    seen = []
    scenes = [[], []]  # positions in everything by the views' numbers

    def taken(positions):
        """One row of positions for each scene."""
        rows = np.arange(2)[:, None]
        part = jax.tree.map(lambda x: x[rows, np.array(positions)], everything)
        return unit(part), part.cameras

    with jax.set_mesh(mesh):
        placed = on_mesh(model, mesh)
        cache = lvsm_jax.init_cache(placed, 2, most, SIZE)
        for position in range(0, 120, 3):
            kind = rng.choice(["add", "add", "replace", "remove"])
            numbers = np.array([len(views) for views in scenes])
            positions = position + np.arange(3)
            if kind == "add":
                new = rng.integers(0, np.minimum(3, most - numbers) + 1)
                cache = lvsm_jax.add_views(placed, cache, *taken([positions] * 2), num_new=new)
                for views, count in zip(scenes, new, strict=True):
                    views += positions[:count].tolist()
            elif kind == "replace" and numbers.min() > 0:
                index = rng.integers(0, numbers)
                cache = lvsm_jax.replace_view(placed, cache, index, *taken([[position]] * 2))
                for views, i in zip(scenes, index, strict=True):
                    views[i] = position
            elif kind == "remove":
                rows = [rng.permutation(n)[:2].tolist() for n in numbers]
                indices = [row + [-1] * (2 - len(row)) for row in rows]
                cache = lvsm_jax.remove_views(cache, indices)
                for views, row in zip(scenes, rows, strict=True):
                    for i in sorted(row, reverse=True):
                        views[i] = views[-1]
                        views.pop()
            assert np.asarray(cache.num_views).tolist() == [len(views) for views in scenes]
            if position % 39 == 36 and all(scenes):
                render = np.asarray(lvsm_jax.render(placed, cache, cameras))
                seen.append((render, [list(views) for views in scenes]))
    assert len(seen) > 1
    for render, scenes in seen:
        for scene, views in enumerate(scenes):
            part = jax.tree.map(lambda x, s=scene, v=views: x[s : s + 1, v], everything)
            target = jax.tree.map(lambda x, s=scene: x[s : s + 1], cameras)
            full_pass = model(unit(part), part.cameras, target)
            np.testing.assert_allclose(render[scene : scene + 1], full_pass, atol=1e-5)


def test_a_thousand_views_on_eight_devices(model):
    views, cameras = some_views(1000), some_views(11, seed=1).cameras
    expected = model(unit(views), views.cameras, cameras)
    mesh = make_mesh(MeshConfig(1, 1, 8))
    with jax.set_mesh(mesh):
        placed = on_mesh(model, mesh)
        cache = lvsm_jax.init_cache(placed, 1, 1000, SIZE)
        keys = cache.store[0][0].data
        assert keys.sharding.shard_shape(keys.shape)[2] == 125
        where = {shard.data.unsafe_buffer_pointer() for shard in keys.addressable_shards}
        for first in range(0, 1000, 250):
            part = jax.tree.map(lambda x, f=first: x[:, f : f + 250], views)
            cache = lvsm_jax.add_views(placed, cache, unit(part), part.cameras)
        keys = cache.store[0][0].data
        assert {s.data.unsafe_buffer_pointer() for s in keys.addressable_shards} == where
        render = lvsm_jax.render(placed, cache, cameras, targets_at_once=8)
    np.testing.assert_allclose(render, expected, atol=1e-5)


def test_what_travels_does_not_grow_with_the_views():
    """The collectives of a forward and backward pass, for 8 and 16 views."""
    mesh = make_mesh(MeshConfig(1, 1, 8))

    def loss(model, batch):
        return model(
            to_unit(batch.inputs.images), batch.inputs.cameras, batch.targets.cameras
        ).sum()

    def program(views):
        weights = abstract_state(training(), mesh).model
        batch = shard_batch(mesh, some_batch(0, inputs=views, targets=8, scenes=1))
        return jax.jit(jax.grad(loss)).lower(weights, batch).compile().as_text()

    with jax.set_mesh(mesh):
        few, many = (collectives(program(views)) for views in (8, 16))
    assert few
    assert few == many


def collectives(hlo):
    """The collectives between devices of a compiled program with the shapes of their results."""
    names = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"
    found = re.findall(rf"= (.+?) ({names})\(.*replica_groups=(\S+)", hlo)
    return sorted(part[:2] for part in found if not part[2].startswith("{{0},"))


@pytest.mark.slow
@pytest.mark.parametrize("targets", [4, 3], ids=["spread", "whole"])
def test_a_head_that_copies(targets):
    """Renders and gradients, of targets that are spread and that all devices have; and a cache."""
    config = dataclasses.replace(TINY, num_layers=1, copy_head=True)
    model = with_random_copies(lvsm_jax.EfficientLVSM(config, rngs=nnx.Rngs(0)))
    mesh, batch = make_mesh(MeshConfig(1, 2, 4)), some_batch(0, targets=targets, scenes=2)

    @jax.jit
    def gradients(model, batch):
        def loss(model):
            images, cameras = to_unit(batch.inputs.images), batch.targets.cameras
            render = model(images, batch.inputs.cameras, cameras)
            return jnp.square(render).mean(), render

        return jax.grad(loss, has_aux=True)(model)

    expected, expected_render = gradients(model, batch)
    with jax.set_mesh(mesh):
        placed = init_state(training(model=config), mesh, 0, model).model
        ours, render = gradients(placed, shard_batch(mesh, batch))
        cached = on_mesh(model, mesh)
        cache = lvsm_jax.init_cache(cached, 2, 8, SIZE)
        views = batch.inputs
        cache = lvsm_jax.add_views(cached, cache, unit(views), views.cameras, num_new=[8, 7])
        cache = lvsm_jax.remove_views(cache, [[1, 4], [-1, 2]])
        from_cache = np.asarray(lvsm_jax.render(cached, cache, batch.targets.cameras))
    np.testing.assert_allclose(render, expected_render, atol=1e-5)
    assert_close(ours, expected, atol=1e-6)
    for scene, left in enumerate(([0, 2, 3, 5, 6, 7], [0, 1, 3, 4, 5, 6])):
        part = jax.tree.map(lambda x, s=scene, v=left: x[s : s + 1, v], views)
        cameras = jax.tree.map(lambda x, s=scene: x[s : s + 1], batch.targets.cameras)
        full_pass = model(unit(part), part.cameras, cameras)
        np.testing.assert_allclose(from_cache[scene : scene + 1], full_pass, atol=1e-5)


def test_evaluation(model):
    """Scores of a batch whose input and target views are spread."""
    batch = some_batch(0, inputs=4, scenes=4)
    mesh = make_mesh(MeshConfig(2, 1, 4))
    scenes = Scenes(batch)
    expected = evaluate(model, scenes, metrics={"psnr": psnr}, progress=False)
    with jax.set_mesh(mesh):
        put = functools.partial(shard_batch, mesh)
        ours = evaluate(
            on_mesh(model, mesh), scenes, metrics={"psnr": psnr}, put=put, progress=False
        )
    for method, scores in expected.scores.items():
        np.testing.assert_allclose(ours.scores[method]["psnr"], scores["psnr"], rtol=1e-5)


@dataclasses.dataclass(frozen=True)
class Scenes:
    """One batch of scenes to evaluate."""

    batch: Batch
    num_scenes: int = 4
    rows: range = range(4)

    @property
    def scenes(self):
        return types.SimpleNamespace(key=[str(row) for row in range(4)])

    def __iter__(self):
        return iter([self.batch])


def test_processes_that_share_scenes_read_the_same():
    def mesh(processes, data, fsdp, view):
        """Of devices of several processes, of which this is process 0."""
        count = data * fsdp * view
        devices = np.empty(count, object)
        for i in range(count):
            devices[i] = types.SimpleNamespace(process_index=i * processes // count)
        shape = {"data": data, "fsdp": fsdp, "view": view}
        return mock.Mock(spec=Mesh, devices=devices.reshape(data, fsdp, view), shape=shape)

    assert data_shard(mesh(1, 2, 2, 2)) == (0, 1)
    assert data_shard(mesh(4, 4, 2, 1)) == (0, 4)
    assert data_shard(mesh(4, 1, 2, 4)) == (0, 2)
    assert data_shard(mesh(8, 1, 1, 8)) == (0, 1)
    with pytest.raises(ValueError, match="share some scenes and not others"):
        data_shard(mesh(2, 1, 3, 2))
