"""Supervision of where a head that copies looks, by depth that is known.

The head copies the points that the input pixels show exactly as it copies their colours. Where it
looks at the right pixels, it copies the points that the targets show. What moves is left out: the
head looks on epipolar lines, and on those a point of another time does not lie.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from lvsm_jax.batch import Batch, Views
from lvsm_jax.models.cameras import rays
from lvsm_jax.models.efficient_lvsm import EfficientLVSM


def render_and_compare_points(
    model: EfficientLVSM, images: Float[Array, "b v h w 3"], batch: Batch
) -> tuple[Float[Array, "b t h w 3"], Float[Array, ""]]:
    """The targets, and how far copied points are from the true ones, see `mean_distance`.

    `images` are those of the inputs, in [0, 1].
    """
    cameras = batch.inputs.cameras, batch.targets.cameras
    render, copied = model.render_and_copy(images, *cameras, bounded_points(batch.inputs))
    return render, mean_distance(copied, batch.targets)


def mean_distance(copied: Float[Array, "b t h w 3"], targets: Views) -> Float[Array, ""]:
    """Mean along each axis, from the targets' points, of pixels whose point stands still."""
    distances = jnp.abs(copied - bounded_points(targets))
    if targets.moving is None:
        return distances.mean()
    still = ~targets.moving[..., None]
    return jnp.where(still, distances, 0.0).sum() / (3 * jnp.maximum(still.sum(), 1))


def bounded_points(views: Views) -> Float[Array, "b v h w 3"]:
    """The points that pixels show, in the scene frame: p / (1 + |p|), so that the sky has one too.

    What is near, and so moves most between views, counts most.
    """
    origins, directions = rays(views.cameras, *views.depth.shape[-2:])
    ahead = views.cameras.c2w[..., None, None, :3, 2]
    distance = views.depth / (directions * ahead).sum(-1)
    # Far beyond all that is there, where the ray's origin no longer matters.
    distance = jnp.where(jnp.isfinite(distance), distance, 1e4)
    points = origins[:, :, None, None] + directions * distance[..., None]
    return points / (1 + jnp.linalg.norm(points, axis=-1, keepdims=True))
