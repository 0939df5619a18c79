"""How far cameras are from known ones, after the best similarity between their worlds."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from lvsm_jax.scenes.photograph import PosedCamera


class PoseErrors(NamedTuple):
    """Of each camera."""

    rotation: np.ndarray  # degrees
    position: np.ndarray  # shares of the largest distance between two cameras


def pose_errors(found: Mapping[str, PosedCamera], true: Mapping[str, PosedCamera]) -> PoseErrors:
    """Least squares: rotations by the sum of all, positions by a similarity (Umeyama, 1991)."""
    a = np.stack([camera.c2w for camera in found.values()])
    b = np.stack([true[name].c2w for name in found])
    turn = _nearest_rotation(np.einsum("nij,nkj->ik", b[:, :3, :3], a[:, :3, :3]))
    left = np.einsum("nji,jk,nkl->nil", b[:, :3, :3], turn, a[:, :3, :3])
    cosine = (np.trace(left, axis1=1, axis2=2) - 1) / 2
    rotation = np.degrees(np.arccos(np.clip(cosine, -1, 1)))
    x, y = (m[:, :3, 3] - m[:, :3, 3].mean(0) for m in (a, b))
    # With two cameras, and those in a line, positions say too little of the rotation.
    if len(x) < 4:
        aligned = x @ turn.T
    else:
        aligned = x @ _nearest_rotation(y.T @ x).T
    aligned *= (aligned * y).sum() / (aligned**2).sum()
    extent = np.linalg.norm(y[:, None] - y[None], axis=-1).max()
    return PoseErrors(rotation, np.linalg.norm(aligned - y, axis=-1) / extent)


def _nearest_rotation(matrix: np.ndarray) -> np.ndarray:
    u, _, vt = np.linalg.svd(matrix)
    return u @ np.diag([1, 1, np.sign(np.linalg.det(u @ vt))]) @ vt
