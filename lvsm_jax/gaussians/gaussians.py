"""What a 3D Gaussian is, and how cameras see it.

The rules of projection are those of gsplat (Apache-2.0) without its early stop: blur of 0.3 px²,
Jacobian clamped beside the picture, extent 3.33 σ along each axis. Letters: `n` Gaussians.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

NEAR = 0.01  # scene units; what is nearer to the camera is not seen
SH_DEGREE_0 = 0.28209479177387814  # the spherical harmonic that is the same on all sides
BLUR = 0.3  # px², added to each covariance: no Gaussian is smaller than a pixel
# What passes a cut-off of 1/255 lies within √(2 ln 255) = 3.329 σ: nothing that shows is left out.
EXTENT = 3.33
_BESIDE = 0.15  # of the picture: how far beside it the Jacobian is followed
_TINY = 1e-12


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Gaussians:
    """3D Gaussians in the scene frame; a pytree, with any dimensions before `n`.

    Attributes:
        means: `[*, n, 3]` centres.
        quaternions: `[*, n, 4]` rotations (w, x, y, z), of any length above zero.
        scales: `[*, n, 3]` standard deviations along the rotated axes, in scene units.
        opacities: `[*, n]` in [0, 1].
        colors: `[*, n, 3]`, the same from all sides.
    """

    # Any: a pytree also holds shapes, shardings and specs as leaves.
    means: Any
    quaternions: Any
    scales: Any
    opacities: Any
    colors: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Projected:
    """Gaussians as one camera sees them.

    Attributes:
        centers: `[n, 2]` in pixels, x then y; a pixel's centre is at +0.5.
        whitening: `[n, 3]` of (p, q, r): a pixel that is (x, y) px from the centre is
            √((p·x)² + (r·(y − q·x))²) standard deviations away.
        depths: `[n]` along the camera's z axis.
        radii: `[n, 2]` whole pixels from the centre to where nothing shows; 0 where invisible.
    """

    centers: Float[Array, "n 2"]
    whitening: Float[Array, "n 3"]
    depths: Float[Array, "n"]
    radii: Int[Array, "n 2"]


def project(
    gaussians: Gaussians,
    c2w: Float[Array, "4 4"],
    fxfycxcy: Float[Array, "4"],
    height: int,
    width: int,
) -> Projected:
    """The Gaussians as a camera sees them, its picture of this size in pixels.

    Invisible ones (nearer than `NEAR`, or beside the picture) have radii and gradients of 0.
    """
    axes, position = c2w[:3, :3], c2w[:3, 3]
    # Sums of products, here and below: exact float32 on every backend, unlike small matmuls.
    x, y, z = jnp.moveaxis(((gaussians.means - position)[:, :, None] * axes).sum(1), -1, 0)
    ahead = z > NEAR
    # Before the division: where a value is not used, its gradient is not to be NaN.
    x, y, z_safe = jnp.where(ahead, x, 0), jnp.where(ahead, y, 0), jnp.where(ahead, z, 1)
    fx, fy, cx, cy = fxfycxcy
    slopes = jnp.stack([x / z_safe, y / z_safe], -1)
    centers = slopes * jnp.stack([fx, fy]) + jnp.stack([cx, cy])
    first, second = _rows_of_spread(gaussians, axes, z_safe, slopes, fxfycxcy, height, width)
    xx, xy, yy = ((a * b).sum(-1) for a, b in ((first, first), (first, second), (second, second)))
    # By Cauchy–Binet: the difference xx·yy − xy² would be rounding for needles.
    area = jnp.square(jnp.cross(first, second)).sum(-1)
    determinant = area + BLUR * (xx + yy) + BLUR**2
    xx, yy = xx + BLUR, yy + BLUR
    whitening = jnp.stack([jax.lax.rsqrt(xx), xy / xx, jnp.sqrt(xx / determinant)], -1)
    radii = jnp.ceil(EXTENT * jnp.sqrt(jax.lax.stop_gradient(jnp.stack([xx, yy], -1))))
    size = jnp.array([width, height], jnp.float32)
    inside = ((centers + radii > 0) & (centers - radii < size)).all(-1)
    # A radius that is larger reaches as far, and fits an integer.
    radii = jnp.minimum(radii, 1e8).astype(jnp.int32)
    return Projected(centers, whitening, z, jnp.where((ahead & inside)[:, None], radii, 0))


def _rows_of_spread(
    gaussians: Gaussians,
    axes: Float[Array, "3 3"],
    z: Float[Array, "n"],
    slopes: Float[Array, "n 2"],
    fxfycxcy: Float[Array, "4"],
    height: int,
    width: int,
) -> tuple[Float[Array, "n 3"], Float[Array, "n 3"]]:
    """The rows of A [2×3] for which A·Aᵀ is the covariance in pixels, before the blur."""
    focal, center = fxfycxcy[:2], fxfycxcy[2:]
    size = jnp.array([width, height], jnp.float32)
    least, most = (-center - _BESIDE * size) / focal, (size - center + _BESIDE * size) / focal
    # Of the Jacobian alone: else what is beside a camera would smear over all of its picture.
    slopes = jnp.clip(slopes, least, most)
    spread = rotations(gaussians.quaternions) * gaussians.scales[:, None, :]  # [n, world, own]
    right, down, forward = ((axes[:, i, None] * spread).sum(1) for i in range(3))
    scaled = focal / z[:, None]
    first = scaled[:, :1] * (right - slopes[:, :1] * forward)
    second = scaled[:, 1:] * (down - slopes[:, 1:] * forward)
    return first, second


def rotations(quaternions: Float[Array, "n 4"]) -> Float[Array, "n 3 3"]:
    """Rotation matrices of quaternions (w, x, y, z), which are normalised first."""
    squared = jnp.square(quaternions).sum(-1, keepdims=True)
    w, x, y, z = jnp.moveaxis(quaternions * jax.lax.rsqrt(jnp.maximum(squared, _TINY**2)), -1, 0)
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )
    return jnp.stack([jnp.stack(row, -1) for row in rows], -2)
