"""Lenses: the models as COLMAP has them, and pictures as a pinhole would have taken them."""

import importlib.util

import numpy as np
import pytest

from lvsm_jax.scenes.lens import Distortion, Lens

WIDTH, HEIGHT = 120, 80
F = np.array([100.0, 102.0, 61.0, 37.5])
MODELS = {
    "SIMPLE_RADIAL": {"k": -0.12},
    "RADIAL": {"k1": 0.11, "k2": -0.04},
    "OPENCV": {"k1": -0.31, "k2": 0.11, "p1": 0.001, "p2": -0.004},
    "FULL_OPENCV": dict(
        zip(
            ("k1", "k2", "p1", "p2", "k3", "k4", "k5", "k6"),
            (-0.3, 0.1, 0.002, 0.001, 0.03, 0.15, -0.02, 0.01),
            strict=True,
        )
    ),
}


def some_rays(count=200):
    return np.random.default_rng(0).uniform(-0.5, 0.5, (count, 2))


@pytest.mark.skipif(importlib.util.find_spec("pycolmap") is None, reason="needs pycolmap")
@pytest.mark.parametrize("model", MODELS)
def test_the_models_are_colmaps(model):
    import pycolmap

    lens = Lens(F, Distortion.of(model, MODELS[model]))
    one_focal = model in ("SIMPLE_RADIAL", "RADIAL")
    intrinsics = [F[0], *F[2:]] if one_focal else list(F)
    params = [*intrinsics, *MODELS[model].values()]
    camera = pycolmap.Camera(model=model, width=WIDTH, height=HEIGHT, params=params)
    theirs = camera.img_from_cam(np.pad(some_rays(), ((0, 0), (0, 1)), constant_values=1))
    focal = F[[0, 0, 2, 3]] if one_focal else F
    ours = lens.distortion.apply(some_rays()) * focal[:2] + focal[2:]
    np.testing.assert_allclose(ours, theirs, atol=1e-9)


def colours_of_rays(rays):
    """A smooth picture of the world, by direction."""
    x, y = rays[..., 0], rays[..., 1]
    waves = [np.sin(9 * x), np.cos(8 * y), np.sin(6 * x + 5 * y)]
    return 127 + 120 * np.stack(waves, axis=-1)


def rays_through(lens, pixels):
    """The rays that a lens shows at pixels, by iteration."""
    seen = (pixels - lens.fxfycxcy[2:]) / lens.fxfycxcy[:2]
    rays = seen.copy()
    for _ in range(200):
        rays += seen - lens.distortion.apply(rays)
    np.testing.assert_allclose(lens.distortion.apply(rays), seen, atol=1e-9)
    return rays


@pytest.mark.parametrize("model", MODELS)
def test_an_undistorted_picture_is_that_of_the_pinhole(model):
    lens = Lens(F, Distortion.of(model, MODELS[model]))
    places = np.stack(np.meshgrid(np.arange(WIDTH) + 0.5, np.arange(HEIGHT) + 0.5), axis=-1)
    taken = np.rint(colours_of_rays(rays_through(lens, places))).astype(np.uint8)
    pinhole = lens.pinhole(WIDTH, HEIGHT)
    ours = lens.undistort(taken, pinhole)
    expected = colours_of_rays((places - pinhole[2:]) / pinhole[:2])
    error = np.abs(ours - expected)
    assert error.max() < 3  # of rounding, and of lines between pixels
    unchanged = np.abs(taken - colours_of_rays((places - F[2:]) / F[:2]))
    assert unchanged.max() > 8  # what it is to be told from


@pytest.mark.parametrize("model", MODELS)
def test_the_pinhole_is_the_widest_that_the_picture_fills(model):
    lens = Lens(F, Distortion.of(model, MODELS[model]))
    pinhole = lens.pinhole(WIDTH, HEIGHT)
    np.testing.assert_allclose(pinhole[0] / pinhole[1], F[0] / F[1])
    np.testing.assert_array_equal(pinhole[2:], F[2:])
    border = np.array(
        [(u, v) for u in np.linspace(0.5, WIDTH - 0.5, 240) for v in (0.5, HEIGHT - 0.5)]
        + [(u, v) for v in np.linspace(0.5, HEIGHT - 0.5, 160) for u in (0.5, WIDTH - 0.5)]
    )
    seen = lens._pixels((border - pinhole[2:]) / pinhole[:2])
    assert seen.min() > 0.4 and (seen < [WIDTH - 0.4, HEIGHT - 0.4]).all()
    nearest = np.minimum(seen - 0.5, [WIDTH - 0.5, HEIGHT - 0.5] - seen).min()
    assert abs(nearest) < 0.1


def test_what_no_pinhole_shows_is_refused():
    with pytest.raises(ValueError, match="no pinhole camera shows"):
        Lens(F, Distortion.of("RADIAL", {"k1": -50.0})).pinhole(WIDTH, HEIGHT)
    with pytest.raises(ValueError, match=r"the lens distorts by s1 = 0\.1, and only k1, k2"):
        Distortion.of("OPENCV", {"k1": 0.1, "s1": 0.1})
    assert not Distortion.of("OPENCV", {"k1": 0.0, "s1": 0.0})


def test_a_wide_picture_in_bands_is_the_same(monkeypatch):
    from lvsm_jax.scenes import lens as module

    lens = Lens(F, Distortion.of("OPENCV", MODELS["OPENCV"]))
    pixels = np.random.default_rng(1).integers(0, 256, (HEIGHT, WIDTH, 3)).astype(np.uint8)
    whole = lens.undistort(pixels, F)
    monkeypatch.setattr(module, "_BAND", 7 * WIDTH)
    np.testing.assert_array_equal(lens.undistort(pixels, F), whole)
