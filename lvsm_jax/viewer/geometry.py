"""From a window in the browser to a camera of the scene, and back. NumPy and Pillow only.

The page has a frame of its own: up is z, the mean of the scene's cameras is the origin, and the
farthest of them is one unit away. So sizes on the page, and float32 in the browser, suit any world.

A render has a fixed shape, and the window another. The render stands in the middle of the window,
as large as fits. The window's vertical field of view, viser's only intrinsic, follows from it.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64, UInt8
from PIL import Image
from scipy.spatial.transform import Rotation

from lvsm_jax.common.errors import UserError
from lvsm_jax.scenes.photograph import PosedCamera
from lvsm_jax.scenes.trajectories import meeting_point, up_direction

_ASPECTS = (0.2, 5.0)  # of windows; what browsers say is not trusted
_FIELDS_OF_VIEW = (0.02, 3.0)
_SHARP = 384  # shorter side of what is sent; the browser would blur a smaller picture
_BAR = 28  # grey beside the render
_FARTHEST = 2.0  # point that a drag turns about; about one farther it would leave the scene
_BESIDE = 180  # pixels of pictures side by side, about half the panel


@dataclasses.dataclass(frozen=True)
class PageFrame:
    """A similarity from the world of the cameras to the page."""

    axes: Float64[np.ndarray, "3 3"]  # rotation from world to page
    origin: Float64[np.ndarray, "3"]  # of the page, in the world
    scale: float  # units of the page per unit of the world
    distance: float  # from a camera to what it looks at, in units of the page

    @classmethod
    def fit(cls, cameras: Sequence[PosedCamera]) -> "PageFrame":
        """The frame of these cameras, one or more."""
        c2w = np.stack([camera.c2w for camera in cameras])
        positions, up = c2w[:, :3, 3], up_direction(c2w)
        origin = positions.mean(0)
        # Any horizontal direction will do; the cameras' own keeps numbers tidy.
        ahead = np.cross(c2w[:, :3, 0].mean(0), up)
        if np.linalg.norm(ahead) < 1e-3:
            ahead = np.cross(up, np.eye(3)[np.abs(up).argmin()])
        ahead /= np.linalg.norm(ahead)
        axes = np.stack([np.cross(ahead, up), ahead, up])
        extent = np.linalg.norm(positions - origin, axis=1).max()
        scale = 1 / extent if extent > 1e-9 * np.abs(positions).max() else 1.0
        target = meeting_point(c2w)
        away = 1.0 if target is None else scale * np.linalg.norm(positions - target, axis=1).mean()
        return cls(axes, origin, float(scale), float(np.clip(away, 0.1, _FARTHEST)))

    def magnified(self, factor: float) -> "PageFrame":
        """The same with everything on the page so many times as large."""
        scale, distance = factor * self.scale, factor * self.distance
        return dataclasses.replace(self, scale=scale, distance=distance)

    def to_page(self, c2w: Float64[np.ndarray, "*v 4 4"]) -> Float64[np.ndarray, "*v 4 4"]:
        """Poses of cameras on the page."""
        result = np.array(c2w, np.float64)
        result[..., :3, :3] = self.axes @ result[..., :3, :3]
        result[..., :3, 3] = self.scale * (result[..., :3, 3] - self.origin) @ self.axes.T
        return result

    def to_world(self, c2w: Float64[np.ndarray, "*v 4 4"]) -> Float64[np.ndarray, "*v 4 4"]:
        """The inverse of `to_page`."""
        result = np.array(c2w, np.float64)
        result[..., :3, :3] = self.axes.T @ result[..., :3, :3]
        result[..., :3, 3] = result[..., :3, 3] @ self.axes / self.scale + self.origin
        return result


@dataclasses.dataclass(frozen=True, eq=False)
class Window:
    """The pinhole camera of a visitor's window."""

    c2w: Float64[np.ndarray, "4 4"]  # on the page, OpenCV's axes
    fov: float  # vertical, in radians
    aspect: float  # width over height

    @classmethod
    def of(
        cls,
        wxyz: Float64[np.ndarray, "4"],
        position: Float64[np.ndarray, "3"],
        fov: float,
        aspect: float,
    ) -> "Window":
        """From what viser says of a browser's camera; UserError if that is no camera."""
        c2w = np.eye(4)
        c2w[:3, :3] = Rotation.from_quat(np.roll(wxyz, -1)).as_matrix()
        c2w[:3, 3] = position
        if not (np.isfinite(c2w).all() and math.isfinite(fov) and math.isfinite(aspect)):
            raise UserError("the browser's camera is not finite")
        return cls(c2w, float(np.clip(fov, *_FIELDS_OF_VIEW)), float(np.clip(aspect, *_ASPECTS)))

    def camera(self, frame: PageFrame, size: tuple[int, int]) -> PosedCamera:
        """The camera in the world of a render in this window, of height and width `size`."""
        height, width = size
        tangent = math.tan(self.fov / 2)
        focal = max(height / 2 / tangent, width / 2 / (self.aspect * tangent))
        fxfycxcy = (focal, focal, width / 2, height / 2)
        return PosedCamera(frame.to_world(self.c2w), fxfycxcy, width, height)

    def picture_fov(self, size: tuple[int, int]) -> float:
        """Vertical field of view of a render of this size, in radians."""
        return _scaled_fov(self.fov, 1 / _window_tangents(size, self.aspect))


