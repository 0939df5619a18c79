import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from lvsm_jax.evaluation.metrics import psnr, ssim


def images(shape: tuple[int, ...], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Smooth targets with a range of contrasts, and noisy predictions that leave [0, 1]."""
    rng = np.random.default_rng(seed)
    b, h, w, _ = shape
    rows, columns = np.linspace(0, 6, h)[:, None, None], np.linspace(0, 6, w)[:, None]
    phase = rng.uniform(0, 6, (b, 1, 1, 3))
    target = 0.5 + 0.5 * np.sin(rows + phase) * np.cos(columns * phase)
    prediction = target + rng.normal(0, 0.15, shape)
    return target.astype(np.float32), prediction.astype(np.float32)


def test_golden(goldens):
    golden = np.load(goldens / "metrics.npz")
    target, prediction = golden["target"], golden["prediction"]
    np.testing.assert_allclose(psnr(target, prediction), golden["psnr"], rtol=1e-6)
    np.testing.assert_allclose(ssim(target, prediction), golden["ssim"], atol=1e-6)


@pytest.mark.parametrize("size", [(11, 11), (12, 40), (33, 57), (256, 256)])
def test_equal_scikit_image(size):
    target, prediction = images((2, *size, 3))
    expected_ssim = [
        structural_similarity(
            t.astype(np.float64),
            p.astype(np.float64),
            win_size=11,
            gaussian_weights=True,
            data_range=1,
            channel_axis=-1,
        )
        for t, p in zip(target, prediction, strict=True)
    ]
    expected_psnr = [
        peak_signal_noise_ratio(t.astype(np.float64), p.clip(0, 1).astype(np.float64), data_range=1)
        for t, p in zip(target, prediction, strict=True)
    ]
    np.testing.assert_allclose(jax.jit(ssim)(target, prediction), expected_ssim, atol=2e-6)
    np.testing.assert_allclose(jax.jit(psnr)(target, prediction), expected_psnr, atol=2e-5)


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_half_precision_images_are_scored_in_float32(metric):
    rounded = [jnp.asarray(x, jnp.bfloat16) for x in images((1, 32, 32, 3))]
    score = metric(*rounded)
    assert score.dtype == jnp.float32
    np.testing.assert_array_equal(score, metric(*(x.astype(jnp.float32) for x in rounded)))


def test_equal_images():
    target, _ = images((2, 16, 16, 3))
    assert np.isposinf(psnr(target, target)).all()
    np.testing.assert_allclose(ssim(target, target), 1, rtol=1e-6)


@pytest.fixture
def without_type_checks():
    """What users run: annotations are checked in tests alone."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_refuses_bytes_and_other_shapes(metric, without_type_checks):
    image = np.zeros((1, 16, 16, 3), np.float32)
    with pytest.raises(ValueError, match=r"target has shape .*16, 3\), prediction \(1, 16, 1, 3\)"):
        metric(image, image[:, :, :1])
    with pytest.raises(ValueError, match="prediction is uint8, expected float"):
        metric(image, image.astype(np.uint8))


def test_ssim_refuses_images_smaller_than_its_window():
    image = np.zeros((1, 10, 30, 3), np.float32)
    with pytest.raises(ValueError, match=r"11×11 pixels at least, got \(10, 30\)"):
        ssim(image, image)
