"""The stream of worlds: a batch is a function of seed and step, whatever it is computed on."""

import dataclasses
import importlib
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import quickstart
from input_pipeline import loading, sampling
from input_pipeline.synthetic.settings import Settings as DatasetSettings
from lvsm_jax.batch import shard_batch
from lvsm_jax.common.config import DataConfig
from lvsm_jax.common.errors import UserError
from lvsm_jax.parallel.mesh import MeshConfig, make_mesh
from lvsm_jax.programs import data_sources
from lvsm_jax.scenes.scene_frame import SceneFrame
from lvsm_jax.training.settings import Settings
from lvsm_jax.worlds import generate, stream
from lvsm_jax.worlds.config import WorldsConfig
from lvsm_jax.worlds.sampling import Draw, draw_views
from lvsm_jax.worlds.scene_frame import normalize_cameras
from tests.helpers.plain_worlds import use_plain_worlds
from tests.helpers.tiny_dataset import assert_same

DATA = DataConfig(
    "", image_height=8, num_views=8, num_targets=3, input_counts=(2, 4), worlds_share=1.0
)
FULL = WorldsConfig()


@pytest.fixture(autouse=True)
def _plain(monkeypatch):
    use_plain_worlds(monkeypatch)


def batches(count, scenes=DATA, worlds=FULL, devices=1, start_step=0, **sizes):
    """Batches on the host."""
    mesh = make_mesh(MeshConfig(**sizes), jax.devices()[:devices])
    with jax.set_mesh(mesh):
        how = {"batch_size": 8, "seed": 3, "mesh": mesh, "start_step": start_step}
        found = itertools.islice(stream.world_batches(scenes, worlds, **how), count)
        return jax.device_get(list(found))


@pytest.mark.slow
def test_a_batch_is_the_same_on_any_mesh_and_from_any_step():
    data = dataclasses.replace(DATA, scale_jitter=1.5, frame_turn=30.0)
    worlds = WorldsConfig(steps_per_world=2)
    straight = batches(5, data, worlds)
    assert {batch.inputs.images.shape[1] for batch in straight} == {2, 4}
    for sizes in ({"data": 8}, {"data": 4, "fsdp": 2}, {"data": 2, "view": 2}):
        devices = int(np.prod(list(sizes.values())))
        assert_same(batches(5, data, worlds, devices, **sizes), straight)
    for step in (1, 4):
        assert_same(batches(5 - step, data, worlds, 2, step), straight[step:])


def test_a_batch_lies_as_one_of_a_dataset_does():
    mesh = make_mesh(MeshConfig(data=2, view=2), jax.devices()[:4])
    with jax.set_mesh(mesh):
        how = {"batch_size": 8, "seed": 3, "mesh": mesh}
        batch = next(stream.world_batches(DATA, WorldsConfig(), **how))
    placed = shard_batch(mesh, jax.device_get(batch))
    for ours, theirs in zip(jax.tree.leaves(batch), jax.tree.leaves(placed), strict=True):
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
        assert ours.sharding.is_equivalent_to(theirs.sharding, ours.ndim)


def views_of(batch, name):
    """Scene, position and picture of each view."""
    views = getattr(batch, name)
    for scene, frames, images in zip(batch.scene, views.frame, views.images, strict=True):
        for frame, image in zip(frames, images, strict=True):
            yield (int(scene), int(frame)), image.tobytes()


def test_worlds_serve_several_steps_with_other_views():
    found = batches(6, worlds=WorldsConfig(steps_per_world=3))
    numbers = [batch.scene.tolist() for batch in found]
    assert numbers == 3 * [list(range(8))] + 3 * [list(range(8, 16))]
    targets = [batch.targets.frame.tolist() for batch in found]
    assert targets[0] != targets[1] != targets[2]
    shown = dict(itertools.chain(*(views_of(batch, "targets") for batch in found)))
    assert len(set(shown.values())) == len(shown)  # no two views are alike
    for batch in found:  # and the same view is the same in all steps
        assert all(shown.get(view, image) == image for view, image in views_of(batch, "inputs"))
        assert not dict(views_of(batch, "inputs")).keys() & dict(views_of(batch, "targets")).keys()


