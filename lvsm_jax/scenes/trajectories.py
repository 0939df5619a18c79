"""Camera paths through photographs or around them. NumPy and SciPy only.

A path has `frames` cameras in the world frame and the unit of the cameras it is made from (one or
more). Its pictures have the size of the first of these, to which the others are cropped, and also
its intrinsics unless they are interpolated. The middle camera is the nearest to the mean position.
"""

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64
from scipy.interpolate import CubicSpline, PchipInterpolator
from scipy.spatial.transform import Rotation, RotationSpline

from lvsm_jax.common.errors import UserError
from lvsm_jax.scenes import camera_json
from lvsm_jax.scenes.photograph import PosedCamera

PosedCameras = Sequence[PosedCamera]
Poses = Float64[np.ndarray, "n 4 4"]
Vector = Float64[np.ndarray, "3"]

# Below this mean sin² of the angle to their common direction (1.5°) the viewing axes are parallel,
# and where they meet is noise.
_PARALLEL = math.sin(math.radians(1.5)) ** 2
_SHORTEST = 1e-2  # of the mean time between inputs: two in one place do not stop the path


def interpolate(cameras: PosedCameras, frames: int, *, closed: bool = False) -> list[PosedCamera]:
    """A path through all cameras in their order, of about even speed.

    It starts at the first camera and ends at the last or, if closed, goes on to the first, ready to
    be repeated. Positions follow a cubic spline and rotations its counterpart on the sphere, both
    without jumps in velocity or acceleration; focal lengths and principal points change without
    overshooting. UserError for fewer than two cameras.
    """
    cameras, c2w = _alike(cameras, frames, at_least=2)
    fxfycxcy = np.stack([camera.fxfycxcy for camera in cameras])
    keys = np.arange(len(cameras))
    if closed:  # a turn before and a turn after: the splines know nothing of their ends
        keys = np.concatenate([keys, keys, keys, keys[:1]])
    times = _times(c2w[keys])
    first, last = (len(cameras), 2 * len(cameras)) if closed else (0, len(cameras) - 1)
    now = np.linspace(times[first], times[last], frames, endpoint=not closed)
    result = np.tile(np.eye(4), (frames, 1, 1))
    result[:, :3, 3] = CubicSpline(times, c2w[keys, :3, 3], bc_type="natural")(now)
    rotations = Rotation.from_matrix(c2w[keys, :3, :3])
    result[:, :3, :3] = RotationSpline(times, rotations)(now).as_matrix()
    focal = PchipInterpolator(times, np.log(fxfycxcy[keys, :2]))(now)
    centre = PchipInterpolator(times, fxfycxcy[keys, 2:])(now)
    intrinsics = np.concatenate([np.exp(focal), centre], axis=1)
    size = cameras[0].width, cameras[0].height
    return [PosedCamera(*both, *size) for both in zip(result, intrinsics, strict=True)]


def orbit(
    cameras: PosedCameras, frames: int, *, degrees: float = 360.0, distance: float | None = None
) -> list[PosedCamera]:
    """A circle around what the cameras look at, at their mean radius and height above it.

    It goes around by `degrees`, positive to the camera's right. A full turn starts at the cameras'
    mean direction and does not repeat its first frame; a part of one has that direction in its
    middle. Its centre is at a `distance` from the middle camera, by default where the cameras'
    viewing axes meet. UserError if these do not meet in front of the cameras and no distance is
    given, or if the cameras look straight down at the point.
    """
    cameras, c2w = _alike(cameras, frames)
    target = meeting_point(c2w, distance)
    if target is None:
        raise UserError(
            "an orbit needs a centre, but the cameras' viewing axes do not meet in front of them: "
            f"give the distance from {_middle(c2w)[:3, 3].round(3).tolist()}, the middle camera, "
            "to what it looks at, in units of the poses (the cameras stand up to "
            f"{_extent(c2w):.3g} from their mean)"
        )
    up = up_direction(c2w)
    offsets = c2w[:, :3, 3] - target
    height = (offsets @ up).mean()
    level = offsets - (offsets @ up)[:, None] * up
    radii = np.linalg.norm(level, axis=1)
    radius = radii.mean()
    if radius < 1e-3 * np.linalg.norm(offsets, axis=1).mean():
        raise UserError("the cameras look straight up or down: there is no circle around that")
    start = level.mean(0)
    if np.linalg.norm(start) < 1e-2 * radius:  # they stand all around
        start = level[radii.argmax()]
    start /= np.linalg.norm(start)
    full = abs(degrees) >= 360
    begin, end = (0, degrees) if full else (-degrees / 2, degrees / 2)
    angle = np.radians(np.linspace(begin, end, frames, endpoint=not full))[:, None]
    circle = np.cos(angle) * start + np.sin(angle) * np.cross(up, start)
    return _path(_looking_at(target + radius * circle + height * up, target, up), cameras[0])


