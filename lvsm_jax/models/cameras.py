"""Posed pinhole cameras, and the rays through their pixels.

Axes are OpenCV's: x right, y down, z forward. Shapes use `b` scenes, `v` views, `h w` pixels.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lvsm_jax.common.camera_limits import FARTHEST_IN_SCENE, check_positions
from lvsm_jax.common.errors import UserError

_SHORTEST_FOCAL, _LARGEST = 1e-3, 1e9  # pixels; the size of the picture is not known here


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cameras:
    """Cameras of the views of several scenes; a pytree, with NumPy or JAX arrays as leaves.

    Attributes:
        c2w: `[b, v, 4, 4]` camera-to-world matrices (OpenCV axes; any unit of length).
        fxfycxcy: `[b, v, 4]` focal lengths and principal point, in pixels of the image.
        time: `[b, v]` when each view is seen, from 0 to 1; None where nothing moves.
    """

    # Any, not Float[Array, ...]: a pytree also holds shapes, shardings and specs as leaves.
    c2w: Any
    fxfycxcy: Any
    time: Any = None

    @property
    def shape(self) -> tuple[int, ...]:
        """`(b, v)`."""
        return tuple(self.c2w.shape[:-2])

    @property
    def timeless(self) -> "Cameras":
        """The same without times."""
        return dataclasses.replace(self, time=None)

    def check(self, name: str = "cameras", *, read_device: bool = True) -> None:
        """Raises UserError unless shapes agree, values are finite and within reach.

        Values are checked where `can_read` says so.
        """
        c2w, fxfycxcy = jnp.shape(self.c2w), jnp.shape(self.fxfycxcy)
        if len(c2w) != 4 or c2w[-2:] != (4, 4):
            raise UserError(f"{name}.c2w has shape {c2w}, expected [scenes, views, 4, 4]")
        if fxfycxcy != (*c2w[:2], 4):
            raise UserError(
                f"{name}.fxfycxcy has shape {fxfycxcy}, expected {(*c2w[:2], 4)} to go with "
                f"c2w of shape {c2w}"
            )
        for field in ("c2w", "fxfycxcy"):
            values = getattr(self, field)
            if can_read(values, read_device) and not np.isfinite(np.asarray(values)).all():
                raise UserError(f"{name}.{field} holds values that are not finite")
        if can_read(values, read_device):
            _check_pixels(f"{name}.fxfycxcy", np.asarray(values))
        if can_read(self.c2w, read_device):
            check_positions(f"{name}.c2w", np.asarray(self.c2w)[..., :3, 3], FARTHEST_IN_SCENE)
        if self.time is not None:
            _check_time(f"{name}.time", self.time, c2w[:2], read_device)


def _check_pixels(name: str, fxfycxcy: Float[np.ndarray, "b v 4"]) -> None:
    """Raises UserError for numbers that are no pixels of any picture, whose size is not known."""
    sizes = np.abs(fxfycxcy)
    if (sizes[..., :2] == 0).any():
        raise UserError(f"{name} holds a focal length of zero")
    for found, fits in (
        (sizes[..., :2].min(initial=1), lambda size: size >= _SHORTEST_FOCAL),
        (sizes.max(initial=1), lambda size: size <= _LARGEST),
    ):
        if not fits(found):
            raise UserError(
                f"{name} holds {found:g}, expected pixels: focal lengths of {_SHORTEST_FOCAL:g} "
                f"or more, and nothing above {_LARGEST:g}"
            )


def _check_time(name: str, time: Any, shape: tuple[int, int], read_device: bool) -> None:
    """Raises UserError unless there is a time from 0 to 1 for each view."""
    if jnp.shape(time) != shape:
        raise UserError(f"{name} has shape {jnp.shape(time)}, expected {shape}: one for each view")
    if can_read(time, read_device):
        found = np.asarray(time)
        if not ((found >= 0) & (found <= 1)).all():  # also false for NaN
            raise UserError(f"{name} reaches from {found.min():g} to {found.max():g}, expected 0–1")


def can_read(x: Any, read_device: bool = True) -> bool:
    """Whether an array's values are known: never while tracing, on devices by `read_device`."""
    return not isinstance(x, jax.core.Tracer) and (read_device or not isinstance(x, jax.Array))


# Pose channels per pixel, by camera encoding. `plucker`: rays in world axes. `prope`: rays in the
# camera's own axes, and `models.prope` in attention; `gta`: the same without intrinsics there.
# `plucker_prope`: world rays, and attention.
POSE_CHANNELS = {"plucker": 6, "prope": 3, "gta": 3, "plucker_prope": 6}


def rays(
    cameras: Cameras, height: int, width: int
) -> tuple[Float[Array, "b v 3"], Float[Array, "b v h w 3"]]:
    """Origins and unit directions, in world axes, of the rays through all pixel centres."""
    c2w = jnp.asarray(cameras.c2w, jnp.float32)
    x, y = _columns_and_rows(cameras, height, width)
    # R·(x, y, 1) column by column: exact float32 on every backend, unlike a small matmul, which
    # GPUs and TPUs would round to TF32 or bfloat16.
    right, down, ahead = jnp.moveaxis(c2w[..., None, None, :3, :3], -1, 0)  # [b, v, 1, 1, 3] each
    directions = right * x[..., None, :, :] + down * y[..., :, None, :] + ahead
    directions /= jnp.linalg.norm(directions, axis=-1, keepdims=True)
    return c2w[..., :3, 3], directions


def pose_conditioning(
    encoding: str, cameras: Cameras, height: int, width: int
) -> Float[Array, "b v h w channels"]:
    """Pose channels of every pixel; `encoding` is of `POSE_CHANNELS`."""
    conditioning = plucker if encoding.startswith("plucker") else own_rays
    return conditioning(cameras, height, width)


def own_rays(cameras: Cameras, height: int, width: int) -> Float[Array, "b v h w 3"]:
    """Unit directions of the rays in the camera's own axes: they depend on intrinsics alone."""
    x, y = _columns_and_rows(cameras, height, width)
    x, y = jnp.broadcast_arrays(x[..., None, :, :], y[..., :, None, :])
    directions = jnp.concatenate([x, y, jnp.ones_like(x)], axis=-1)
    return directions / jnp.linalg.norm(directions, axis=-1, keepdims=True)


def _columns_and_rows(
    cameras: Cameras, height: int, width: int
) -> tuple[Float[Array, "b v w 1"], Float[Array, "b v h 1"]]:
    """X of the pixels' columns and y of their rows at depth 1, in the camera's axes."""
    fx, fy, cx, cy = jnp.split(jnp.asarray(cameras.fxfycxcy, jnp.float32)[..., None, :], 4, -1)
    x = (jnp.arange(width, dtype=jnp.float32)[:, None] + 0.5 - cx) / fx
    y = (jnp.arange(height, dtype=jnp.float32)[:, None] + 0.5 - cy) / fy
    return x, y


def plucker(cameras: Cameras, height: int, width: int) -> Float[Array, "b v h w 6"]:
    """Pose conditioning of every pixel: `concat(origin × direction, direction)`.

    The reference models of LVSM and Efficient-LVSM put the moment first.
    """
    origins, directions = rays(cameras, height, width)
    moments = jnp.cross(origins[:, :, None, None, :], directions)
    return jnp.concatenate([moments, directions], axis=-1)
