"""Camera normalisation: the coordinate frame in which a model sees a scene. NumPy only.

The frame of the published RealEstate10K protocol (LVSM, Efficient-LVSM): its origin is the mean
camera position, its axes follow the mean viewing direction, and its unit of length is such that
all coordinates of the cameras it was fitted to lie within ±1 / `POSITION_SCALE`.
"""

import dataclasses

import numpy as np
from jaxtyping import Float, Float32, Float64

from lvsm_jax.common.errors import UserError

POSITION_SCALE = 1.35

# Below this length a sum of unit vectors has no direction worth the name, and below this share of
# the coordinates' size a distance between float32 positions is rounding.
TINY = 1e-6
# Coordinates beyond this are of a world whose origin is far away (UTM, ECEF). These are written as
# float64, for float32 would not do, so that their rounding does not grow as that of float32 would.
_FAR, _TINY_FLOAT64 = 1e3, 1e-13


@dataclasses.dataclass(frozen=True)
class SceneFrame:
    """A rigid change of coordinates, then a scaling of positions (scene units a world unit)."""

    world_to_scene: Float64[np.ndarray, "4 4"]
    scale: float

    @classmethod
    def fit(cls, c2w: Float[np.ndarray, "v 4 4"], scale: float | None = None) -> "SceneFrame":
        """The frame of these cameras.

        Pass all views of a sample, targets included, for the published protocol; the input views
        alone where targets come later. Where the mean viewing direction vanishes, or is parallel to
        the mean y axis (cameras that face opposite ways), the frame takes the axes of the first.
        After `apply` the largest |coordinate| is `1 / POSITION_SCALE`, unless `scale` fixes the
        scale instead; cameras that all stand in one place (a single input view among them) define
        no length, and their scale is 1. UserError where there is no camera, or a matrix is not
        finite.
        """
        c2w = np.asarray(c2w, np.float64)
        if len(c2w) == 0:
            raise UserError("a scene frame needs at least one camera, got c2w of shape [0, 4, 4]")
        if not np.isfinite(c2w).all():
            views = np.flatnonzero(~np.isfinite(c2w).all(axis=(1, 2))).tolist()
            raise UserError(f"camera-to-world matrices of views {views} are not finite")
        positions, axes = c2w[:, :3, 3], _mean_axes(c2w)
        world_to_scene = np.eye(4)
        world_to_scene[:3, :3] = axes.T
        world_to_scene[:3, 3] = -axes.T @ positions.mean(0)
        if scale is None:
            extent = np.abs((positions - positions.mean(0)) @ axes).max()
            reach = np.abs(positions).max()
            one_place = extent <= max(TINY * min(reach, _FAR), _TINY_FLOAT64 * reach)
            scale = 1.0 if one_place else 1.0 / (POSITION_SCALE * extent)
        return cls(world_to_scene, float(scale))

    def apply(self, c2w: Float[np.ndarray, "*v 4 4"]) -> Float32[np.ndarray, "*v 4 4"]:
        """Expresses camera-to-world matrices in this frame."""
        scene = self.world_to_scene @ np.asarray(c2w, np.float64)
        scene[..., :3, 3] *= self.scale
        return scene.astype(np.float32)


def _mean_axes(c2w: Float64[np.ndarray, "v 4 4"]) -> Float64[np.ndarray, "3 3"]:
    """Columns right, down, forward of the cameras' common frame, in world axes."""
    forward = c2w[:, :3, 2].mean(0)
    right = np.cross(c2w[:, :3, 1].mean(0), forward)
    if np.linalg.norm(forward) < TINY or np.linalg.norm(right) < TINY:
        return c2w[0, :3, :3]
    forward /= np.linalg.norm(forward)
    right /= np.linalg.norm(right)
    down = np.cross(forward, right)
    return np.stack([right, down / np.linalg.norm(down), forward], axis=-1)