def test_worlds_grow_more_complex():
    worlds = WorldsConfig(complexity_steps=4, steps_per_world=2)
    brightness = [batch.targets.images.mean() for batch in batches(6, worlds=worlds)]
    assert brightness[0] == brightness[1] == 0
    assert brightness[2] == pytest.approx(brightness[4] / 2, rel=0.2)
    assert brightness[4] > 80


def test_numbers_of_inputs_are_those_of_a_dataset():
    numbers = [stream.num_inputs(DATA, 5, step) for step in range(40)]
    assert numbers == [sampling.step_choices(DATA, 5, step).num_inputs for step in range(40)]
    assert set(numbers) == {2, 4}


def test_worlds_of_other_purposes_and_seeds_are_others():
    block = stream.Block(WorldsConfig(), 2, 8, 8)
    made = [
        jax.device_get(stream.render(block, purpose, seed, np.arange(4, dtype=np.int32))).images
        for purpose in stream.PURPOSES
        for seed in (0, 1)
    ]
    assert len({world.tobytes() for worlds in made for world in worlds}) == 4 * len(made)


@pytest.mark.parametrize("count", [1, 3, 7])
def test_views_are_drawn_as_the_weights_say(count):
    keys = jax.random.split(jax.random.key(0), 300)
    for weights in ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (1.0, 2.0, 1.0)):
        draw = Draw(count, 3, weights, "all_views", 1.0, 0.0)
        inputs, targets = jax.vmap(lambda key, draw=draw: draw_views(key, 10, draw))(keys)
        both = np.concatenate([inputs, targets], axis=1)
        assert all(len(set(row)) == count + 3 for row in both.tolist())
        assert (both >= 0).all() and (both < 10).all()
        assert (np.diff(inputs) > 0).all() and (np.diff(targets) > 0).all()
        neighbours = (np.diff(inputs) == 1).all(axis=1)
        if weights[1] == 1:
            assert neighbours.all()
            assert {*np.asarray(inputs)[:, 0].tolist()} == {*range(11 - count)}
        if weights[0] == 1 and weights[1] == 0:
            ends = np.arange(1, count + 1) * 10 // count
            assert (np.searchsorted(ends, inputs, side="right") == np.arange(count)).all()
        if weights[1] == 2 and count == 3:
            assert 0.45 < neighbours.mean() < 0.65
        if count < 7:
            assert {*np.asarray(targets).ravel().tolist()} == {*range(10)}


def test_scene_frames_are_those_of_the_published_protocol():
    rng = np.random.default_rng(0)
    for spread in (0.1, 1.0, 30.0):
        c2w = np.tile(np.eye(4), (6, 1, 1))
        c2w[:, :3, :3] = np.linalg.qr(rng.normal(size=(6, 3, 3)) + 3 * np.eye(3))[0]
        c2w[:, :3, 3] = rng.normal(size=(6, 3)) * spread + 2
        compare(c2w[:3], c2w)
        compare(c2w[:1], c2w)  # one camera has no length
    opposite = np.stack([np.eye(4), np.diag([-1.0, 1, -1, 1])])
    opposite[1, :3, 3] = [0, 0, 4]
    compare(opposite, opposite)


def compare(fitted, shown):
    ours, _ = normalize_cameras(*(jnp.array(c2w, jnp.float32) for c2w in (fitted, shown)))
    expected = SceneFrame.fit(fitted).apply(shown)
    np.testing.assert_allclose(ours, expected, atol=1e-5 * max(1, np.abs(expected).max()))


def test_scene_frames_are_turned_and_scaled_and_pictures_are_not():
    plain = batches(1)[0]
    other = batches(1, dataclasses.replace(DATA, scale_jitter=2.0, frame_turn=90.0))[0]
    np.testing.assert_array_equal(plain.targets.images, other.targets.images)
    one, two = plain.targets.cameras.c2w, other.targets.cameras.c2w
    scales = []
    for before, after in zip(one, two, strict=True):
        turn = after[0, :3, :3] @ before[0, :3, :3].T
        np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-5)
        assert np.linalg.det(turn) == pytest.approx(1, abs=1e-5)
        np.testing.assert_allclose(after[:, :3, :3], turn @ before[:, :3, :3], atol=1e-5)
        moved = before[:, :3, 3] @ turn.T
        scales.append((after[:, :3, 3] * moved).sum() / (moved**2).sum())
        np.testing.assert_allclose(after[:, :3, 3], scales[-1] * moved, atol=1e-4)
    assert 0.49 < min(scales) < 0.9 and 1.1 < max(scales) < 2.01


