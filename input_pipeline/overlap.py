"""What photographs have in common, by their cameras alone, and samples drawn by it.

For clips without an order, where neighbours in the list may look elsewhere. Pure functions of
numbers and a generator. No camera says how far away the scene is: points are taken along the rays
of a view at depths over three octaves, from the distance on within which a quarter of the other
cameras stand: around an object that reaches it, and along a path a room's walls.
"""

import numpy as np
from jaxtyping import Float64, Int64
from numpy.random import Generator

from input_pipeline.camera_table import CameraTable
from input_pipeline.sampling import ViewSample
from lvsm_jax.common.config import DataConfig
from lvsm_jax.common.errors import UserError

_GRID = 4  # points along each side of a picture
_DEPTHS = (1.0, 2.0, 4.0, 8.0)  # of the points, in distances of near cameras:
_NEAR = 0.25  # share of the others that are as near

Shares = Float64[np.ndarray, " n"]


def overlaps(cameras: CameraTable, view: int) -> Shares:
    """How much each view of a clip has in common with one of them, from 0 to 1.

    A point in the view's frustum counts where another view has it in its picture, by the cosine of
    the angle between the two rays, so that front and back of an object are far apart. The same the
    other way round; the smaller of the two means is the overlap. A view's own is 1.
    """
    w2c = cameras.w2c.astype(np.float64)
    rotation, translation = w2c[:, :, :3], w2c[:, :, 3]
    centres = positions(cameras)
    others = np.delete(_distances(centres, view), view)
    near = np.quantile(others, _NEAR) if len(others) else 0.0
    depths = np.array(_DEPTHS) * (near or 1.0)
    fx, fy, cx, cy = cameras.normalized_fxfycxcy.astype(np.float64).T[:, :, None]
    u, v = (x.ravel() for x in np.meshgrid(*2 * [(np.arange(_GRID) + 0.5) / _GRID]))
    rays = np.stack([(u - cx) / fx, (v - cy) / fy, np.broadcast_to(1.0, (len(w2c), u.size))], -1)
    frusta = (rays[:, None] * depths[:, None, None]).reshape(len(w2c), -1, 3)
    points = frusta @ rotation + centres[:, None]  # in the world

    def share(points: np.ndarray, source: np.ndarray, seen_by: np.ndarray | slice) -> Shares:
        turn, centre = rotation[seen_by], centres[seen_by][:, None]
        x, y, z = np.moveaxis(points @ turn.swapaxes(1, 2) + translation[seen_by][:, None], -1, 0)
        front = z > 0
        depth = np.where(front, z, 1.0)
        left, top = fx[seen_by] * x / depth + cx[seen_by], fy[seen_by] * y / depth + cy[seen_by]
        inside = front & (left >= 0) & (left <= 1) & (top >= 0) & (top <= 1)
        one, other = points - source, points - centre
        lengths = np.linalg.norm(one, axis=-1) * np.linalg.norm(other, axis=-1)
        cosine = (one * other).sum(-1) / np.maximum(lengths, np.finfo(float).tiny)
        return (inside * np.maximum(cosine, 0)).mean(-1)

    one = np.array([view])
    forth = share(points[one], centres[one][:, None], slice(None))
    back = share(points, centres[:, None], one)
    shared = np.minimum(forth, back)
    shared[view] = 1.0
    return shared


def positions(cameras: CameraTable) -> Float64[np.ndarray, "n 3"]:
    """Where the cameras are in the world."""
    w2c = cameras.w2c.astype(np.float64)
    return -np.einsum("nji,nj->ni", w2c[:, :, :3], w2c[:, :, 3])


def _distances(centres: Float64[np.ndarray, "n 3"], view: int) -> Shares:
    return np.linalg.norm(centres - centres[view], axis=-1)


def nearest_views(cameras: CameraTable, view: int) -> tuple[Int64[np.ndarray, " m"], Shares]:
    """The other views by how much they have in common with one, most first, and how much.

    Of equals, such as those with nothing in common, the nearest comes first.
    """
    shared = overlaps(cameras, view)
    order = np.lexsort((_distances(positions(cameras), view), -shared))
    order = order[order != view]
    return order, shared[order]


def sample_by_overlap(
    cameras: CameraTable, config: DataConfig, num_inputs: int, rng: Generator
) -> ViewSample:
    """Draws a training sample with `num_inputs` inputs from the photographs of a clip.

    A view is drawn, then the size of its neighbourhood: from the `num_views - 1` views that have
    most in common with it up to all that share at least `min_overlap`. The other views are drawn
    from these without replacement. In random order they are the inputs, the targets, which are
    never among them, and views that lend their cameras to the scene frame.
    """
    count = config.num_views
    if len(cameras) < count:
        raise UserError(f"a clip of {len(cameras)} photographs has no {count} views")
    view = int(rng.integers(len(cameras)))
    order, shared = nearest_views(cameras, view)
    most = max(count - 1, int((shared >= config.min_overlap).sum()))
    size = int(rng.integers(count - 1, most, endpoint=True))
    others = order[rng.choice(size, count - 1, replace=False)]
    views = rng.permutation(np.append(others, view))
    return ViewSample(views[:num_inputs], views[num_inputs:][: config.num_targets], views)
