"""Scenes of JSON files: `cameras.json`, and nerfstudio's `transforms.json`.

The first has OpenCV axes and intrinsics in pixels. The second has OpenGL axes and intrinsics in
pixels or by angles; what a frame of it does not say, the top of the file does.
"""

import math
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float64

from lvsm_jax.common.files import read_json
from lvsm_jax.scenes import camera_json
from lvsm_jax.scenes.camera_json import number, numbers, whole_number
from lvsm_jax.scenes.photograph import PosedCamera
from lvsm_jax.scenes.readers import scene
from lvsm_jax.scenes.readers.scene import PINHOLES, PosedImage, Scene, SceneError

_NAMES = ("cameras.json", "transforms.json", "transforms_train.json")
_DISTORTION = re.compile(r"[kps]\d+")


def read_scene_json(path: pathlib.Path, images: pathlib.Path | None) -> Scene | None:
    """Reads either file, by what its first frame holds."""
    files = [path, *(path / name for name in _NAMES)]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        return None
    content = read_json(file)
    frames, root = camera_json.frames_of(content, file), images or file.parent
    nerfstudio = "transform_matrix" in frames[0]
    posed = []
    for i, frame in enumerate(frames):
        where = f"{file}: frames[{i}]"
        if nerfstudio:
            posed.append(_posed_by_nerfstudio(frame, {**content, **frame}, root, where))
        else:
            camera = camera_json.camera_of(frame, where)
            image = scene.find_image(root, frame.get("file"), f"{where}: 'file'")
            scene.check_size(image, camera, where)
            posed.append(PosedImage(frame["file"], image, camera))
    # Images beside those that the file names should have a pose too.
    folders = {(root / image.name).parent for image in posed}
    others = (path for folder in folders if folder.is_dir() for path in folder.iterdir())
    return scene.make_scene(file, root, posed, others, by_name=nerfstudio)


def _posed_by_nerfstudio(
    frame: Mapping[str, Any], values: Mapping[str, Any], root: pathlib.Path, where: str
) -> PosedImage:
    image = scene.find_image(root, frame.get("file_path"), f"{where}: 'file_path'", [".png"])
    name = frame["file_path"].removeprefix("./")
    if "w" in values or "h" in values:
        size = whole_number(values, "w", where), whole_number(values, "h", where)
    elif image is None:  # no size that fields of view could refer to
        return PosedImage(name, None, None)
    else:
        size = scene.picture_size_of(image)
    c2w = numbers(frame, "transform_matrix", (4, 4), where)
    c2w[:3, 1:3] *= -1  # from OpenGL's axes: y up, z backwards
    _check_pinhole(values, where)
    fxfycxcy = _intrinsics(values, *size, where)
    with scene.naming(where):
        camera = PosedCamera(c2w, fxfycxcy, *size)
    scene.check_size(image, camera, where)
    return PosedImage(name, image, camera)


def _intrinsics(
    values: Mapping[str, Any], width: int, height: int, where: str
) -> Float64[np.ndarray, "4"]:
    def focal(field: str, angle: str, side: int) -> float | None:
        if field in values:
            return number(values, field, where)
        if angle not in values:
            return None
        radians = number(values, angle, where)
        if not 1e-6 < radians < math.pi:
            raise SceneError(f"{where}: {angle!r} is {radians:g}, expected radians from 0 to π")
        return side / 2 / math.tan(radians / 2)

    fx = focal("fl_x", "camera_angle_x", width)
    fy = focal("fl_y", "camera_angle_y", height)
    if fx is None:
        raise SceneError(f"{where}: neither 'fl_x' nor 'camera_angle_x', expected one of them")
    cx = number(values, "cx", where) if "cx" in values else width / 2
    cy = number(values, "cy", where) if "cy" in values else height / 2
    return np.array([fx, fx if fy is None else fy, cx, cy])


def _check_pinhole(values: Mapping[str, Any], where: str) -> None:
    model = values.get("camera_model", "PINHOLE")
    if model not in PINHOLES or values.get("is_fisheye"):
        model = "a fisheye" if values.get("is_fisheye") else repr(model)
        raise SceneError(f"{where}: 'camera_model' is {model}, expected one of {PINHOLES}")
    fields = filter(_DISTORTION.fullmatch, sorted(values))
    distortion = {field: number(values, field, where) for field in fields}
    if isinstance(parameters := values.get("distortion_params"), list):
        given = numbers(values, "distortion_params", (len(parameters),), where)
        distortion |= {f"distortion_params[{i}]": value for i, value in enumerate(given)}
    scene.refuse_distortion(distortion, where)
