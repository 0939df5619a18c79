"""`cameras.json` of Gaussian splatting programs (Inria): a list of one object a camera.

`position` and the columns of `rotation` are the camera's centre and OpenCV axes in the world. The
principal point is not written: it is the middle. `img_name` lacks the suffix, and the images lie
elsewhere, with the data that the model was trained on.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lvsm_jax.scenes.camera_json import number, numbers, whole_number
from lvsm_jax.scenes.photograph import PosedCamera
from lvsm_jax.scenes.readers import scene
from lvsm_jax.scenes.readers.scene import PosedImage


def is_inria(frame: Mapping[str, Any]) -> bool:
    """Whether a frame is of such a file."""
    return "img_name" in frame and "rotation" in frame


def posed_by_inria(
    frames: Sequence[Mapping[str, Any]], root: pathlib.Path, file: pathlib.Path
) -> list[PosedImage]:
    """The images of its cameras; SceneError names the camera and the field."""
    posed = []
    for i, frame in enumerate(frames):
        where = f"{file}: [{i}]"
        image = scene.find_image(root, frame.get("img_name"), f"{where}: 'img_name'")
        width, height = (whole_number(frame, field, where) for field in ("width", "height"))
        fx, fy = (number(frame, field, where) for field in ("fx", "fy"))
        c2w = np.eye(4)
        c2w[:3, :3] = numbers(frame, "rotation", (3, 3), where)
        c2w[:3, 3] = numbers(frame, "position", (3,), where)
        with scene.naming(where):
            camera = PosedCamera(c2w, [fx, fy, width / 2, height / 2], width, height)
        posed.append(scene.posed_image(frame["img_name"], image, camera, where))
    return posed
