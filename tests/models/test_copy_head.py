"""The head that copies: its parts against plain ones, and what it must not depend on."""

import dataclasses

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from flax import nnx

import lvsm_jax
from lvsm_jax.common.tree import from_named, named_leaves
from lvsm_jax.models import copy_head
from lvsm_jax.models.architectures import abstract_model, read_config
from lvsm_jax.models.cameras import Cameras
from tests.helpers.copying import with_random_copies

SIZE, PATCH = (16, 24), 8
TINY = lvsm_jax.EfficientLVSMConfig(
    num_layers=1, width=16, head_dim=8, camera_encoding="prope", copy_head=True
)


def turns(rng, shape, largest):
    """Rotations about random axes."""
    axis = rng.normal(size=(*shape, 3))
    axis *= largest * rng.uniform(size=(*shape, 1)) / np.linalg.norm(axis, axis=-1, keepdims=True)
    x, y, z = np.moveaxis(axis, -1, 0)
    zero = np.zeros_like(x)
    cross = np.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).reshape(*shape, 3, 3)
    return np.asarray(jax.scipy.linalg.expm(cross))


def some_cameras(seed, count, size=SIZE, scenes=2):
    rng = np.random.default_rng(seed)
    c2w = np.tile(np.eye(4, dtype=np.float32), (scenes, count, 1, 1))
    c2w[..., :3, :3] = turns(rng, (scenes, count), 0.4)
    c2w[..., :3, 3] = rng.uniform(-1, 1, (scenes, count, 3))
    height, width = size
    intrinsics = np.array([1.1 * width, 0.9 * width, 0.45 * width, 0.55 * height])
    scale = rng.uniform(0.9, 1.1, (scenes, count, 4))
    return Cameras(c2w, (intrinsics * scale).astype(np.float32))


