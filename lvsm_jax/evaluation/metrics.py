"""Image metrics of the published protocol, one number an image, always in float32.

UserError where images are of integers, too small, or shapes differ. Nothing is a matmul or a
convolution, whose inputs GPUs and TPUs round to TF32 or bfloat16. LPIPS is in `frozen.lpips`.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lvsm_jax.common.errors import UserError

_SSIM_TAPS, _SSIM_SIGMA = 11, 1.5
_SSIM_C1, _SSIM_C2 = 0.01**2, 0.03**2

Images = Float[Array | np.ndarray, "b h w 3"]


def psnr(target: Images, prediction: Images) -> Float[Array, "b"]:
    """Peak signal-to-noise ratio in dB of images clipped to [0, 1]; infinite where they agree."""
    target, prediction = _float32(target, prediction)
    error = jnp.clip(target, 0, 1) - jnp.clip(prediction, 0, 1)
    return -10 * jnp.log10(jnp.square(error).mean(axis=(1, 2, 3)))


def ssim(target: Images, prediction: Images) -> Float[Array, "b"]:
    """Structural similarity of images with a range of 1, 11×11 pixels or larger, not clipped.

    Equals `skimage.metrics.structural_similarity(..., win_size=11, gaussian_weights=True,
    data_range=1, channel_axis=-1)`: sample covariances, and only windows inside the image count.
    """
    x, y = _float32(target, prediction)
    if min(x.shape[1:3]) < _SSIM_TAPS:
        raise UserError(f"SSIM needs images of 11×11 pixels at least, got {x.shape[1:3]}")
    mean_x, mean_y = _blur(x), _blur(y)
    sample = _SSIM_TAPS**2 / (_SSIM_TAPS**2 - 1)
    var_x = sample * (_blur(x * x) - mean_x * mean_x)
    var_y = sample * (_blur(y * y) - mean_y * mean_y)
    cov = sample * (_blur(x * y) - mean_x * mean_y)
    luminance = (2 * mean_x * mean_y + _SSIM_C1) / (mean_x**2 + mean_y**2 + _SSIM_C1)
    structure = (2 * cov + _SSIM_C2) / (var_x + var_y + _SSIM_C2)
    return (luminance * structure).mean(axis=(1, 2, 3))


def _blur(x: Array) -> Array:
    """Gaussian filter of rows, then columns, where the whole window lies in the image."""
    offsets = np.arange(_SSIM_TAPS) - _SSIM_TAPS // 2
    weights = np.exp(-0.5 * (offsets / _SSIM_SIGMA) ** 2)
    weights = (weights / weights.sum()).tolist()
    height, width = x.shape[1] - _SSIM_TAPS + 1, x.shape[2] - _SSIM_TAPS + 1
    x = sum(w * x[:, i : i + height] for i, w in enumerate(weights))
    return sum(w * x[:, :, i : i + width] for i, w in enumerate(weights))


def _float32(target: Array | np.ndarray, prediction: Array | np.ndarray) -> tuple[Array, Array]:
    for name, image in (("target", target), ("prediction", prediction)):
        if not jnp.issubdtype(image.dtype, jnp.floating):
            raise UserError(f"{name} is {image.dtype}, expected float images (8-bit ones / 255)")
    if target.shape != prediction.shape:
        raise UserError(f"target has shape {target.shape}, prediction {prediction.shape}")
    return jnp.asarray(target, jnp.float32), jnp.asarray(prediction, jnp.float32)
