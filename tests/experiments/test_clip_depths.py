"""Distances of matched points in the unit of the scene frame of two views."""

import numpy as np

from experiments.clip_depths import pair_distances
from lvsm_jax.poses.epipolar import check_pair
from lvsm_jax.poses.pairs import Pair
from lvsm_jax.scenes.photograph import PosedCamera
from lvsm_jax.scenes.scene_frame import POSITION_SCALE


def test_points_are_as_far_as_they_are():
    """Two cameras side by side, 0.5 from their middle: a unit of the scene is 0.5 · 1.35."""
    c2w = np.stack([np.eye(4), np.eye(4)])
    c2w[:, 0, 3] = -0.5, 0.5
    one, other = (PosedCamera(pose, np.array([50.0, 50, 40, 30]), 80, 60) for pose in c2w)
    points = np.array([[0.5, 0, 3], [-0.5, 1, 4], [0.2, -0.5, 2], [0.1, 0.2, 5]])
    places = []
    for camera in (one, other):
        seen = points - camera.c2w[:3, 3]
        places.append(seen[:, :2] / seen[:, 2:] * 50 + [40, 30])
    places[1][2, 1] += 9  # a wrong match, off its epipolar line
    places[1][3, 0] = places[0][3, 0] + 3  # and one whose rays meet behind the cameras
    found = pair_distances(check_pair(Pair(("a", "b"), tuple(places)), one, other), one, other)
    away = np.linalg.norm(points[[0, 1]] - c2w[:, None, :3, 3], axis=-1) / (0.5 * POSITION_SCALE)
    np.testing.assert_allclose(found.reshape(2, 3)[:, :2], away, rtol=1e-6)
    assert np.isinf(found.reshape(2, 3)[:, 2]).all()