def test_cameras_are_normalized_as_the_config_says():
    for normalization in ("all_views", "input_views"):
        batch = batches(1, dataclasses.replace(DATA, camera_normalization=normalization))[0]
        both = [batch.inputs.cameras.c2w, batch.targets.cameras.c2w]
        fitted = np.concatenate(both if normalization == "all_views" else both[:1], axis=1)
        largest = np.abs(fitted[..., :3, 3]).max(axis=(1, 2))
        np.testing.assert_allclose(largest, 1 / 1.35, rtol=1e-5)


def test_a_mixed_run_has_each_source_in_its_own_order(rooms):
    share, steps = 0.4, 10
    config = quickstart.get_config()
    config.run.update(batch_size=8, seed=3)
    config.data.update(path=str(rooms), image_height=8, worlds_share=share)
    config.data.update(num_views=6, num_targets=3, min_span=6, max_span=11)
    settings, mesh = Settings.of(config), make_mesh(devices=jax.devices()[:2])

    def mixed(start):
        with jax.set_mesh(mesh), data_sources.training_batches(settings, mesh, start) as found:
            return jax.device_get(list(itertools.islice(found, steps - start)))

    straight = mixed(0)
    is_world = [data_sources.is_on_worlds(share, step) for step in range(steps)]
    worlds = [batch for batch, on in zip(straight, is_world, strict=True) if on]
    clips = [batch for batch, on in zip(straight, is_world, strict=True) if not on]
    assert len(worlds) == data_sources.steps_on_worlds(share, steps) == 4
    assert_same(worlds, batches(4, settings.data, devices=2))
    alone = loading.train_batches(settings.data, batch_size=8, seed=3)
    assert_same(clips, list(itertools.islice(alone, 6)))
    alone.close()
    for start in (1, 7):
        assert_same(mixed(start), straight[start:])


@pytest.mark.parametrize("share", [0.0, 0.1, 1 / 3, 0.5, 0.999, 1.0])
def test_a_share_of_steps_has_worlds(share):
    chosen = [data_sources.is_on_worlds(share, step) for step in range(3000)]
    counts = np.cumsum([0, *chosen])
    expected = [data_sources.steps_on_worlds(share, step) for step in range(3001)]
    np.testing.assert_array_equal(counts, expected)
    assert abs(counts[-1] - 3000 * share) < 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"num_views": 6},
            r"num_views is 6, .* up to 4 inputs \(data.input_counts\) and 3 targets",
        ),
        ({"aspect_ratios": (1.0, 1.5)}, "aspect_ratios .* and data.worlds_share 1.0 exclude"),
        ({"worlds_share": 1.5}, "worlds_share is 1.5, expected 0 to 1"),
    ],
)
def test_mistakes_are_told_in_a_line(changes, message):
    with pytest.raises(UserError, match=message):
        batches(1, dataclasses.replace(DATA, **changes))


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("name", ["worlds_64", "worlds_128", "worlds_256"])
def test_the_generator_makes_what_the_configs_ask_for(name, monkeypatch):
    monkeypatch.setattr(stream, "make_worlds", generate.make_worlds)
    config = importlib.import_module(f"configs.{name}").get_config()
    settings = Settings.of(config)
    assert settings.data.worlds_share == 1 and settings.evaluation.worlds > 0
    block = stream.Block(settings.worlds, settings.data.num_views, 16, 16)
    scenes = jax.ShapeDtypeStruct((2,), jnp.int32)
    made = jax.eval_shape(
        lambda scenes: stream.render_block(block, 0, jnp.uint32(0), scenes, jnp.float32(1)), scenes
    )
    assert made.images.shape == (2, settings.data.num_views, 16, 16, 3)


def test_a_mesh_must_divide_the_worlds():
    with pytest.raises(UserError, match=r"a batch of worlds: 8 scenes do not divide over .* = 3"):
        batches(1, devices=3)
    with pytest.raises(
        UserError, match=r"input_weights is .* weights of spread, contiguous, random"
    ):
        WorldsConfig(input_weights=(1.0, 2.0))
    with pytest.raises(UserError, match=r"synthetic.frames is 4, expected at least 5"):
        DatasetSettings(frames=4)
