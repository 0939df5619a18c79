"""What an export was trained on, in a line, and where a scene is far from it."""

from collections.abc import Mapping, Sequence
from typing import Any

from lvsm_jax.scenes.photograph import PosedCamera, ResizeCrop
from lvsm_jax.weights.shipped import input_counts, training_data

_LEAST_SHOWN = 0.6  # share of a photograph, below which its crop is worth a word


def trained_on(description: Mapping[str, Any]) -> str:
    """Data, pictures, inputs and step, as far as an export's `describe` says them."""
    data = training_data(description)
    if not data:
        source = (description.get("source") or {}).get("file")
        origin = f"converted from {source}, which" if source else "an export that"
        return f"the model: {origin} does not say what it was trained on"
    step = description.get("step")
    share = data.get("worlds_share") or 0
    path = " and ".join([data.get("path") or "data without a name", *(data.get("mix") or ())])
    name = "worlds" if share == 1 else f"worlds and {path}" if share else path
    height = data.get("image_height", "?")
    size = f"{height}×{height}" if data.get("square_crop", True) else f"{height} high"
    counts = input_counts(data)
    known = [f"pictures of {size} pixels"]
    known += [f"{' or '.join(map(str, counts))} inputs"] if counts else []
    known += [f"{step} steps"] if step else []
    return f"the model was trained on {name}: {', '.join(known)}"


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
        known = " or ".join(map(str, counts))
        found.append(f"{len(cameras)} inputs, and the model was trained with {known}")
    crops = [ResizeCrop.cover((camera.width, camera.height), *size) for camera in cameras]
    shown = min(height * width / (crop.resized[0] * crop.resized[1]) for crop in crops)
    if shown < _LEAST_SHOWN:
        found.append(f"of some photographs only the middle {shown:.0%} are seen: try --size")
    return found
