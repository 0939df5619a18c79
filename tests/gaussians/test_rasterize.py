"""The rasteriser against a reference program's pictures and gradients, and a dense oracle."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lvsm_jax.gaussians import composite
from lvsm_jax.gaussians.gaussians import Gaussians, project
from lvsm_jax.gaussians.rasterize import rasterize, rasterize_projected, rasterizer_bytes

FIELDS = ("means", "quats", "scales", "opacities", "colors")
SIZE = {"height": 20, "width": 26}  # no multiples of a tile


@pytest.mark.parametrize(
    "scene",
    ["c", pytest.param("a", marks=pytest.mark.slow), pytest.param("b", marks=pytest.mark.slow)],
)
def test_golden(goldens, scene):
    golden = np.load(goldens / "gaussians.npz")
    found = {k.removeprefix(f"{scene}/"): golden[k] for k in golden.files if k[0] == scene}
    gaussians = Gaussians(*(jnp.asarray(found[f"in_{field}"]) for field in FIELDS))
    height, width = found["in_height_width"].tolist()
    k = found["in_K"]
    fxfycxcy = jnp.stack([k[:, 0, 0], k[:, 1, 1], k[:, 0, 2], k[:, 1, 2]], -1)
    c2w = jnp.asarray(np.linalg.inv(found["in_w2c"].astype(np.float64)), jnp.float32)

    def loss(gaussians):
        def seen(camera):
            projected = project(gaussians, *camera, height, width)
            features = jnp.concatenate([gaussians.colors, projected.depths[:, None]], -1)
            size = {"height": height, "width": width, "capacity": 6000, "tile": 16}
            raster = rasterize_projected(projected, gaussians.opacities, features, **size)
            return raster, projected.radii

        raster, radii = jax.lax.map(seen, (c2w, fxfycxcy))
        colors = (raster.features[..., :3] * found["in_weights_colors"]).sum()
        return colors + (raster.alpha * found["in_weights_alphas"]).sum(), (raster, radii)

    (total, (raster, radii)), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(gaussians)
    visible = (found["f64/radii"] > 0).all(-1)
    np.testing.assert_array_equal((radii > 0).all(-1), visible)
    np.testing.assert_allclose(radii[visible], found["f64/radii"][visible], atol=1)
    assert abs(int(raster.pairs.sum()) - found["tile_pairs_16"]) <= 3  # radii round
    clear = ~found["mask_borderline"]
    images = raster.features[..., :3], raster.features[..., 3:], raster.alpha
    names = "render_colors", "depth_accumulated", "render_alphas"
    for image, name, tolerance in zip(images, names, (1e-5, 2e-5, 1e-5), strict=True):
        np.testing.assert_allclose(
            image[clear], found[f"f64/{name}"][clear], atol=tolerance, err_msg=name
        )
    np.testing.assert_allclose(total, found["f64/loss"], atol=1e-3)
    for field, ours in zip(FIELDS, jax.tree.leaves(grads), strict=True):
        theirs = found[f"f64/grad_{field}"]
        difference = np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
        assert difference < 1e-4, (field, difference)
        assert not ours[~visible.any(0)].any(), field


@functools.cache
def scene(n=90):
    rng = np.random.default_rng(0)
    gaussians = Gaussians(
        means=rng.uniform((-1, -0.8, -0.5), (1, 0.8, 4), (n, 3)),
        quaternions=rng.normal(size=(n, 4)),
        scales=0.15 * np.exp(rng.normal(size=(n, 3))),
        opacities=rng.uniform(0, 1, n) ** 0.3,
        colors=rng.uniform(0, 1, (n, 3)),
    )
    camera = np.eye(4), np.array([21.0, 24.0, 12.0, 11.0])
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), (gaussians, camera))


def dense(gaussians, camera):
    """Each Gaussian on each pixel, without tiles, lists or blocks."""
    projected = project(gaussians, *camera, *SIZE.values())
    order = jnp.argsort(projected.depths)
    center, (p, q, r) = projected.centers[order], projected.whitening[order].T
    y, x = jnp.mgrid[: SIZE["height"], : SIZE["width"]] + 0.5
    dx, dy = x[..., None] - center[:, 0], y[..., None] - center[:, 1]
    distance = (p * dx) ** 2 + (r * (dy - q * dx)) ** 2
    alpha = jnp.minimum(0.99, gaussians.opacities[order] * jnp.exp(-distance / 2))
    seen = (projected.radii[order] > 0).all(-1)
    alpha = jnp.where(seen & (alpha >= 1 / 255), alpha, 0)
    through = jnp.cumprod(1 - alpha, -1)
    before = jnp.concatenate([jnp.ones_like(through[..., :1]), through[..., :-1]], -1)
    weights = alpha * before
    return jnp.einsum("hwn,nc->hwc", weights, gaussians.colors[order]), 1 - through[..., -1:]


@pytest.mark.parametrize("tile", [4, pytest.param(16, marks=pytest.mark.slow)])
def test_tiles_are_the_dense_picture(tile):
    gaussians, camera = scene()

    def loss(render, gaussians):
        colors, alpha = render(gaussians)
        waves = jnp.sin(jnp.arange(colors.size).reshape(colors.shape))
        return (colors * waves).sum() + (jnp.square(alpha) * waves[..., :1]).sum(), (colors, alpha)

    def ours(gaussians):
        return rasterize(gaussians, *camera, **SIZE, capacity=4000, tile=tile)[:2]

    results = [
        jax.jit(jax.value_and_grad(functools.partial(loss, render), has_aux=True))(gaussians)
        for render in (ours, lambda gaussians: dense(gaussians, camera))
    ]
    ((_, images), grads), ((_, expected), expected_grads) = results
    for image, wanted in zip(images, expected, strict=True):
        np.testing.assert_allclose(image, wanted, atol=2e-6)
    for ours, theirs in zip(*map(jax.tree.leaves, (grads, expected_grads)), strict=True):
        assert np.linalg.norm(ours - theirs) < 5e-5 * np.linalg.norm(theirs)


@pytest.mark.slow
def test_chunks_of_chips_are_those_of_a_cpu(monkeypatch):
    """More blocks at once and several Gaussians a kernel change nothing."""
    gaussians, camera = scene()

    def loss(gaussians):
        raster = rasterize(gaussians, *camera, **SIZE, capacity=4000, tile=4)
        return (raster.features * jnp.arange(3.0)).sum() + raster.alpha.sum(), raster.features

    step = jax.value_and_grad(loss, has_aux=True)
    expected = jax.jit(step)(gaussians)
    monkeypatch.setattr(composite, "_CHUNKS", {})
    found = jax.jit(lambda gaussians: step(gaussians))(gaussians)
    for ours, theirs in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_an_overflow_is_reported_and_keeps_the_nearest():
    gaussians, camera = scene()
    order = jnp.argsort(project(gaussians, *camera, *SIZE.values()).depths)

    @functools.partial(jax.jit, static_argnums=1)
    def render(gaussians, capacity):
        raster = rasterize(gaussians, *camera, **SIZE, capacity=capacity, tile=16)
        return raster, raster.features.sum()

    nearest, _ = render(jax.tree.map(lambda x: x[order[:50]], gaussians), 4000)
    room = int(nearest.pairs)
    short, grads = jax.grad(lambda g: render(g, room)[::-1], has_aux=True)(gaussians)[::-1]
    assert short.pairs > room
    np.testing.assert_allclose(short.features, nearest.features, atol=1e-6)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(grads))
    assert grads.colors[order[:50]].any() and not grads.colors[order[50:]].any()

    broken = dataclasses.replace(gaussians, means=gaussians.means.at[3, 0].set(jnp.nan))
    assert np.isnan(render(broken, room)[0].features).all()
    # Nothing in sight is a picture too.
    away = dataclasses.replace(gaussians, means=gaussians.means - jnp.array([0.0, 0.0, 9.0]))
    raster, _ = render(away, room)
    assert (raster.pairs, np.abs(raster.features).max(), raster.alpha.max()) == (0, 0, 0)


def test_more_pairs_than_can_be_counted_are_refused():
    many = jax.tree.map(lambda x: jax.ShapeDtypeStruct((2**20, *x.shape[1:]), x.dtype), scene()[0])
    size = {"height": 1024, "width": 1024, "capacity": 2**20, "tile": 8}
    with pytest.raises(ValueError, match=r"1,048,576 Gaussians on 16,384 tiles of 8 px"):
        jax.eval_shape(lambda g: rasterize(g, *scene()[1], **size), many)


def test_memory_follows_its_formula():
    n, size = 20_000, {"height": 128, "width": 128, "capacity": 80_000, "tile": 16}
    many = jax.tree.map(lambda x: jax.ShapeDtypeStruct((n, *x.shape[1:]), x.dtype), scene()[0])
    compiled = jax.jit(lambda g: rasterize(g, *scene()[1], **size)).lower(many).compile()
    measured = compiled.memory_analysis().temp_size_in_bytes
    assert 0.75 < measured / rasterizer_bytes(n, **size) < 1.25


def test_it_lowers_for_every_platform():
    """No operation is a CPU's alone, forward or backward; nothing is compiled."""

    def loss(gaussians, camera):
        return rasterize(gaussians, *camera, **SIZE, capacity=500, tile=16).features.sum()

    export = jax.export.export(jax.jit(jax.grad(loss)), platforms=("cpu", "cuda", "tpu"))
    assert export(*scene()).platforms == ("cpu", "cuda", "tpu")
