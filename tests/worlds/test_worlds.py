"""Worlds: each scene of its own key alone, with true depth, seen from where cameras may stand."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec
from scipy.spatial.transform import Rotation

from lvsm_jax.common.errors import UserError
from lvsm_jax.models.cameras import Cameras
from lvsm_jax.worlds import solids
from lvsm_jax.worlds.config import KINDS, WorldsConfig
from lvsm_jax.worlds.dice import Dice
from lvsm_jax.worlds.generate import draw_kind, make_worlds
from lvsm_jax.worlds.render import sample_offsets
from lvsm_jax.worlds.visibility import NO_POINT, count_seen

CONFIG = WorldsConfig(
    boxes=12, ellipsoids=4, cylinders=4, bulbs=1, samples=1, path_tries=6, mirror_share=0.5
)
VIEWS, HEIGHT, WIDTH = 3, 18, 24
FULL = jnp.float32(1)


@pytest.fixture(scope="module")
def make():
    """The program, for eight scenes: compiled once for all tests."""
    size = {"views": VIEWS, "height": HEIGHT, "width": WIDTH}
    return jax.jit(functools.partial(make_worlds, config=CONFIG, **size))


def keys(seed, number=8):
    return jax.random.split(jax.random.key(seed), number)


@pytest.fixture(scope="module")
def many(make):
    """64 worlds, as NumPy arrays."""
    parts = [make(keys(seed), complexity=FULL) for seed in range(8)]
    return jax.tree.map(lambda *x: np.concatenate(x), *parts)


def test_without_motion_worlds_are_those_of_before(many):
    """Mean and spread of eight scenes' pictures, from before anything could move."""
    means = [126.44, 148.41, 136.04, 144.32, 128.79, 89.16, 138.16, 139.35]
    spreads = [41.69, 54.66, 63.81, 29.68, 53.05, 59.91, 63.13, 63.83]
    np.testing.assert_allclose(many.images[:8].mean((1, 2, 3, 4)), means, atol=0.05)
    np.testing.assert_allclose(many.images[:8].std((1, 2, 3, 4)), spreads, atol=0.05)
    assert many.cameras.time is None and many.ways is None


def test_shapes_and_values(many):
    assert many.images.shape == (64, VIEWS, HEIGHT, WIDTH, 3)
    assert many.images.dtype == np.uint8
    assert many.depth.shape == many.images.shape[:-1]
    many.cameras.check()
    assert not np.isnan(many.depth).any()
    assert (many.depth > 0).all()
    rotation = many.cameras.c2w[..., :3, :3]
    np.testing.assert_allclose(
        rotation @ np.swapaxes(rotation, -1, -2), np.broadcast_to(np.eye(3), rotation.shape),
        atol=1e-5,
    )  # fmt: skip
    np.testing.assert_allclose(np.linalg.det(rotation), 1, atol=1e-5)
    # No scene is black, white or one colour.
    spread = many.images.reshape(64, -1).std(1)
    assert spread.min() > 5
    means = many.images.reshape(64, -1).mean(1)
    assert means.min() > 25 and means.max() < 230


def test_fields_of_view_stay_in_their_range_and_differ_in_some_scenes(many):
    angle = np.degrees(2 * np.arctan(WIDTH / 2 / many.cameras.fxfycxcy[..., 0]))
    least, greatest = CONFIG.fields_of_view
    assert angle.min() > least - 1e-3 and angle.max() < greatest + 1e-3
    assert angle[:, 0].max() - angle[:, 0].min() > 25
    varied = angle.std(1) > 1e-3
    assert 0 < varied.sum() < 40
    centers = many.cameras.fxfycxcy[..., 2:].reshape(-1, 2)
    np.testing.assert_allclose(centers, [[WIDTH / 2, HEIGHT / 2]] * len(centers))


def test_views_show_more_than_something_near(many):
    middle = np.median(many.depth.reshape(64, VIEWS, -1), axis=-1)
    assert (middle > 0.4).mean() > 0.97
    moved = np.linalg.norm(many.cameras.c2w[:, 0, :3, 3] - many.cameras.c2w[:, -1, :3, 3], axis=-1)
    assert (moved > 0.05).mean() > 0.95


