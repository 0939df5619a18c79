"""Objects as the renders of Google Scanned Objects show them: one rig, and transparency.

The rig is 64 cameras that look at the origin from radius 2.7, z up: elevations 0, 20, 40 and 60°,
16 azimuths each, 22.5° apart from +x on, field of view 50°. Letters: `n` its views.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Float64, Key, UInt8

from lvsm_jax.common.errors import UserError
from lvsm_jax.models.cameras import Cameras
from lvsm_jax.worlds import objects
from lvsm_jax.worlds.config import RIG_VIEWS, WorldsConfig
from lvsm_jax.worlds.dice import Dice
from lvsm_jax.worlds.generate import Worlds, develop, make_each
from lvsm_jax.worlds.render import render

RADIUS, FIELD_OF_VIEW = 2.7, 50.0
ELEVATIONS, AZIMUTHS = (0.0, 20.0, 40.0, 60.0), 16

_FINER = 2  # rows and columns of rays of a pixel, of which its share of the object is counted
# From the rig's world, z up, to that of worlds, y down.
_TURN = np.array([[1, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0], [0, 0, 0, 1]], np.float64)


def rig_poses() -> Float64[np.ndarray, "n 4 4"]:
    """Camera to world, OpenCV axes: view 16 · row + column has the row's elevation."""
    elevation = np.deg2rad(np.repeat(ELEVATIONS, AZIMUTHS))
    azimuth = np.tile(2 * np.pi / AZIMUTHS * np.arange(AZIMUTHS), len(ELEVATIONS))
    level, zero = np.cos(elevation), np.zeros(RIG_VIEWS)
    out = np.stack([level * np.cos(azimuth), level * np.sin(azimuth), np.sin(elevation)], -1)
    right = np.stack([-np.sin(azimuth), np.cos(azimuth), zero], -1)
    poses = np.tile(np.eye(4), (RIG_VIEWS, 1, 1))
    poses[:, :3, :3] = np.stack([right, np.cross(-out, right), -out], axis=-1)
    poses[:, :3, 3] = RADIUS * out
    return poses


def rig_intrinsics(height: int, width: int) -> Float64[np.ndarray, "4"]:
    """Of its pictures, in pixels; the field of view is that of the width."""
    focal = width / 2 / np.tan(np.deg2rad(FIELD_OF_VIEW) / 2)
    return np.array([focal, focal, width / 2, height / 2])


def make_objects(
    keys: Key[Array, " s"],
    config: WorldsConfig,
    *,
    height: int,
    width: int,
    complexity: Float[Array, ""] | float = 1.0,
) -> Worlds:
    """An object of each key, from all views of the rig, as `make_worlds` makes worlds.

    Its images are `[s, n, h, w, 4]`, colours straight; no depth. Cameras are in the rig's world.
    UserError where bodies are to move.
    """
    if config.moving_share:
        raise UserError(f"worlds.moving_share is {config.moving_share}, but objects stand still")

    def make(key: Key[Array, ""], complexity: Float32[Array, ""]) -> tuple[Array, Array, Array]:
        images = _make_object(key, config, height, width, complexity)
        intrinsics = jnp.asarray(rig_intrinsics(height, width), jnp.float32)
        return (
            images,
            jnp.asarray(rig_poses(), jnp.float32),
            jnp.broadcast_to(intrinsics, (RIG_VIEWS, 4)),
        )

    images, c2w, fxfycxcy = make_each(make, keys, config, complexity)
    return Worlds(images, Cameras(c2w, fxfycxcy), None)


def _make_object(
    key: Key[Array, ""], config: WorldsConfig, height: int, width: int, complexity: Array
) -> UInt8[Array, "n h w 4"]:
    scene, _ = objects.lay_out(Dice(key), config, complexity, settings=(1.0, 0.0, 0.0))
    poses = jnp.asarray(_TURN @ rig_poses(), jnp.float32)
    finer = height * _FINER, width * _FINER
    intrinsics = jnp.asarray(rig_intrinsics(*finer), jnp.float32)
    intrinsics = jnp.broadcast_to(intrinsics, (RIG_VIEWS, 4))
    one_ray = dataclasses.replace(config, samples=1)
    radiance, depth, _ = render(scene, poses, intrinsics, *finer, one_ray)
    there = jnp.isfinite(depth)
    colours = jnp.where(
        there[..., None], develop(radiance, radiance, there).astype(jnp.float32), 0.0
    )

    def pixels(x: Array) -> Array:
        """Sums over the rays of each pixel."""
        return x.reshape(RIG_VIEWS, height, _FINER, width, _FINER, -1).sum((2, 4))

    count = pixels(there.astype(jnp.float32))
    colours = pixels(colours) / jnp.maximum(count, 1)
    rgba = jnp.concatenate([colours, 255 / _FINER**2 * count], -1)
    return jnp.round(rgba).astype(jnp.uint8)
