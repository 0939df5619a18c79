"""`opencv_cameras.json`: a list of `w h fx fy cx cy w2c file_path`, OpenCV's axes, in pixels.

Long-LRM, LaCT and converters of DL3DV and of renders of objects write it. Pictures may be
transparent; of some renders the colours lie on white already.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lvsm_jax.scenes.camera_json import number, numbers, whole_number
from lvsm_jax.scenes.photograph import PosedCamera
from lvsm_jax.scenes.readers import scene
from lvsm_jax.scenes.readers.scene import PosedImage


def is_opencv_cameras(frame: Mapping[str, Any]) -> bool:
    """Whether a frame is of such a file."""
    return "w2c" in frame and "file_path" in frame


def posed_by_opencv_cameras(
    frames: Sequence[Mapping[str, Any]], root: pathlib.Path, file: pathlib.Path
) -> list[PosedImage]:
    """The images of its frames; SceneError names the frame and the field."""
    posed = []
    for i, frame in enumerate(frames):
        where = f"{file}: frames[{i}]"
        image = scene.find_image(root, frame.get("file_path"), f"{where}: 'file_path'")
        size = [whole_number(frame, field, where) for field in ("w", "h")]
        fxfycxcy = np.array([number(frame, field, where) for field in ("fx", "fy", "cx", "cy")])
        w2c = numbers(frame, "w2c", (4, 4), where)
        with scene.naming(where):
            camera = PosedCamera.from_w2c(w2c, fxfycxcy, *size)
        posed.append(scene.posed_image(frame["file_path"], image, camera, where))
    return posed
