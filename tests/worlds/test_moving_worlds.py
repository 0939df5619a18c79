"""Worlds in which bodies slide: each view at its own time, with the truth of that time."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from input_pipeline.synthetic.settings import Settings
from lvsm_jax.batch import Views, readable_batch
from lvsm_jax.common.config import DataConfig, EvalConfig
from lvsm_jax.common.errors import UserError
from lvsm_jax.models.cameras import Cameras
from lvsm_jax.parallel.mesh import make_mesh
from lvsm_jax.training.copied_points import bounded_points, mean_distance
from lvsm_jax.worlds import held_out, stream
from lvsm_jax.worlds.config import KINDS, WorldsConfig
from lvsm_jax.worlds.dice import Dice
from lvsm_jax.worlds.generate import Worlds, lay_out, make_worlds
from lvsm_jax.worlds.motion import draw_motion
from lvsm_jax.worlds.render import render
from lvsm_jax.worlds.rig import make_objects
from lvsm_jax.worlds.solids import FORMS
from lvsm_jax.worlds.visibility import NO_POINT, count_seen

CONFIG = WorldsConfig(
    boxes=12, ellipsoids=4, cylinders=4, bulbs=1, samples=1, path_tries=4, moving_share=0.6,
    shadows=False, mirrors=False, bump_share=0.0,
)  # fmt: skip


def of_kind(kind, **changes):
    weights = tuple(float(kind == name) for name in KINDS)
    return dataclasses.replace(CONFIG, kind_weights=weights, **changes)


def keys(seed, number=4):
    return jax.random.split(jax.random.key(seed), number)


def look(*places):
    """Cameras at these places that look along z, at pictures of 16 × 16."""
    c2w = np.tile(np.eye(4, dtype=np.float32), (1, len(places), 1, 1))
    c2w[0, :, :3, 3] = places
    return Cameras(c2w, np.full((1, len(places), 4), 8, np.float32))


@pytest.mark.parametrize("kind", KINDS)
def test_bodies_slide_level_and_stay_inside(kind):
    config = of_kind(kind)

    @jax.jit
    def draw(key):
        scene, stage = lay_out(key, config, 1.0)
        motion = draw_motion(Dice(jax.random.fold_in(key, 2), 1024), scene, stage, config, 5)
        first, middle, last = (motion.scene_at(scene, time) for time in jnp.float32([0, 0.5, 1]))
        return scene, motion, (first, last), middle

    moved, still = 0, 0
    for key in keys(0, 8):
        scene, motion, ends, middle = jax.device_get(draw(key))
        assert motion.times.shape == (5,) and motion.times.min() >= 0 and motion.times.max() < 1
        by_body = {}
        for form in FORMS:
            solids, ways = getattr(scene, form), getattr(motion, form)
            np.testing.assert_array_equal(getattr(middle, form).center, solids.center)
            first, last = (getattr(end, form).center for end in ends)
            np.testing.assert_allclose(last - first, ways, atol=1e-4)
            assert (ways[:, 1] == 0).all() and (ways[solids.body < 0] == 0).all()
            extent = (np.abs(solids.turn) * solids.half[:, :, None]).sum(1)
            for i in range(solids.count):
                by_body.setdefault(int(solids.body[i]), []).append(ways[i])
                along = ways[i] != 0
                for center in (first[i], last[i]):
                    assert (center - extent[i] >= scene.shell[0] - 1e-4)[along].all()
                    assert (center + extent[i] <= scene.shell[1] + 1e-4)[along].all()
        by_body.pop(-1, None)
        for ways in by_body.values():  # all solids of a body go one way
            np.testing.assert_array_equal(ways, np.broadcast_to(ways[0], np.shape(ways)))
            moved, still = moved + ways[0].any(), still + (not ways[0].any())
    assert moved > 8 and still > 8


def test_an_input_is_asked_for_a_point_where_it_is_at_its_time():
    """A wall that goes one unit to the right, and cameras that go along with it, or do not."""
    depth = jnp.full((1, 2, 16, 16), 2.0)
    ways = jnp.broadcast_to(jnp.float32([1, 0, 0]), (1, 1, 16, 16, 3))
    inputs = dataclasses.replace(look((1, 0, 0), (0, 0, 0)), time=np.float32([[1, 1]]))
    target = dataclasses.replace(look((0, 0, 0)), time=np.float32([[0]]))
    seen = np.asarray(count_seen(depth, inputs, depth[:, :1], target, target_ways=ways))[0, 0]
    # The second does not see the quarter that went out of its picture: 1 unit is 4 pixels.
    assert (seen[:, :12] == 2).all() and (seen[:, 12:] == 1).all()
    without = np.asarray(count_seen(depth, inputs, depth[:, :1], target))[0, 0]
    assert (without[:, 4:] == 2).all() and (without[:, :4] == 1).all()
    back = dataclasses.replace(inputs, time=np.float32([[0, 0]]))
    again = np.asarray(count_seen(depth, back, depth[:, :1], target, target_ways=ways))[0, 0]
    np.testing.assert_array_equal(again, without)


def test_what_moves_does_not_teach_where_to_look():
    depth = np.full((1, 1, 16, 16), 2, np.float32)
    moving = np.zeros((1, 1, 16, 16), bool)
    moving[..., :5] = True
    images, frame = jnp.zeros((1, 1, 16, 16, 3)), np.zeros((1, 1), np.int32)
    views = Views(images, look((0, 0, 0)), frame, depth, moving)
    truth = bounded_points(views)
    assert mean_distance(truth, views) == 0
    assert mean_distance(truth + 3 * moving[..., None], views) == 0
    assert mean_distance(truth + 3 * ~moving[..., None], views) == pytest.approx(3)
    in_one_column = jnp.where(np.arange(16)[:, None] == 15, truth + 1.1, truth)
    assert mean_distance(in_one_column, views) == pytest.approx(0.1)  # 11 of 16 count
    still = dataclasses.replace(views, moving=None)
    assert mean_distance(in_one_column, still) == pytest.approx(1.1 / 16)
    everything = dataclasses.replace(views, moving=np.ones_like(moving))
    assert mean_distance(truth + 3, everything) == 0


def timed_plain_worlds(keys, config, *, views, height, width, complexity=1.0, zooms=()):
    """A wall at z = 2 before cameras in a row; its left half moves."""
    number, places = len(keys), np.arange(views)
    c2w = np.tile(np.eye(4, dtype=np.float32), (number, views, 1, 1))
    c2w[..., 0, 3] = 0.1 * places
    depth = jnp.full((number, views, height, width), 2.0)
    ways = jnp.zeros((*depth.shape, 3)).at[..., : width // 2, 0].set(1.0)
    images = jnp.zeros((*depth.shape, 3), jnp.uint8)
    lens = jnp.full((number, views, 4), width / 2)
    time = jnp.broadcast_to((places + 1.0) / views, (number, views))
    return Worlds(images, Cameras(jnp.asarray(c2w), lens, time), depth, ways)


def test_evaluation_knows_times_and_what_moves(monkeypatch):
    monkeypatch.setattr(stream, "make_worlds", timed_plain_worlds)
    stream.render_block.clear_cache()
    settings = EvalConfig(worlds=2, world_views=8, batch_size=2, num_inputs=2)
    block = stream.Block(CONFIG, 8, 16, 16, with_depth=True)
    (batch,) = held_out.HeldOutWorlds(block, settings, np.arange(2))
    inputs, targets = held_out.place_views(settings)
    for views, places in ((batch.inputs, inputs), (batch.targets, targets)):
        np.testing.assert_allclose(views.cameras.time, [(np.array(places) + 1) / 8] * 2, atol=1e-6)
        assert (views.moving[..., :8]).all() and not views.moving[..., 8:].any()
    assert readable_batch(None, batch).targets.cameras.time is None
    ways = jnp.zeros((1, 3, 16, 16, 3)).at[..., :8, 0].set(1)
    depth = jnp.full((1, 3, 16, 16), 2.0)
    made = timed_plain_worlds(keys(0, 1), None, views=8, height=16, width=16)

    def at(places):
        return jax.tree.map(lambda x: np.asarray(x)[:, list(places)], made.cameras)

    expected = count_seen(depth[:, :2], at(inputs), depth, at(targets), target_ways=ways)
    np.testing.assert_array_equal(batch.seen[:1], expected)
    stream.render_block.clear_cache()


def test_what_cannot_move_is_refused():
    with pytest.raises(UserError, match=r"worlds.moving_share is 1.2, expected 0 to 1"):
        WorldsConfig(moving_share=1.2)
    with pytest.raises(UserError, match=r"worlds.moving_share is 0.6, but objects stand still"):
        make_objects(keys(0), CONFIG, height=8, width=8)
    with pytest.raises(UserError, match=r"moving_share is 0.6, expected 0: datasets have no times"):
        Settings(worlds=CONFIG)
    assert "moving_share" not in Settings().to_json()["worlds"]  # sets of before stay what they are


@pytest.fixture(scope="module")
def moving():
    """Worlds of all kinds that move, as NumPy arrays."""
    make = jax.jit(functools.partial(make_worlds, config=CONFIG, views=4, height=32, width=32))
    return jax.device_get(make(keys(1, 12)))


@pytest.mark.slow
def test_each_view_shows_its_own_time(moving):
    """Of the points of a view that move, most are found by others where they are at their time."""
    assert moving.cameras.time.shape == (12, 4)
    assert np.isfinite(moving.ways).all() and (moving.ways[np.isinf(moving.depth)] == 0).all()
    shown = (moving.ways != 0).any(-1)
    assert 0.02 < shown.mean() < 0.6

    def of_view(view):
        return jax.tree.map(lambda x: jnp.asarray(x[:, view]), (moving.depth, moving.cameras))

    found = {True: [], False: []}
    for first, second in ((0, 1), (1, 0), (1, 2), (2, 1)):
        inputs, target = of_view([first]), of_view([second])
        for with_motion in found:
            ways = jnp.asarray(moving.ways[:, [second]]) if with_motion else None
            seen = np.asarray(count_seen(*inputs, *target, target_ways=ways))
            counted = shown[:, [second]] & (seen != NO_POINT)
            found[with_motion].append(seen[counted] > 0)
    found = {with_motion: np.concatenate(seen).mean() for with_motion, seen in found.items()}
    assert found[True] > 0.35 and found[True] > 1.5 * found[False]


@pytest.mark.slow
def test_at_half_time_it_is_the_scene_that_was_laid_out():
    config = of_kind("objects")

    @jax.jit
    def both(key):
        scene, stage = lay_out(key, config, 1.0)
        motion = draw_motion(Dice(key, 1024), scene, stage, config, 2)
        half = dataclasses.replace(motion, times=jnp.float32([0.5, 0.9]))
        c2w = jnp.tile(jnp.eye(4), (2, 1, 1)).at[:, 2, 3].set(-3.0)
        lens = jnp.full((2, 4), 16.0)
        shown = scene, c2w, lens, 32, 32, config
        return render(*shown), render(*shown, half)

    for key in keys(3):
        still, timed = jax.device_get(both(key))
        for a, b in zip(still[:2], timed[:2], strict=True):
            np.testing.assert_allclose(a[0], b[0], rtol=1e-3, atol=1e-3)
        assert still[2] is None and timed[2].shape == (2, 32, 32, 3)
        moves = (timed[2] != 0).any(-1).any((1, 2))
        assert not moves[0] or (still[0][1] != timed[0][1]).any()


def test_training_batches_have_times(monkeypatch):
    monkeypatch.setattr(stream, "make_worlds", timed_plain_worlds)
    stream.render_block.clear_cache()
    data = DataConfig(
        path="", worlds_share=1.0, image_height=16, num_views=4, num_inputs=2, num_targets=2
    )
    mesh = make_mesh(devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        for with_depth in (True, False):
            options = {"batch_size": 2, "seed": 5, "mesh": mesh, "with_depth": with_depth}
            batch = jax.device_get(next(stream.world_batches(data, CONFIG, **options)))
            for views in (batch.inputs, batch.targets):  # of four views, all at their own times
                np.testing.assert_allclose(views.cameras.time, (views.frame + 1) / 4, atol=1e-6)
                assert (views.moving is not None) == with_depth
            assert with_depth is False or batch.targets.moving[..., :8].all()
    stream.render_block.clear_cache()