def field_of_view(camera: PosedCamera, size: tuple[int, int], aspect: float) -> float:
    """Vertical, of the window in which a render of this size shows what the camera sees."""
    height, width = size
    fx, fy = camera.cropped_to(height, width).fxfycxcy[:2]
    aspect = float(np.clip(aspect, *_ASPECTS))
    wide = aspect * height >= width
    return 2 * math.atan(height / 2 / fy if wide else width / 2 / fx / aspect)


def window_fov(picture_fov: float, size: tuple[int, int], aspect: float) -> float:
    """Vertical, of a window in which a render of this size has this vertical field of view."""
    aspect = float(np.clip(aspect, *_ASPECTS))
    return _scaled_fov(picture_fov, _window_tangents(size, aspect))


def _window_tangents(size: tuple[int, int], aspect: float) -> float:
    """Height of a window of this aspect in heights of the render within: 1 in a wide one."""
    height, width = size
    return max(1.0, width / height / aspect)


def _scaled_fov(fov: float, factor: float) -> float:
    return 2 * math.atan(factor * math.tan(fov / 2))


def bounded(value: Any, low: float, high: float) -> float:
    """A number that a browser says, within bounds; UserError for what is no finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UserError(f"expected a number from {low:g} to {high:g}")
    return min(high, max(low, float(value)))


def wxyz(c2w: Float64[np.ndarray, "4 4"]) -> Float64[np.ndarray, "4"]:
    """The rotation as a quaternion in viser's order."""
    return np.roll(Rotation.from_matrix(c2w[:3, :3]).as_quat(), 1)


def upright(c2w: Float64[np.ndarray, "4 4"]) -> Float64[np.ndarray, "3"]:
    """The up direction nearest to the page's with which looking ahead gives this pose.

    A visitor who drags the scene turns about it.
    """
    right, up = c2w[:3, 0], np.array([0.0, 0.0, 1.0])
    up -= (up @ right) * right
    return up if up @ -c2w[:3, 1] > 0.05 else -c2w[:3, 1]


def nearest(c2w: Float64[np.ndarray, "4 4"], others: Float64[np.ndarray, "v 4 4"]) -> int:
    """Index of the nearest camera; a unit of the page counts as much as a radian of direction."""
    moved = np.linalg.norm(others[:, :3, 3] - c2w[:3, 3], axis=1)
    turned = np.arccos(np.clip(others[:, :3, 2] @ c2w[:3, 2], -1, 1))
    return int((moved + turned).argmin())


def frustum_scale(positions: Float64[np.ndarray, "v 3"]) -> float:
    """Size of frustums on the page that keeps them apart but visible."""
    if len(positions) < 2:
        return 0.1
    distances = np.linalg.norm(positions[:, None] - positions[None], axis=-1)
    np.fill_diagonal(distances, np.inf)
    return float(np.clip(0.25 * np.median(distances.min(0)), 0.02, 0.1))


def frustum_depth(fov: float, aspect: float, scale: float) -> float:
    """Distance from a frustum's tip to its picture: viser gives all frustums one volume."""
    return scale / (math.tan(fov / 2) ** 2 * aspect / 3) ** (1 / 3)


def coarse_size(size: tuple[int, int], patch: int) -> tuple[int, int]:
    """At most half of a size, of its exact shape, in whole patches; else the size itself."""
    height, width = size
    common = math.gcd(height // patch, width // patch)
    half = common // 2
    return (height // common * half, width // common * half) if half else size


def fill_window(
    picture: UInt8[np.ndarray, "h w 3"], aspect: float
) -> UInt8[np.ndarray, "height width 3"]:
    """The render in the middle of a picture of the window's shape, as viser stretches it."""
    factor = max(1.0, _SHARP / min(picture.shape[:2]))
    height, width = (round(factor * side) for side in picture.shape[:2])
    wide = aspect * height >= width
    rows, columns = (height, round(aspect * height)) if wide else (round(width / aspect), width)
    result = np.full((rows, columns, 3), _BAR, np.uint8)
    top, left = (rows - height) // 2, (columns - width) // 2
    result[top : top + height, left : left + width] = _resized(picture, height, width)
    return result


def wipe(
    left: UInt8[np.ndarray, "h w 3"], right: UInt8[np.ndarray, "h2 w2 3"], share: float
) -> UInt8[np.ndarray, "height width 3"]:
    """The first `share` of the width of the left picture, a white line, and the rest of the right.

    As large as `fill_window` makes pictures of the left one's size. A share of 0 or 1 shows one
    picture alone.
    """
    factor = max(1.0, _SHARP / min(left.shape[:2]))
    height, width = (round(factor * side) for side in left.shape[:2])
    edge = round(share * width)
    result = np.array(_resized(left, height, width))
    result[:, edge:] = _resized(right, height, width)[:, edge:]
    if 0 < edge < width:
        result[:, edge - 1 : edge + 1] = 255
    return result


def side_by_side(
    left: UInt8[np.ndarray, "h w 3"], right: UInt8[np.ndarray, "h2 w2 3"]
) -> UInt8[np.ndarray, "height width 3"]:
    """Two pictures of one shape, at the size of the left one or larger, with a line between."""
    factor = max(1.0, _BESIDE / left.shape[1])
    height, width = (round(factor * side) for side in left.shape[:2])
    line = np.full((height, 4, 3), _BAR, np.uint8)
    return np.hstack([_resized(left, height, width), line, _resized(right, height, width)])


def _resized(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC))
