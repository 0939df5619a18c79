"""How many of the inputs see what a target shows, from depth alone."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int8

from lvsm_jax.models.cameras import Cameras

NO_POINT = -1  # count of pixels that show the sky


def count_seen(
    inputs_depth: Float[Array, "s v h w"],
    inputs_cameras: Cameras,
    target_depth: Float[Array, "s t h w"],
    target_cameras: Cameras,
    *,
    target_ways: Float[Array, "s t h w 3"] | None = None,
    tolerance: float = 0.02,
) -> Int8[Array, "s t h w"]:
    """By how many inputs the point of each target pixel is seen; `NO_POINT` (-1) for the sky.

    An input sees a point that is in front of it, inside its picture, and as deep as what it shows
    there: within `tolerance`, a share of the depth, of the range of the four pixels around the
    place. Depths are as of `generate.Worlds`, and the cameras' unit is theirs. With its `ways`, a
    point is looked for where it is at the input's time.
    """

    def scene(arrays):
        inputs, targets = arrays

        def target(arrays):
            depth, pose, lens, time, ways = arrays
            points = _unproject(depth, pose, lens)

            def seen(count, arrays):
                depth, pose, lens, input_time = arrays
                there = points
                if ways is not None:
                    there = points + (input_time - time) * jnp.moveaxis(ways, -1, 0)
                return count + _is_seen(there, depth, pose, lens, tolerance), None

            zero = jnp.zeros(depth.shape, jnp.int8)
            count, _ = jax.lax.scan(seen, zero, inputs)
            return jnp.where(jnp.isfinite(depth), count, jnp.int8(NO_POINT))

        return jax.lax.map(target, targets)

    inputs, targets = (
        (depth, cameras.c2w, cameras.fxfycxcy, cameras.time)
        for depth, cameras in ((inputs_depth, inputs_cameras), (target_depth, target_cameras))
    )
    return jax.lax.map(scene, (inputs, (*targets, target_ways)))


def _unproject(depth, pose, lens):
    """Points `[3, h, w]` in the world."""
    height, width = depth.shape
    depth = jnp.where(jnp.isfinite(depth), depth, 1.0)
    x = (jnp.arange(width) + 0.5 - lens[2]) / lens[0] * depth
    y = (jnp.arange(height)[:, None] + 0.5 - lens[3]) / lens[1] * depth
    return jnp.stack([p[0] * x + p[1] * y + p[2] * depth + p[3] for p in pose[:3]])


def _is_seen(points, depth, pose, lens, tolerance):
    height, width = depth.shape
    away = points - pose[:3, 3, None, None]
    x, y, z = (sum(pose[j, i] * away[j] for j in range(3)) for i in range(3))
    ahead = z > 1e-6
    z = jnp.where(ahead, z, 1.0)
    u, v = x / z * lens[0] + lens[2], y / z * lens[1] + lens[3]
    inside = ahead & (u >= 0) & (u < width) & (v >= 0) & (v < height)
    left, top = jnp.floor(u - 0.5).astype(jnp.int32), jnp.floor(v - 0.5).astype(jnp.int32)
    columns = [jnp.clip(left + i, 0, width - 1) for i in (0, 1)]
    rows = [jnp.clip(top + i, 0, height - 1) for i in (0, 1)]
    around = jnp.stack([depth[row, column] for row in rows for column in columns])
    nearest, farthest = around.min(0), around.max(0)
    fits = (z >= nearest * (1 - tolerance)) & (z <= farthest * (1 + tolerance))
    return (inside & fits).astype(jnp.int8)
