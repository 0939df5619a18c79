"""The warm-up of GS-LRM: Gaussians are first brought to where a scene can be.

Far away, or all behind the camera's limits, they hardly move a pixel, and nothing is learned.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lvsm_jax.models.cameras import Cameras

_HALF_WIDTH = 0.5  # scene units, standard deviation of the distances in the shell


def distance_loss(
    distances: Float[Array, "b v h w"], cameras: Cameras, middle: float
) -> Float[Array, ""]:
    """Mean squared difference of distances from those of a shell, in scene units.

    The shell keeps the order of a view's distances: each is brought to mean `middle` (0: the
    camera's own distance from the origin) and standard deviation 0.5. The variant is FaceLift's.
    """
    mean = distances.mean((-2, -1), keepdims=True)
    spread = jnp.sqrt(jnp.square(distances - mean).mean((-2, -1), keepdims=True))
    own = jnp.linalg.norm(jnp.asarray(cameras.c2w)[..., :3, 3], axis=-1)[..., None, None]
    wanted = (distances - mean) / jnp.maximum(spread, 1e-6) * _HALF_WIDTH + (middle or own)
    return jnp.square(distances - jax.lax.stop_gradient(wanted)).mean()
