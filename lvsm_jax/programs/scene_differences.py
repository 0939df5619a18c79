"""Where a scene is far from what an export was trained on."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lvsm_jax.scenes.photograph import PosedCamera, ResizeCrop
from lvsm_jax.weights.shipped import input_counts, training_data

_LEAST_SHOWN = 0.6  # share of a photograph, below which its crop is worth a word


def differences(
    description: Mapping[str, Any],
    cameras: Sequence[PosedCamera],
    size: tuple[int, int],
) -> list[str]:
    """How inputs by these cameras, shown at height × width, differ from what it was trained on.

    A sentence each; none for an export that does not say.
    """
    data, found = training_data(description), []
    if not data:
        return []
    height, width = size
    trained = data.get("image_height")
    square = data.get("square_crop", True)
    if trained and (height != trained or (square and width != height)):
        shape = f"{trained}×{trained}" if square else f"height {trained}"
        found.append(f"pictures of {width}×{height} pixels, and the model was trained at {shape}")
    counts = input_counts(data)
    if counts and len(cameras) not in counts:
        *first, last = map(str, counts)
        known = f"{', '.join(first)} or {last}" if first else last
        found.append(f"{len(cameras)} inputs, and the model was trained with {known}")
    crops = [ResizeCrop.cover((camera.width, camera.height), *size) for camera in cameras]
    shown = min(height * width / (crop.resized[0] * crop.resized[1]) for crop in crops)
    if shown < _LEAST_SHOWN:
        found.append(f"of some photographs only the middle {shown:.0%} are seen: try --size")
    return found


def lacks_scale(cameras: Sequence[PosedCamera], scale: float | None) -> list[str]:
    """A sentence where these inputs tell no length, as one alone, and nobody gave a scale."""
    positions = np.array([camera.c2w[:3, 3] for camera in cameras])
    extent = np.ptp(positions, axis=0).max()
    if scale is not None or extent > 1e-9 * max(1.0, np.abs(positions).max()):
        return []
    what = "all inputs stand in one place, which tells" if len(cameras) > 1 else "one input tells"
    return [f"{what} no length: --scale=X says how many units of the model a unit of the poses is"]
