"""Views around an object, by where they stand: pure functions of cameras.

The object is at the origin of the dataset's world and the z axis is up, as in renders of objects.
Azimuth 0 is on +x, 90 on +y; elevation 0 is level with the object. Angles are degrees.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64, Int64
from numpy.random import Generator

from input_pipeline.camera_table import CameraTable
from input_pipeline.overlap import positions
from input_pipeline.sampling import IndexEntry, ViewSample
from lvsm_jax.common.config import DataConfig
from lvsm_jax.common.errors import UserError

# Four structured inputs, as others' code has them; the published protocol says no azimuths.
GSO_ELEVATION, GSO_AZIMUTHS = 20.0, (45.0, 135.0, 225.0, 315.0)
GSO_TARGETS = 10
TOLERANCE = 5.0  # degrees by which a view may stand beside the place that a rule names


def towards(elevation: float, azimuth: float) -> Float64[np.ndarray, "3"]:
    """The unit vector from the object to a camera there."""
    level, turn = np.deg2rad(elevation), np.deg2rad(azimuth)
    return np.array([np.cos(level) * np.cos(turn), np.cos(level) * np.sin(turn), np.sin(level)])


def nearest_views(
    cameras: CameraTable, elevation: float, azimuths: Sequence[float]
) -> tuple[Int64[np.ndarray, " v"], Float64[np.ndarray, " v"]]:
    """The view nearest to each place, none twice, and how many degrees beside it it stands."""
    centres = positions(cameras)
    lengths = np.linalg.norm(centres, axis=1, keepdims=True)
    centres = centres / np.maximum(lengths, np.finfo(float).tiny)
    chosen, beside = [], []
    for azimuth in azimuths:
        cosines = centres @ towards(elevation, azimuth)
        cosines[chosen] = -np.inf
        chosen.append(int(cosines.argmax()))
        beside.append(float(np.rad2deg(np.arccos(np.clip(cosines.max(), -1, 1)))))
    return np.array(chosen, np.int64), np.array(beside)


def gso_views(cameras: CameraTable, key: str, num_targets: int, seed: int) -> IndexEntry:
    """Inputs at elevation 20° and azimuths 45, 135, 225 and 315°; targets drawn from the others.

    The draw depends on the seed and the clip's key alone. UserError where a place has no view
    within `TOLERANCE`, or too few views are left.
    """
    others = len(cameras) - len(GSO_AZIMUTHS)
    if others < num_targets:
        raise UserError(
            f"{len(cameras)} views, too few for {len(GSO_AZIMUTHS)} inputs and {num_targets} "
            "targets"
        )
    inputs, beside = nearest_views(cameras, GSO_ELEVATION, GSO_AZIMUTHS)
    if beside.max() > TOLERANCE:
        azimuth = GSO_AZIMUTHS[int(beside.argmax())]
        raise UserError(
            f"no view within {TOLERANCE:g}° of elevation {GSO_ELEVATION:g}° and azimuth "
            f"{azimuth:g}°: the nearest is {beside.max():.1f}° away"
        )
    digest = hashlib.sha256(key.encode()).digest()
    rng = np.random.default_rng([seed, int.from_bytes(digest[:8], "big")])
    left = np.setdiff1d(np.arange(len(cameras)), inputs)
    targets = np.sort(rng.choice(left, num_targets, replace=False))
    return IndexEntry(tuple(inputs.tolist()), tuple(targets.tolist()))


def sample_structured(
    cameras: CameraTable, config: DataConfig, num_inputs: int, rng: Generator
) -> ViewSample:
    """Draws a training sample whose inputs stand around the object at about one height.

    A view is drawn; the other inputs are those nearest to its elevation at evenly spaced azimuths.
    Targets are any of the other views, and so are those that lend their cameras to the scene frame.
    """
    view = int(rng.integers(len(cameras)))
    x, y, z = positions(cameras)[view]
    elevation, azimuth = np.rad2deg([np.arctan2(z, np.hypot(x, y)), np.arctan2(y, x)])
    azimuths = azimuth + 360 / num_inputs * np.arange(num_inputs)
    inputs, _ = nearest_views(cameras, float(elevation), azimuths.tolist())
    left = np.setdiff1d(np.arange(len(cameras)), inputs)
    others = rng.choice(left, config.num_views - num_inputs, replace=False)
    return ViewSample(inputs, others[: config.num_targets], np.concatenate([inputs, others]))
