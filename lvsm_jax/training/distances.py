"""What teaches GS-LRM where its Gaussians are, beside the pictures.

Far away, or all behind the camera's limits, they hardly move a pixel, and nothing is learned. In a
warm-up they are brought to where a scene can be; where the data knows its depth, it says where.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lvsm_jax.batch import Views
from lvsm_jax.models.cameras import Cameras, rays

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


def depth_loss(distances: Float[Array, "b v h w"], inputs: Views, far: float) -> Float[Array, ""]:
    """Mean |log(distance / true distance)| of the depth that the inputs have.

    In logarithms, scenes of any size count alike. What is farther than `far`, in scene units, as
    the sky is, is taken to be there.
    """
    _, directions = rays(inputs.cameras, *inputs.depth.shape[-2:])
    ahead = jnp.asarray(inputs.cameras.c2w)[..., None, None, :3, 2]
    wanted = jnp.minimum(inputs.depth / (directions * ahead).sum(-1), far)
    return jnp.abs(jnp.log(distances) - jnp.log(wanted)).mean()
