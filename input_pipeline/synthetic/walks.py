"""Camera paths like those of real-estate videos: one slow, smooth walk at eye height.

Axes are OpenCV's, for the world as for cameras: x right, y down, z forward. The room is a box
around the origin, in metres; its floor is at `y = +half[1]`.
"""

import dataclasses

import numpy as np
from jaxtyping import Float, Float32

from lvsm_jax.common.errors import UserError

WALL_MARGIN = 0.45  # metres that a camera keeps away from every wall
FREE_VIEW = 2.0  # metres to the wall straight ahead, at least: nobody films a wall from up close
MAX_TRIES = 5000


@dataclasses.dataclass(frozen=True)
class CameraPath:
    """The cameras of one clip."""

    positions: Float[np.ndarray, "n 3"]  # camera centres, in metres
    yaw: Float[np.ndarray, " n"]  # headings in radians, 0 along z, positive to the right
    pitch: Float[np.ndarray, " n"]  # radians, positive downwards

    def w2c(self) -> Float32[np.ndarray, "n 3 4"]:
        """OpenCV world-to-camera matrices `[R | t]`, as they are stored."""
        forward, right = headings(self.yaw, self.pitch), headings(self.yaw + np.pi / 2)
        rotation = np.stack([right, np.cross(forward, right), forward], axis=1)  # rows x, y, z
        translation = -np.einsum("nij,nj->ni", rotation, self.positions)
        return np.concatenate([rotation, translation[..., None]], axis=2).astype(np.float32)


def headings(
    yaw: Float[np.ndarray, " n"], pitch: Float[np.ndarray, " n"] | float = 0.0
) -> Float[np.ndarray, "n 3"]:
    """Unit vectors that look along `yaw` and `pitch`."""
    level = np.cos(pitch)
    return np.stack([np.sin(yaw) * level, np.sin(pitch) + 0 * yaw, np.cos(yaw) * level], axis=1)


def sample_path(
    rng: np.random.Generator,
    half: Float32[np.ndarray, "3"],
    num_frames: int,
    motion: tuple[float, float],
    turn: float,
) -> CameraPath:
    """Draws walks until one stays inside the room and keeps some room ahead of it.

    `half` is half the width, height and depth of the room and `motion` the least and greatest
    length of the walk, in metres; `turn` the greatest change of heading, in radians. UserError
    where no such walk is found, as the motion is too long for the room.
    """
    for _ in range(MAX_TRIES):
        path = _draw_path(rng, half, num_frames, motion, turn)
        inside = np.abs(path.positions[:, [0, 2]]) < half[[0, 2]] - WALL_MARGIN
        if inside.all() and _distance_ahead(path, half).min() > FREE_VIEW:
            return path
    raise UserError(
        f"found no camera path of {motion[0]} to {motion[1]} m in a room of "
        f"{2 * half[0]:.1f} x {2 * half[2]:.1f} m; ask for less motion"
    )


def _draw_path(rng, half, num_frames, motion, turn) -> CameraPath:
    """A gently bent walk, ahead or sideways, while the camera turns; it may leave the room."""
    u = rng.uniform
    ahead = rng.random() < 0.5
    yaw_start, turned = u(-np.pi, np.pi), u(-turn, turn)
    bearing = yaw_start + turned / 2  # walks are aimed relative to the mean heading
    bearing += u(-0.5, 0.5) if ahead else rng.choice([-1, 1]) * u(1.0, 2.0)
    length, bend = u(*motion), u(-0.15, 0.15)

    time = np.linspace(0.0, 1.0, num_frames)
    ease = u(0.0, 0.5)  # how softly the walk starts and stops
    step = time - ease * np.sin(2 * np.pi * time) / (2 * np.pi)
    side = 4 * bend * step * (1 - step)
    along, across = headings(np.array([bearing, bearing + np.pi / 2]))
    start = u(-1, 1, 3) * half
    start[1] = half[1] - u(1.2, 1.65)  # eye height above the floor
    positions = start + length * (step[:, None] * along + side[:, None] * across)
    positions[:, 1] += 0.03 * np.sin(2 * np.pi * (u(0.3, 0.8) * time + u(0, 1)))

    sway = u(0, 0.03) * np.sin(2 * np.pi * (time + u(0, 1)))
    pitch = u(-0.02, 0.2) + u(-0.06, 0.06) * time
    return CameraPath(positions, yaw_start + turned * step + sway, pitch)


def _distance_ahead(path: CameraPath, half) -> np.ndarray:
    """Metres from each camera to the wall in its level viewing direction."""
    level = headings(path.yaw)[:, [0, 2]]
    room = half[[0, 2]] * np.sign(level) - path.positions[:, [0, 2]]
    return (room / np.where(level == 0, 1e-9, level)).min(axis=1)