def test_a_scene_does_not_depend_on_its_neighbours(make):
    ours, backwards = make(keys(3), complexity=FULL), make(keys(3)[::-1], complexity=FULL)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[::-1], b), backwards, ours)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("solids_at_once", [CONFIG.solids_at_once, 128])
def test_scenes_are_the_same_alone_and_on_any_number_of_devices(solids_at_once):
    """Eight devices with a scene each make what one makes of all eight, bit by bit."""
    size = {"views": VIEWS, "height": HEIGHT, "width": WIDTH}
    config = dataclasses.replace(CONFIG, solids_at_once=solids_at_once)
    mesh = Mesh(np.array(jax.devices()), ("data",))
    scenes = PartitionSpec("data")

    @jax.jit
    @functools.partial(jax.shard_map, mesh=mesh, in_specs=scenes, out_specs=scenes, check_vma=False)
    def sharded(keys):
        return make_worlds(keys, config, **size)

    together = jax.jit(functools.partial(make_worlds, config=config, **size))
    ours, theirs = sharded(keys(3)), together(keys(3), complexity=FULL)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_complexity_changes_the_worlds_and_compiles_nothing(make):
    simple, full = (make(keys(1), complexity=jnp.float32(c)) for c in (0.0, 1.0))
    compiled = make._cache_size()
    half = make(keys(1), complexity=jnp.float32(0.5))
    assert make._cache_size() == compiled
    assert not np.array_equal(half.images, full.images)

    def edges(worlds):
        """How much neighbouring pixels differ."""
        return np.abs(np.diff(np.asarray(worlds.images, np.float32), axis=3)).mean()

    assert edges(full) > 1.1 * edges(simple)

    def path(worlds):
        place = np.asarray(worlds.cameras.c2w)[..., :3, 3]
        return np.linalg.norm(np.diff(place, axis=1), axis=-1).sum()

    assert path(full) > 1.2 * path(simple)


def test_kinds_come_as_often_as_their_weights_say():
    config = dataclasses.replace(CONFIG, kind_weights=(3.0, 0.0, 1.0))
    kinds = jax.vmap(lambda key: draw_kind(key, config))(keys(0, 2000))
    share = np.bincount(kinds, minlength=len(KINDS)) / 2000
    np.testing.assert_allclose(share, [0.75, 0, 0.25], atol=0.04)


def view(worlds, scene, number):
    return (
        np.asarray(worlds.images[scene, number], np.float32) / 255,
        np.asarray(worlds.depth[scene, number]),
        np.asarray(worlds.cameras.c2w[scene, number]),
        np.asarray(worlds.cameras.fxfycxcy[scene, number]),
    )


def reproject(source, target):
    """Colours of a source view at the points of a target's pixels, and where it sees them."""
    image, depth, c2w, (fx, fy, cx, cy) = source
    _, goal_depth, goal_c2w, (gx, gy, px, py) = target
    rows, columns = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    z = np.where(np.isfinite(goal_depth), goal_depth, 1.0)
    points = np.stack([(columns - px) / gx * z, (rows - py) / gy * z, z, np.ones_like(z)], -1)
    x, y, z = np.moveaxis(points @ goal_c2w.T @ np.linalg.inv(c2w).T, -1, 0)[:3]
    u, v = x / z * fx + cx, y / z * fy + cy
    inside = (z > 0) & (u >= 0) & (u < WIDTH) & (v >= 0) & (v < HEIGHT) & np.isfinite(goal_depth)
    column, row = (np.clip(a, 0, n - 1).astype(int) for a, n in ((u, WIDTH), (v, HEIGHT)))
    seen = inside & (np.abs(depth[row, column] - z) < 0.02 * z)
    return image[row, column], seen


def test_depth_takes_pixels_to_the_same_colours_in_other_views(many):
    """Of points that both see; with depth a tenth too large, colours agree much less."""
    right, wrong = [], []
    for scene in range(64):
        source, target = view(many, scene, 0), view(many, scene, 1)
        for factor, errors in ((1.0, right), (1.3, wrong)):
            image, depth, *camera = target
            colors, seen = reproject(source, (image, depth * factor, *camera))
            there = seen if factor == 1 else np.isfinite(depth)
            errors.extend(np.abs(colors - image).mean(-1)[there])
    assert len(right) > 5000
    assert np.median(right) < 0.02
    assert np.mean(right) < 0.6 * np.mean(wrong)


