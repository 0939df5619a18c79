"""Cameras and points from above, in units of an SVG's view box. NumPy only."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float64

from lvsm_jax.scenes.photograph import PosedCamera

SIZE = 640  # of the view box, square
_MARGIN = 40
_MOST_POINTS = 3000
_WEDGE = 0.06  # length of a camera's wedge, in shares of the plan


def draw_plan(
    cameras: Mapping[str, PosedCamera], points: Float64[np.ndarray, "n 3"]
) -> dict[str, Any]:
    """What the template draws: points, and of each camera its name, place and wedge of view.

    Up is the mean of the cameras' up. The plan shows all cameras, and points as far as they fit.
    """
    c2w = np.stack([camera.c2w for camera in cameras.values()])
    right, ahead = _ground(c2w)
    axes = np.stack([right, ahead])
    centres = c2w[:, :3, 3] @ axes.T
    flat = points[np.isfinite(points).all(-1)] @ axes.T
    low, high = _bounds(centres, flat)
    scale = (SIZE - 2 * _MARGIN) / max((high - low).max(), 1e-12)

    def to_plan(places: np.ndarray) -> np.ndarray:
        shown = (places - (low + high) / 2) * scale
        return SIZE / 2 + shown * [1, -1]

    dots = to_plan(flat)
    dots = dots[((dots > 0) & (dots < SIZE)).all(-1)]
    step = -(-len(dots) // _MOST_POINTS) or 1
    count = max(len(cameras) - 1, 1)
    drawn = []
    for i, ((name, camera), centre) in enumerate(zip(cameras.items(), centres, strict=True)):
        half = camera.width / 2 / camera.fxfycxcy[0]
        sides = np.array([[-half, 0, 1], [half, 0, 1]]) @ camera.c2w[:3, :3].T @ axes.T
        length = np.linalg.norm(sides, axis=-1, keepdims=True).max()
        corners = centre + sides / max(length, 1e-12) * _WEDGE * SIZE / scale
        places = np.concatenate([to_plan(centre[None]), to_plan(corners)]).round(1)
        drawn.append({"name": name, "place": places[0], "wedge": places, "along": i / count})
    return {"size": SIZE, "cameras": drawn, "points": dots[::step].round(1).tolist()}


def _ground(c2w: Float64[np.ndarray, "n 4 4"]) -> tuple[np.ndarray, np.ndarray]:
    """Two directions of the ground: to the right and ahead of the first camera."""
    up = -c2w[:, :3, 1].mean(0)
    if np.linalg.norm(up) < 1e-3:
        up = -c2w[0, :3, 1]
    up = up / np.linalg.norm(up)
    right = c2w[0, :3, 0] - up * (up @ c2w[0, :3, 0])
    if np.linalg.norm(right) < 1e-3:  # it looks straight down on its side
        right = np.cross(c2w[0, :3, 1], up)
    right = right / np.linalg.norm(right)
    return right, np.cross(up, right)


def _bounds(centres: np.ndarray, flat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All cameras, and the middle nine tenths of the points, unless these are far beyond."""
    low, high = centres.min(0), centres.max(0)
    if len(flat):
        inner, outer = np.percentile(flat, [5, 95], axis=0)
        reach = 2.5 * max((high - low).max(), np.linalg.norm(np.median(flat, 0) - centres.mean(0)))
        middle = (low + high) / 2
        low = np.minimum(low, np.maximum(inner, middle - reach))
        high = np.maximum(high, np.minimum(outer, middle + reach))
    return low, high