def spiral(
    cameras: PosedCameras,
    frames: int,
    *,
    turns: float = 2.0,
    radius: float | None = None,
    distance: float | None = None,
) -> list[PosedCamera]:
    """Circles of the middle camera across its viewing axis while it moves ahead and back once.

    With a whole number of `turns` the path ends where it began. The `radius` of the circles is also
    how far it moves ahead and back; by default it is a quarter of how far the cameras stand from
    their mean at most, and a UserError if that is 0. The camera keeps looking at a point at a
    `distance`, by default where the cameras' viewing axes meet; where they do not it keeps its
    direction.
    """
    cameras, c2w = _alike(cameras, frames)
    radius = _length("radius", radius, _extent(c2w) / 4)
    middle = _middle(c2w)
    target = meeting_point(c2w, distance)
    time = np.linspace(0, 1, frames, endpoint=False)
    angle = 2 * np.pi * turns * time
    steps = radius * np.stack([np.cos(angle), np.sin(angle), np.sin(2 * np.pi * time)], axis=1)
    result = np.tile(middle, (frames, 1, 1))
    result[:, :3, 3] += steps @ middle[:3, :3].T
    if target is not None:
        result = _looking_at(result[:, :3, 3], target, -middle[:3, 1])
    return _path(result, cameras[0])


def dolly(cameras: PosedCameras, frames: int, *, travel: float | None = None) -> list[PosedCamera]:
    """Straight ahead along the middle camera's viewing axis, from behind it to before it.

    The way is `travel` long, negative to go backwards; by default twice as long as the cameras
    stand from their mean at most. UserError if that is 0.
    """
    cameras, c2w = _alike(cameras, frames)
    travel = _length("travel", travel, 2 * _extent(c2w))
    middle = _middle(c2w)
    result = np.tile(middle, (frames, 1, 1))
    result[:, :3, 3] += np.linspace(-travel / 2, travel / 2, frames)[:, None] * middle[:3, 2]
    return _path(result, cameras[0])


def _length(name: str, value: float | None, default: float) -> float:
    if value is None and default == 0:
        raise UserError(f"all cameras stand in one place: give the {name}, in units of the poses")
    value = default if value is None else value
    if not math.isfinite(value):
        raise UserError(f"{name} is {value}, expected a finite number")
    return value


def _alike(cameras: PosedCameras, frames: int, at_least: int = 1) -> tuple[PosedCameras, Poses]:
    """The cameras, all of pictures of the first one's size, and their poses."""
    if not 1 <= frames <= MOST_FRAMES:
        raise UserError(f"frames is {frames}, expected 1 to {MOST_FRAMES:,}")
    if len(cameras) < at_least:
        raise UserError(f"this path is made from {at_least} cameras or more, got {len(cameras)}")
    size = cameras[0].height, cameras[0].width
    alike = [c if (c.height, c.width) == size else c.cropped_to(*size) for c in cameras]
    return alike, np.stack([camera.c2w for camera in alike])


def _path(c2w: Poses, like: PosedCamera) -> list[PosedCamera]:
    return [dataclasses.replace(like, c2w=pose) for pose in c2w]


def _times(c2w: Poses) -> Float64[np.ndarray, " n"]:
    """When to be where: time is spent on moving and on turning, in shares of their means."""
    moved = np.linalg.norm(np.diff(c2w[:, :3, 3], axis=0), axis=1)
    rotations = Rotation.from_matrix(c2w[:, :3, :3])
    turned = (rotations[:-1].inv() * rotations[1:]).magnitude()
    effort = np.zeros(len(moved))
    for part in (moved, turned):
        if part.mean() > 1e-9:
            effort = np.hypot(effort, part / part.mean())
    if effort.sum() == 0:
        effort += 1
    durations = np.maximum(effort / effort.mean(), _SHORTEST)
    return np.concatenate([[0.0], np.cumsum(durations)])


def _from_mean(c2w: Poses) -> Float64[np.ndarray, " n"]:
    """Distance of each camera from their mean position."""
    return np.linalg.norm(c2w[:, :3, 3] - c2w[:, :3, 3].mean(0), axis=1)