def test_count_seen_is_what_a_search_over_all_pairs_finds(many):
    """Against loops over pixels in NumPy, where the nearest pixels' depths decide."""
    cut = slice(0, 3)
    take = lambda x, views: jnp.asarray(x[cut, views])  # noqa: E731
    cameras = {
        name: Cameras(take(many.cameras.c2w, v), take(many.cameras.fxfycxcy, v))
        for name, v in (("inputs", slice(0, 2)), ("targets", slice(1, 3)))
    }
    counted = np.asarray(
        jax.jit(count_seen)(
            take(many.depth, slice(0, 2)), cameras["inputs"],
            take(many.depth, slice(1, 3)), cameras["targets"],
        )
    )  # fmt: skip
    expected = np.zeros_like(counted)
    for scene, goal, row, column in np.ndindex(*counted.shape):
        _, depth, c2w, (fx, fy, cx, cy) = view(many, scene, goal + 1)
        z = depth[row, column]
        if not np.isfinite(z):
            expected[scene, goal, row, column] = NO_POINT
            continue
        point = np.array([(column + 0.5 - cx) / fx * z, (row + 0.5 - cy) / fy * z, z, 1])
        for source in range(2):
            _, other, pose, (fx2, fy2, cx2, cy2) = view(many, scene, source)
            x, y, deep, _ = np.linalg.inv(pose.astype(np.float64)) @ c2w.astype(np.float64) @ point
            u, v = x / deep * fx2 + cx2, y / deep * fy2 + cy2
            if deep <= 0 or not (0 <= u < WIDTH and 0 <= v < HEIGHT):
                continue
            left, top = int(np.floor(u - 0.5)), int(np.floor(v - 0.5))
            around = [
                other[min(max(top + i, 0), HEIGHT - 1), min(max(left + j, 0), WIDTH - 1)]
                for i in (0, 1)
                for j in (0, 1)
            ]
            seen = min(around) * 0.98 <= deep <= max(around) * 1.02
            expected[scene, goal, row, column] += seen
    assert (counted == expected).mean() > 0.998  # rounding decides at the edges
    assert (counted[:, 0] >= 1)[np.isfinite(many.depth[cut, 1])].all()  # this target is an input
    assert len(np.unique(counted)) >= 3


FORM_INSIDE = {
    "boxes": lambda q, ratio: np.abs(q).max(-1) - 1,
    "ellipsoids": lambda q, ratio: np.linalg.norm(q, axis=-1) - 1,
    "cylinders": lambda q, ratio: np.maximum(
        np.hypot(q[..., 0], q[..., 2]) - (1 + ratio) / 2 - (1 - ratio) / 2 * q[..., 1],
        np.abs(q[..., 1]) - 1,
    ),
}


