"""Camera normalisation on the device: `lvsm_jax.scenes.scene_frame`, in float32 and under `jit`.

Products are sums of products, which no backend rounds to TF32 or bfloat16 as it does a matmul's.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from lvsm_jax.scenes.scene_frame import POSITION_SCALE, TINY


def normalize_cameras(
    fitted: Float[Array, "v 4 4"],
    shown: Float[Array, "n 4 4"],
    scale: Float[Array, ""] | float = 1.0,
    turn: Float[Array, "3 3"] | None = None,
) -> tuple[Float[Array, "n 4 4"], Float[Array, ""]]:
    """The camera-to-world matrices `shown`, in the scene frame of those `fitted`, and its scale.

    It is `SceneFrame.fit(fitted).apply(shown)`; then positions are multiplied by `scale`, and all
    is turned about the frame's origin. The scale is scene units a world unit, with that factor.
    """
    positions = fitted[:, :3, 3]
    origin, axes = positions.mean(0), _mean_axes(fitted)
    extent = jnp.abs(multiply(positions - origin, axes)).max()
    one_place = extent <= TINY * jnp.abs(positions).max()
    scale = scale * jnp.where(
        one_place, 1.0, 1.0 / (POSITION_SCALE * jnp.where(one_place, 1.0, extent))
    )
    back = axes.T if turn is None else multiply(turn, axes.T)
    return _moved(shown, origin, scale, back), scale


def place_cameras(
    shown: Float[Array, "n 4 4"],
    scale: Float[Array, ""] | float = 1.0,
    turn: Float[Array, "3 3"] | None = None,
) -> tuple[Float[Array, "n 4 4"], Float[Array, ""] | float]:
    """The same in the world's own frame, which is scaled and turned alone."""
    return _moved(shown, jnp.zeros(3), scale, jnp.eye(3) if turn is None else turn), scale


def _moved(shown, origin, scale, back) -> Float[Array, "n 4 4"]:
    rotation = multiply(back, shown[:, :3, :3])
    position = multiply(back, (shown[:, :3, 3] - origin)[..., None]) * scale
    last = jnp.broadcast_to(jnp.array([0.0, 0.0, 0.0, 1.0]), (len(shown), 1, 4))
    return jnp.concatenate([jnp.concatenate([rotation, position], -1), last], -2)


def multiply(a: Float[Array, "*a i j"], b: Float[Array, "*b j k"]) -> Float[Array, "*c i k"]:
    """The matrix product in float32, exact to its rounding on every backend."""
    return (a[..., :, :, None] * b[..., None, :, :]).sum(-2)


def _mean_axes(c2w: Float[Array, "v 4 4"]) -> Float[Array, "3 3"]:
    """Columns right, down, forward of the cameras' common frame; of the first if there is none."""
    forward, down = c2w[:, :3, 2].mean(0), c2w[:, :3, 1].mean(0)
    right = jnp.cross(down, forward)
    lengths = jnp.linalg.norm(forward), jnp.linalg.norm(right)
    none = (lengths[0] < TINY) | (lengths[1] < TINY)
    forward, right = (
        x / jnp.where(none, 1.0, length)
        for x, length in zip((forward, right), lengths, strict=True)
    )
    down = jnp.cross(forward, right)
    down /= jnp.where(none, 1.0, jnp.linalg.norm(down))
    return jnp.where(none, c2w[0, :3, :3], jnp.stack([right, down, forward], axis=-1))
