"""Whether cameras fit matched points: epipolar lines, and how far they miss. NumPy only.

A point of one picture lies on a line of the other, whatever its depth. Where poses or intrinsics
are wrong, it does not; and where axes are, it is seen behind a camera.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float64

from lvsm_jax.poses.pairs import Pair, Places
from lvsm_jax.scenes.photograph import PosedCamera

FEWEST_MATCHES = 15  # of a pair that says something
# Medians over a pair, in shares of the picture's longer side: right up to the first.
RIGHT, WRONG = 0.002, 0.006
_AHEAD = 0.9  # of the matches must be ahead of both cameras
_SAME_PLACE = 1e-6  # distance of cameras over the largest there is


@dataclasses.dataclass(frozen=True)
class PairCheck:
    """How far the matches of a pair are from what its cameras say."""

    pair: Pair
    distances: Float64[np.ndarray, " n"]  # pixels from the epipolar line, the mean of both pictures
    points: Float64[np.ndarray, "n 3"]  # in the world, where the rays are nearest to each other
    ahead: Bool[np.ndarray, " n"]  # of both cameras
    longer_side: int  # of the pictures, in pixels

    @property
    def median(self) -> float:
        """Of the distances, in pixels."""
        return float(np.median(self.distances))

    @property
    def share(self) -> float:
        """The median over the longer side of the picture."""
        return self.median / self.longer_side


def check_pair(pair: Pair, one: PosedCamera, other: PosedCamera) -> PairCheck:
    """Distances of the pair's matches from epipolar lines, and where their rays meet."""
    lines = lines_of(pair.places[0], one, other), lines_of(pair.places[1], other, one)
    errors = _distance(pair.places[1], lines[0]), _distance(pair.places[0], lines[1])
    points, ahead = _meet(pair, one, other)
    side = max(one.width, one.height, other.width, other.height)
    return PairCheck(pair, np.mean(errors, axis=0), points, ahead, side)


def lines_of(places: Places, one: PosedCamera, other: PosedCamera) -> Float64[np.ndarray, "n 3"]:
    """Lines a x + b y + c = 0 in the picture of `other` on which points of `one` lie; a² + b² = 1.

    Of cameras at one place, all zero: then there are no lines.
    """
    motion = other.w2c @ one.c2w
    x, y, z = motion[:3, 3]
    essential = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]]) @ motion[:3, :3]
    lines = _rays(places, one) @ essential.T @ np.linalg.inv(_matrix(other))
    length = np.linalg.norm(lines[:, :2], axis=-1, keepdims=True)
    return lines / np.where(length > 0, length, np.inf)


def are_apart(one: PosedCamera, other: PosedCamera, extent: float) -> bool:
    """Whether cameras stand so far from each other that there are epipolar lines."""
    apart = np.linalg.norm(one.c2w[:3, 3] - other.c2w[:3, 3])
    return bool(apart > _SAME_PLACE * max(extent, 1e-30))


def verdict_on(checks: Sequence[PairCheck]) -> tuple[str, str]:
    """What the pairs say together: `right`, `doubtful`, `wrong` or `unknown`, and a sentence."""
    if not checks:
        return "unknown", (
            "no two photographs have matched points enough to say whether the cameras are right"
        )
    shares = np.array([check.share for check in checks])
    ahead = np.concatenate([check.ahead for check in checks]).mean()
    side = max(check.longer_side for check in checks)
    median = f"{np.median(shares) * side:.2f} pixels of {side}"
    told = f"in the median of {len(checks)} pairs, matched points lie {median} from their lines"
    bad = int((shares > WRONG).sum())
    if ahead < _AHEAD:
        return "wrong", (
            f"{1 - ahead:.0%} of matched points lie behind a camera: axes or the direction of the "
            f"poses (c2w, w2c) are wrong; {told}"
        )
    if np.median(shares) > WRONG:
        return "wrong", f"the cameras do not fit the photographs: {told}"
    if np.median(shares) > RIGHT or bad > len(checks) / 5:
        return "doubtful", (
            f"some cameras do not fit the photographs: {told}; of {bad} pairs more than "
            f"{WRONG * side:.1f}"
        )
    return "right", f"the cameras fit the photographs: {told}"


def _rays(places: Places, camera: PosedCamera) -> Float64[np.ndarray, "n 3"]:
    """Directions in the camera, of depth 1."""
    flat = (places - camera.fxfycxcy[2:]) / camera.fxfycxcy[:2]
    return np.concatenate([flat, np.ones((len(flat), 1))], axis=-1)


def _matrix(camera: PosedCamera) -> Float64[np.ndarray, "3 3"]:
    fx, fy, cx, cy = camera.fxfycxcy
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])


def _distance(places: Places, lines: Float64[np.ndarray, "n 3"]) -> Float64[np.ndarray, " n"]:
    return np.abs((lines[:, :2] * places).sum(-1) + lines[:, 2])


def _meet(
    pair: Pair, one: PosedCamera, other: PosedCamera
) -> tuple[Float64[np.ndarray, "n 3"], Bool[np.ndarray, " n"]]:
    """Where both rays are nearest to each other, and whether it is ahead of both cameras."""
    centres = one.c2w[:3, 3], other.c2w[:3, 3]
    a, b = (
        _rays(places, camera) @ camera.c2w[:3, :3].T
        for places, camera in zip(pair.places, (one, other), strict=True)
    )
    aa, ab, bb = (a * a).sum(-1), (a * b).sum(-1), (b * b).sum(-1)
    between = centres[1] - centres[0]
    determinant = aa * bb - ab * ab
    determinant = np.where(determinant > 1e-12 * aa * bb, determinant, np.nan)  # of parallel rays
    depth_a = ((a @ between) * bb - (b @ between) * ab) / determinant
    depth_b = ((a @ between) * ab - (b @ between) * aa) / determinant
    points = (centres[0] + depth_a[:, None] * a + centres[1] + depth_b[:, None] * b) / 2
    # Rays that are parallel meet at infinity, which is ahead.
    ahead = np.isnan(determinant) | ((depth_a > 0) & (depth_b > 0))
    return points, ahead