def some_images(seed, count, scenes=2):
    rng = np.random.default_rng(seed)
    return rng.uniform(size=(scenes, count, *SIZE, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def model():
    return with_random_copies(lvsm_jax.EfficientLVSM(TINY, rngs=nnx.Rngs(0)))


@pytest.fixture(scope="module")
def scene():
    return some_images(0, 3), some_cameras(1, 3), some_cameras(2, 2)


@pytest.fixture(scope="module")
def render(model, scene):
    return model(*scene)


def naive(model, images, inputs, targets):
    """The head pixel by pixel, with all weights of attention, in NumPy and float64."""
    images, inputs, targets = jax.tree.map(np.asarray, (images, inputs, targets))
    memory = jax.jit(lambda m, *views: m.encode(*views))(model, images, inputs)
    tokens = jax.jit(lambda m, *xs: m.decode_tokens(*xs, *SIZE)[0])(model, memory, targets)
    regressed = np.asarray(model.pixels(tokens, *SIZE), np.float64)
    head, taps, channels = model.copy_head, copy_head.TAPS, copy_head.CHANNELS
    q, own = (np.asarray(f(head.norm(tokens)), np.float64) for f in (head.to_q, head.to_pixels))
    kv = np.asarray(head.to_kv(head.norm(memory.tokens[-1])), np.float64)
    kernel = np.asarray(head.from_features.kernel[...], np.float64)
    disparity_weight = float(head.disparity_weight[...])
    rng, found_at, out = np.random.default_rng(0), [], []
    columns = SIZE[1] // PATCH
    middles = [
        ((n % columns + 0.5) * PATCH, (n // columns + 0.5) * PATCH) for n in range(q.shape[2])
    ]
    for _ in range(100):
        b, t, row, column = (rng.integers(side) for side in regressed.shape[:4])
        n, i = row // PATCH * columns + column // PATCH, row % PATCH * PATCH + column % PATCH
        mine = own[b, t, n].reshape(-1, PATCH**2)[:, i]
        logits, colors = [], []
        for v in range(images.shape[1]):
            for m in range(taps):
                keys = kv[b, v].reshape(len(middles), taps, -1)[:, m]
                weights = keys[:, :channels] @ q[b, t, n, m * channels :][:channels]
                weights /= channels**0.5
                lse = np.logaddexp.reduce(weights)
                found = np.exp(weights - lse) @ np.c_[np.array(middles), keys[:, channels:]]
                read = (found[2:] @ kernel).reshape(3, -1)[:, i]
                f_v, f_t = inputs.fxfycxcy[b, v], targets.fxfycxcy[b, t]
                in_patch = np.array([column, row]) + 0.5 - np.array(middles[n])
                place = found[:2] + PATCH * (mine[[m, taps + m]] + read[:2])
                place += in_patch * f_v[:2] / f_t[:2]
                point = np.array([column, row]) + 0.5
                place, shown, moved = nearest(place, point, (inputs, targets), (b, v, t))
                colors.append(bilinear(images[b, v], place))
                own_weight = mine[2 * taps + m] + read[2] - disparity_weight * np.log1p(moved)
                logits.append(own_weight + lse - 100 * (not shown))
        weights = np.exp(np.array(logits) - np.logaddexp.reduce(logits))
        gate = 1 / (1 + np.exp(-mine[-1]))
        copied = weights @ np.array(colors)
        out.append(gate * regressed[b, t, row, column] + (1 - gate) * copied)
        found_at.append((b, t, row, column))
    return tuple(np.transpose(found_at)), np.array(out)


def nearest(place, pixel, cameras, index):
    """By trying all depths: where, whether the view shows it, and how far from the line's start."""
    (inputs, targets), (b, v, t) = cameras, index
    f_v, f_t = inputs.fxfycxcy[b, v], targets.fxfycxcy[b, t]
    view, target = inputs.c2w[b, v].astype(np.float64), targets.c2w[b, t].astype(np.float64)
    ray = view[:3, :3].T @ target[:3, :3] @ [*((pixel - f_t[2:]) / f_t[:2]), 1]
    offset = view[:3, :3].T @ (target[:3, 3] - view[:3, 3])
    inverse_depths = np.r_[0, np.geomspace(1e-3, 100, 20_001)]
    points = ray + inverse_depths[:, None] * offset / np.linalg.norm(offset)
    points = points[points[:, 2] >= 0.05]
    if not len(points):
        return place, False, 0.0
    places = points[:, :2] / points[:, 2:] * f_v[:2] + f_v[2:]
    best = places[np.linalg.norm(places - place, axis=1).argmin()]
    shown = bool(((best >= 0) & (best <= [SIZE[1], SIZE[0]])).all())
    return best, shown, np.linalg.norm(best - places[0])


def bilinear(image, place):
    x, y = np.clip(place - 0.5, 0, [SIZE[1] - 1, SIZE[0] - 1])
    left, top = min(int(x), SIZE[1] - 2), min(int(y), SIZE[0] - 2)
    corners = image[top : top + 2, left : left + 2].astype(np.float64)
    rows = corners[0] * (top + 1 - y) + corners[1] * (y - top)
    return rows[0] * (left + 1 - x) + rows[1] * (x - left)


def test_pixel_by_pixel(model, scene, render):
    """The places that a search over depths finds are near, not equal."""
    where, expected = naive(model, *scene)
    differences = np.abs(np.asarray(render)[where] - expected)
    assert np.quantile(differences, 0.95) < 2e-3
    assert differences.mean() < 1e-3


def test_samples_are_bilinear():
    image = jnp.asarray(some_images(0, 1, scenes=1)[0])
    places = np.random.default_rng(0).uniform(-3, 27, (1, 200, 2)).astype(np.float32)
    corners = np.array([[0, 0], [24, 16], [0.5, 0.5], [23.5, 15.5]], np.float32)
    places = np.concatenate([places, corners[None]], axis=1)
    x, y = jnp.moveaxis(jnp.asarray(places), -1, 0)
    colors = copy_head.sample(image, x, y)
    expected = [bilinear(np.asarray(image[0]), place) for place in places[0]]
    np.testing.assert_allclose(np.stack(colors, -1)[0], expected, atol=1e-5)
    single = copy_head.sample(image[:, :1, :1], x, y)
    np.testing.assert_array_equal(single[0], np.full((1, 204), image[0, 0, 0, 0]))


def test_points_lie_on_their_lines():
    """Of points in front of both cameras; those of a view that looks away have none."""
    targets, views = (jax.tree.map(jnp.asarray, some_cameras(i, 1, scenes=1)) for i in (0, 1))
    rays = copy_head.rays_of_patches(targets, *SIZE, PATCH)
    (x, y), line, in_front = copy_head.epipolar_lines(rays, first_view(views), targets)
    depth = np.random.default_rng(0).uniform(2, 9, x.shape)
    points = np.stack([*rays, np.ones(x.shape)], -1) * depth[..., None]
    c2w, w2c = targets.c2w[0, 0], np.linalg.inv(views.c2w[0, 0])
    points = (points @ c2w[:3, :3].T + c2w[:3, 3]) @ w2c[:3, :3].T + w2c[:3, 3]
    f = views.fxfycxcy[0, 0]
    seen = points[..., :2] / points[..., 2:] * f[:2] + f[2:]
    assert (points[..., 2] > 0.1).all() and np.asarray(in_front).all()
    offset = seen - np.stack([x, y], -1)
    line = np.stack(line, -1)
    length = np.linalg.norm(line, axis=-1)
    across = np.cross(
        np.c_[offset.reshape(-1, 2), np.zeros(x.size)], np.c_[line.reshape(-1, 2), np.zeros(x.size)]
    )
    np.testing.assert_allclose(np.abs(across[:, 2]) / length.reshape(-1), 0, atol=1e-2)
    along = (offset * line).sum(-1) / length**2
    assert ((along > 0) & (along < 1)).all()
    away = dataclasses.replace(
        views, c2w=targets.c2w @ np.diag([-1.0, 1, -1, 1]).astype(np.float32)
    )
    *_, in_front = copy_head.epipolar_lines(rays, first_view(away), targets)
    assert not np.asarray(in_front).any()


def first_view(cameras):
    return jax.tree.map(lambda x: x[:, 0], cameras)


def test_a_target_that_is_an_input_is_copied(model, scene):
    """Whatever attention says: without a baseline geometry leaves no choice."""
    images, inputs = jnp.asarray(scene[0]), scene[1]
    one = jax.tree.map(lambda x: x[:, :1], inputs)
    head = model.copy_head
    tokens = jax.random.normal(jax.random.key(0), (2, 1, 6, 16))
    regressed = jnp.full((2, 1, *SIZE, 3), jnp.nan)
    source = head.source(tokens, images[:, :1], one)
    gate = head.to_pixels.kernel[...].at[:, -(PATCH**2) :].set(-100 * tokens[0, 0, 0][:, None])
    copied = from_named(head, named_leaves(head) | {"to_pixels.kernel": gate})
    same = jnp.broadcast_to(tokens[:1, :, :1], tokens.shape)  # for all, the gate is shut
    render = copied(same, jnp.zeros_like(regressed), source, one)
    np.testing.assert_allclose(render, images[:, :1], atol=1e-4)


def test_neither_world_nor_order_matters(model, scene, render):
    """The frame of the world, to the whole model; its unit of length, to the head alone."""
    images, inputs, targets = scene
    turned = np.eye(4, dtype=np.float32)
    turned[:3, :3] = turns(np.random.default_rng(5), (), 3)
    turned[:3, 3] = 1, -2, 3

    def moved(cameras):
        return dataclasses.replace(cameras, c2w=turned @ cameras.c2w)

    np.testing.assert_allclose(model(images, moved(inputs), moved(targets)), render, atol=1e-3)
    order = [2, 0, 1]
    shuffled = images[:, order], jax.tree.map(lambda x: x[:, order], inputs)
    np.testing.assert_allclose(model(*shuffled, targets), render, atol=1e-5)

    tokens = jax.random.normal(jax.random.key(0), (2, 5, 6, 16))

    @jax.jit
    def copy(inputs, targets):
        source = model.copy_head.source(tokens[:, :3], jnp.asarray(images), inputs)
        return model.copy_head(tokens[:, 3:], jnp.zeros((2, 2, *SIZE, 3)), source, targets)

    def scaled(cameras, unit):
        c2w = cameras.c2w.copy()
        c2w[..., :3, 3] *= unit
        return dataclasses.replace(cameras, c2w=c2w)

    expected = copy(inputs, targets)
    assert np.abs(expected).max() > 0.1
    for unit in (0.5, 1024):
        ours = copy(scaled(inputs, unit), scaled(targets, unit))
        np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_starts_from_the_model_without(model, scene):
    """Other weights are those of the seed without the head; half of a render is regressed."""
    fresh = lvsm_jax.EfficientLVSM(TINY, rngs=nnx.Rngs(0))
    plain = lvsm_jax.EfficientLVSM(dataclasses.replace(TINY, copy_head=False), rngs=nnx.Rngs(0))
    ours, theirs = named_leaves(fresh), named_leaves(plain)
    assert {name.split(".")[0] for name in ours.keys() - theirs.keys()} == {"copy_head"}
    for name, leaf in theirs.items():
        np.testing.assert_array_equal(ours[name], leaf)
    images, inputs, _ = scene
    uniform = np.full_like(images, 0.25)
    render, regressed = fresh(uniform, inputs, inputs), plain(uniform, inputs, inputs)
    np.testing.assert_allclose(render, (regressed + 0.25) / 2, atol=1e-5)


@pytest.mark.parametrize(
    "same", [pytest.param(False, marks=pytest.mark.slow), True], ids=["apart", "same"]
)
def test_gradients_are_finite_and_remat_changes_none(model, scene, same):
    """Also where a target is an input: without a baseline there is no line."""
    images, inputs, targets = scene
    targets = inputs if same else targets

    def gradients(remat):
        config = dataclasses.replace(TINY, remat=remat)
        other = from_named(abstract_model(config), named_leaves(model))

        def loss(model):
            memory = model.encode(jnp.asarray(images), inputs)
            return jnp.square(model.decode(memory, targets, *SIZE)).mean()

        return named_leaves(jax.jit(jax.grad(loss))(other))

    expected = gradients("none")
    for name, leaf in expected.items():
        assert np.isfinite(leaf).all(), name
        assert np.abs(leaf).max() > 0 or same, name
    if not same:
        for name, leaf in gradients("full").items():
            np.testing.assert_allclose(leaf, expected[name], atol=1e-6, err_msg=name)


def test_bfloat16_keeps_places_and_colors(model, scene, render):
    config = dataclasses.replace(TINY, dtype="bfloat16")
    ours = from_named(abstract_model(config), named_leaves(model))
    images, inputs, _ = scene
    source = jax.jit(lambda m, *views: m.encode(*views).copied)(ours, images, inputs)
    assert {leaf.dtype for leaf in jax.tree.leaves(source)} == {jnp.dtype("float32")}
    np.testing.assert_array_equal(source.images, images)
    difference = np.abs(ours(*scene) - render)
    assert difference.mean() < 0.02


@pytest.mark.slow
def test_targets_of_another_size(model, scene, render):
    """Twice as many pixels of the same picture: each copies from about the same place."""
    images, inputs, targets = scene
    large = tuple(2 * side for side in SIZE)
    doubled = dataclasses.replace(targets, fxfycxcy=2 * targets.fxfycxcy)
    memory = model.encode(jnp.asarray(images), inputs)
    ours = model.decode(memory, doubled, *large)
    assert ours.shape == (2, 2, *large, 3) and np.isfinite(ours).all()
    # Of a picture of one colour all that is copied has it, wherever it is.
    one = model.decode(model.encode(jnp.full_like(images, 0.25), inputs), doubled, *large)
    assert np.isfinite(one).all()


def test_features_beside_the_render_and_an_export(model, scene, render, tmp_path):
    images, inputs, targets = scene
    with_features = jax.jit(lambda model, *views: model.render_with_features(*views, [1], [1]))
    ours, *_ = with_features(model, jnp.asarray(images), inputs, targets)
    np.testing.assert_allclose(ours, render, atol=1e-5)
    lvsm_jax.save(model, tmp_path / "export")
    loaded = lvsm_jax.load(tmp_path / "export")
    assert loaded.config == model.config
    np.testing.assert_array_equal(loaded(*scene), render)


def test_only_efficient_lvsm_has_one():
    config = ml_collections.ConfigDict(
        {"architecture": "LVSMDecoderOnly", "model": {"copy_head": True}}
    )
    with pytest.raises(ValueError, match=r"model has \['copy_head'\], but LVSMDecoderOnly"):
        read_config(config)