def _extent(c2w: Poses) -> float:
    """Largest distance of a camera from the mean position; 0 where it is but rounding."""
    extent = _from_mean(c2w).max()
    return float(extent) if extent > 1e-9 * np.abs(c2w[:, :3, 3]).max() else 0.0


def _middle(c2w: Poses) -> Float64[np.ndarray, "4 4"]:
    """The camera that stands nearest to the mean position."""
    return c2w[_from_mean(c2w).argmin()]


def meeting_point(c2w: Poses, distance: float | None = None) -> Vector | None:
    """The point that the cameras look at, or None where their axes do not meet before them.

    Where its `distance` from the middle camera is known, it is on that camera's axis. UserError
    for a distance that is not positive.
    """
    if distance is not None:
        if not (math.isfinite(distance) and distance > 0):
            raise UserError(f"distance is {distance}, expected a positive number")
        middle = _middle(c2w)
        return middle[:3, 3] + distance * middle[:3, 2]
    # From their mean, so that an origin that is far away costs no digits.
    mean, forward = c2w[:, :3, 3].mean(0), c2w[:, :3, 2]
    positions = c2w[:, :3, 3] - mean
    # The point with the least sum of squared distances to the viewing axes.
    across = np.eye(3) - forward[:, :, None] * forward[:, None, :]
    total = across.mean(0)
    if np.linalg.eigvalsh(total)[0] < _PARALLEL:
        return None
    point = np.linalg.solve(total, np.einsum("vij,vj->i", across, positions) / len(c2w))
    ahead = np.einsum("vi,vi->v", point - positions, forward) > 0
    return mean + point if ahead.all() else None


def up_direction(c2w: Poses) -> Vector:
    """The direction that pictures taken upright agree on.

    People hold cameras level: their x axes lie in the ground plane, however they tilt. Cameras that
    all look the same way say nothing of that plane, and their mean up direction has to do.
    """
    mean = -c2w[:, :3, 1].mean(0)
    _, size, axes = np.linalg.svd(c2w[:, :3, 0], full_matrices=True)
    if len(c2w) > 1 and size[1] ** 2 / len(c2w) > 9 * _PARALLEL:
        up = axes[2] * (np.sign(axes[2] @ mean) or 1.0)
    else:
        up = mean if np.linalg.norm(mean) > 1e-6 else -c2w[0, :3, 1]
    return up / np.linalg.norm(up)


def _looking_at(positions: Float64[np.ndarray, "n 3"], target: Vector, up: Vector) -> Poses:
    """Cameras at these positions that have the target in their middle and stand upright."""
    forward = target - positions
    right = np.cross(forward, up)
    right /= np.linalg.norm(right, axis=1, keepdims=True)
    forward /= np.linalg.norm(forward, axis=1, keepdims=True)
    c2w = np.tile(np.eye(4), (len(positions), 1, 1))
    c2w[:, :3] = np.stack([right, np.cross(forward, right), forward, positions], axis=-1)
    return c2w


# Each name's function, and the options that it takes beside the number of frames.
PATHS = {
    "interpolate": (interpolate, ("closed",)),
    "orbit": (orbit, ("degrees", "distance")),
    "spiral": (spiral, ("turns", "radius", "distance")),
    "dolly": (dolly, ("travel",)),
}
FRAMES, MOST_FRAMES = 120, 100_000  # by default, and at most: names of files have five digits


def make_path(
    kind: str,
    cameras: Sequence[PosedCamera],
    frames: int | None = None,
    options: Mapping[str, Any] | None = None,
) -> list[PosedCamera]:
    """The cameras to render on a path of a `kind`: a name of `PATHS`, or a file of cameras.

    It is made from `cameras`, those of the inputs, and has `frames` of them (120); a file has as
    many as it has. `options` are of the function of that name. UserError for one that this path
    does not have.
    """
    function, allowed = PATHS.get(kind, (None, ()))
    file = os.path.expanduser(kind)
    if function is None and not os.path.isfile(file):
        raise UserError(f"--path={kind}: no such file, nor one of {', '.join(PATHS)}")
    given = dict(options or {}) | ({} if function or frames is None else {"frames": frames})
    if wrong := sorted(given.keys() - set(allowed)):
        raise UserError(f"--{wrong[0]} does not go with --path={kind}")
    if function is None:
        return camera_json.read_camera_path(file)
    return function(cameras, FRAMES if frames is None else frames, **given)
