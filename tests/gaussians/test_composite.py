"""The kernels of GPUs and TPUs, interpreted on a CPU, against the composite in plain JAX."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lvsm_jax.gaussians import composite, composite_gpu, composite_tpu, rasterize
from tests.gaussians.test_rasterize import SIZE, dense, scene

TILE, GAUSSIANS, BLOCKS = 16, 3, 16
# Blocks of each tile: none at the start, in the middle and at the end, and one with many.
COUNTS = 0, 3, 0, 1, 8, 0


def lists():
    """Random blocks, some not full, and light that ends long before its list does."""
    rng = np.random.default_rng(0)
    shapes = np.concatenate(
        [
            rng.uniform(-2, TILE + 2, (BLOCKS, GAUSSIANS, 2)),
            rng.uniform(0.1, 1, (BLOCKS, GAUSSIANS, 1)),
            rng.normal(0, 0.3, (BLOCKS, GAUSSIANS, 1)),
            rng.uniform(0.1, 1, (BLOCKS, GAUSSIANS, 1)),
            rng.uniform(0, 1, (BLOCKS, GAUSSIANS, 1)) ** 0.3,
        ],
        axis=-1,
    )
    shapes[::3, 2:, 5] = 0  # no Gaussians
    shapes[5:, :, 2:5], shapes[5:, :, 5] = 0.01, 1  # opaque and wide: each leaves a hundredth
    features = rng.uniform(size=(BLOCKS, GAUSSIANS, 3))
    starts = np.concatenate([[0], np.cumsum(COUNTS)])
    tile_of = np.repeat(np.arange(len(COUNTS)), COUNTS)
    tile_of = np.concatenate([tile_of, np.full(BLOCKS - len(tile_of), tile_of[-1])])
    floats = (jnp.asarray(x, jnp.float32) for x in (shapes, features))
    return *floats, jnp.asarray(tile_of, jnp.int32), jnp.asarray(starts, jnp.int32)


def gradients(blend, shapes, features):
    waves = jnp.sin(jnp.arange(len(COUNTS) * 4 * TILE**2)).reshape(len(COUNTS), 4, -1)

    @functools.partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
    def loss(shapes, features):
        images, alpha = blend(shapes, features)
        return (images * waves[:, :3]).sum() + (alpha * waves[:, 3]).sum(), (images, alpha)

    return jax.jit(loss)(shapes, features)


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_the_kernel_is_the_plain_composite(platform):
    shapes, features, tile_of, starts = lists()

    def kernel(*gaussians):
        if platform == "gpu":
            images, through = composite_gpu.blend_tiles(TILE, *gaussians, starts)
        else:
            images, through = composite_tpu.blend_tiles(TILE, *gaussians, tile_of, starts)
        return images, 1 - through

    def plain(shapes, features):
        return composite.composite_tiles(TILE, shapes, features, tile_of, starts)

    ours, theirs = (gradients(blend, shapes, features) for blend in (kernel, plain))
    for a, b in zip(*map(jax.tree.leaves, (ours, theirs)), strict=True):
        assert np.isfinite(a).all()
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6)
    (_, (images, alpha)), (to_shapes, to_features) = ours
    empty = np.array(COUNTS) == 0
    assert not np.asarray(images)[empty].any() and not np.asarray(alpha)[empty].any()
    assert not to_shapes[sum(COUNTS) :].any() and not to_features[sum(COUNTS) :].any()


def test_a_tile_of_another_side_has_no_kernel(monkeypatch):
    for platform, sides in {"gpu": [4, 8, 16, 32], "tpu": [16, 32], "cpu": []}.items():
        monkeypatch.setattr(composite, "platform_of", lambda mesh, platform=platform: platform)
        assert [side for side in (4, 8, 12, 16, 20, 32) if composite.has_kernel(side)] == sides


@pytest.mark.parametrize(
    "platform, target", [("gpu", "xla.gpu.triton"), ("tpu", "tpu_custom_call")]
)
def test_the_rasteriser_takes_the_kernel_of_the_platform(monkeypatch, platform, target):
    """Forward and backward, as the platform's compiler is given them; nothing is compiled."""
    for module in (composite, composite_gpu, composite_tpu):
        monkeypatch.setattr(module, "platform_of", lambda mesh: platform)
    monkeypatch.setattr(rasterize, "BLOCK", GAUSSIANS)

    def loss(gaussians, camera):
        return rasterize.rasterize(gaussians, *camera, **SIZE, capacity=500).features.sum()

    traced = jax.jit(jax.grad(loss)).trace(*scene())
    lowered = traced.lower(lowering_platforms=("cuda" if platform == "gpu" else platform,))
    text = lowered.as_text()
    assert text.count(target) == 2
    assert rasterize.most_chunks(500, 4, 16) is None


@pytest.mark.slow
def test_pictures_of_the_kernel_are_the_dense_ones(monkeypatch):
    """With lists of all lengths, and with too little room for them."""
    monkeypatch.setattr(composite, "platform_of", lambda mesh: "gpu")
    monkeypatch.setattr(rasterize, "BLOCK", GAUSSIANS)
    gaussians, camera = scene()

    @functools.partial(jax.jit, static_argnums=1)
    def render(gaussians, capacity):
        return rasterize.rasterize(gaussians, *camera, **SIZE, capacity=capacity, tile=4)

    whole = render(gaussians, 4000)
    for image, wanted in zip(whole[:2], dense(gaussians, camera), strict=True):
        np.testing.assert_allclose(image, wanted, atol=2e-6)
    short = render(gaussians, int(whole.pairs) // 2)
    assert short.pairs == whole.pairs and np.isfinite(short.features).all()
    monkeypatch.undo()
    plain = rasterize.rasterize(gaussians, *camera, **SIZE, capacity=int(whole.pairs) // 2, tile=4)
    np.testing.assert_allclose(short.features, plain.features, atol=2e-6)


@pytest.mark.gpu
@pytest.mark.tpu
@pytest.mark.skipif(jax.default_backend() == "cpu", reason="compiled kernels need a GPU or TPU")
def test_compiled_kernels_are_the_plain_composite():
    """By tiles of 16, and of 12, which no kernel takes."""
    gaussians, camera = scene(2000)

    def loss(tile, gaussians):
        raster = rasterize.rasterize(gaussians, *camera, **SIZE, capacity=20_000, tile=tile)
        waves = jnp.sin(jnp.arange(raster.features.size)).reshape(raster.features.shape)
        return (raster.features * waves).sum() + raster.alpha.sum(), raster

    results = [
        jax.jit(jax.value_and_grad(functools.partial(loss, tile), has_aux=True))(gaussians)
        for tile in (16, 12)
    ]
    ((_, kernel), grads), ((_, plain), expected) = results
    assert plain.pairs <= 20_000
    np.testing.assert_allclose(kernel.features, plain.features, atol=1e-5)
    np.testing.assert_allclose(kernel.alpha, plain.alpha, atol=1e-5)
    for ours, theirs in zip(*map(jax.tree.leaves, (grads, expected)), strict=True):
        assert np.linalg.norm(ours - theirs) < 1e-4 * np.linalg.norm(theirs)