@pytest.mark.parametrize("form", list(FORM_INSIDE))
def test_rays_meet_solids_where_they_are(form):
    """What `cast` meets is on the surface, and a march along the ray finds nothing before it."""
    rng = np.random.default_rng(4)
    number, rays = 6, 400
    turn = Rotation.random(number, rng).as_matrix()
    center, half = rng.uniform(-2, 2, (number, 3)), rng.uniform(0.2, 0.9, (number, 3))
    ratio = np.array([1.0, 0.0, 0.5, 0.2, 1.4, 1.0]) if form == "cylinders" else np.ones(number)
    some = solids.Solids(*map(jnp.float32, (turn, center, half, ratio)), jnp.zeros(6), 5)
    none = dataclasses.replace(some, count=0)
    forms = [some if name == form else none for name in solids.FORMS]
    geometry = solids.Geometry(
        *(solids.pack(s) for s in forms),
        jnp.array([s.count for s in forms]),
        jnp.array([[-5.0] * 3, [5.0] * 3]),
    )
    origin = rng.uniform(-4.9, 4.9, (3, rays))
    aims = center[rng.integers(0, 5, rays)] + rng.normal(scale=0.4, size=(rays, 3))
    direction = aims.T - origin
    distance, index = jax.jit(solids.cast)(geometry, jnp.float32(origin), jnp.float32(direction))
    distance, index = np.asarray(distance, np.float64), np.asarray(index)
    start = geometry.starts[solids.FORMS.index(form)]

    def values(t):
        """Below 0 inside of a solid: `[p, r, t]`."""
        points = origin.T[:, None] + t[..., None] * direction.T[:, None]
        q = (
            np.einsum("pij,prtj->prti", turn[:5], points - center[:5, None, None])
            / half[:5, None, None]
        )
        return FORM_INSIDE[form](q, ratio[:5, None, None])

    outside = (values(np.zeros((rays, 1))) > 0).all((0, 2))
    hit = index < geometry.starts[3]
    assert (hit & outside).sum() > 60
    on_it = values(distance[:, None])[..., 0].T  # [r, p]
    met = on_it[np.arange(rays), np.clip(index - start, 0, 4)]
    assert np.abs(met[hit & outside]).max() < 5e-3
    before = values(distance[:, None] * np.linspace(0.001, 0.995, 300))
    assert (before[:, outside] > -5e-3).all()
    exits = np.where(direction > 0, (5 - origin) / direction, (-5 - origin) / direction).min(0)
    np.testing.assert_allclose(distance[~hit], exits[~hit], rtol=1e-4)
    blocked = jax.jit(solids.is_blocked)(
        geometry, jnp.float32(origin), jnp.float32(direction), jnp.float32(exits)
    )
    np.testing.assert_array_equal(np.asarray(blocked)[outside], hit[outside])


def test_samples_of_a_pixel_differ_in_rows_and_columns_and_have_its_centre_as_mean():
    for number in range(1, 17):
        offsets = np.array(sample_offsets(number))
        np.testing.assert_allclose(offsets.mean(0), 0, atol=1e-6)
        assert all(len(np.unique(axis.round(4))) == number for axis in offsets.T)
        assert np.abs(offsets).max() < 0.5


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("kind_weights", (1.0, 1.0)),
        ("path_weights", (0.0, 0.0, 0.0, 0.0)),
        ("boxes", 3),
        ("boxes", 300),
        ("mirror_share", 1.5),
        ("fields_of_view", (90.0, 35.0)),
        ("baseline", (0.0, 1.0)),
        ("roll", 90.0),
        ("samples", 0),
        ("clearance", float("nan")),
    ],
)
def test_wrong_fields_are_named(field, value):
    with pytest.raises(UserError, match=f"worlds.{field}"):
        WorldsConfig(**{field: value})


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_cameras_keep_clear_of_solids(kind):
    """In most views of each kind; where nothing fits, the best of the candidates is taken."""
    from lvsm_jax.worlds.generate import lay_out
    from lvsm_jax.worlds.paths import draw_cameras

    weights = tuple(float(name == kind) for name in KINDS)
    config = WorldsConfig(kind_weights=weights)

    @jax.jit
    def clearance(key):
        first, second = jax.random.split(key)
        scene, stage = lay_out(first, config, 1.0)
        c2w, _ = draw_cameras(Dice(second), scene, stage, config, 1.0, 8, 64, 64)
        return solids.distance_to_solids(scene.geometry(), c2w[:, :3, 3].T)

    clear = np.array([clearance(key) for key in keys(0, 32)])
    assert (clear > 0).mean() > 0.97
    assert (clear.min(1) > 0.2).mean() > 0.8


@pytest.mark.slow
def test_worlds_of_as_many_solids_as_a_config_may_have():
    most = WorldsConfig(boxes=180, ellipsoids=30, cylinders=30, path_tries=1)
    make = functools.partial(make_worlds, config=most, views=1, height=8, width=8)
    made = jax.eval_shape(make, keys(0, 1))  # traced: that is where numbers are handed out
    assert made.images.shape == (1, 1, 8, 8, 3)


def test_numbers_beyond_the_first_draw_are_others():
    few, many = (Dice(jax.random.key(0), 16) for _ in range(2))
    parts = [few.uniform(shape=(8,)) for _ in range(9)]
    whole = many.uniform(shape=(72,))
    np.testing.assert_array_equal(jnp.concatenate(parts), whole)
    assert len(np.unique(whole)) == 72 and (whole >= 0).all() and (whole < 1).all()
