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
    """The targets, and the mean distance along each axis of copied points from the true ones.

    Pixels of targets whose point moves have none. `images` are those of the inputs, in [0, 1].
    """
    cameras = batch.inputs.cameras, batch.targets.cameras
    render, copied = model.render_and_copy(images, *cameras, bounded_points(batch.inputs))
    distances = jnp.abs(copied - bounded_points(batch.targets))
    if batch.targets.moving is None:
        return render, distances.mean()
    at_rest = ~batch.targets.moving[..., None]
    counted = 3 * jnp.maximum(at_rest.sum(), 1)
    return render, jnp.where(at_rest, distances, 0.0).sum() / counted


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
