"""`transforms.json` of nerfstudio, Blender, instant-ngp, Polycam's and Record3D's converters.

Axes are OpenGL's, intrinsics in pixels or by angles; what a frame does not say, the top of the file
does. `applied_transform` is a rigid change of the world that needs no undoing. A name without a
suffix is Blender's, whose pictures are transparent.
"""

import math
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64

from lvsm_jax.scenes.camera_json import number, numbers, whole_number
from lvsm_jax.scenes.lens import RATIONAL, Distortion
from lvsm_jax.scenes.photograph import PosedCamera
from lvsm_jax.scenes.readers import scene
from lvsm_jax.scenes.readers.scene import LENSES, PosedImage, SceneError

_COEFFICIENT = re.compile(r"[bkps]\d+|skew|ftheta_p\d")
_OTHER_CAMERAS = {  # flags of instant-ngp and others
    "is_fisheye": "a fisheye",
    "fisheye": "a fisheye",
    "equirectangular": "equirectangular",
    "latlong": "equirectangular",
    "orthographic": "orthographic",
}
_LIST = ("k1", "k2", "k3", "k4", "p1", "p2")  # order of nerfstudio's `distortion_params`


def is_transforms(frame: Mapping[str, Any]) -> bool:
    """Whether a frame is of such a file."""
    return "transform_matrix" in frame


def posed_by_transforms(
    content: Mapping[str, Any],
    frames: Sequence[Mapping[str, Any]],
    root: pathlib.Path,
    file: pathlib.Path,
) -> list[PosedImage]:
    """The images of its frames; SceneError names the frame and the field."""
    posed = []
    for i, frame in enumerate(frames):
        where = f"{file}: frames[{i}]"
        posed.append(_posed(frame, {**content, **frame}, root, where))
    return posed


def _posed(
    frame: Mapping[str, Any], values: Mapping[str, Any], root: pathlib.Path, where: str
) -> PosedImage:
    image = scene.find_image(root, frame.get("file_path"), f"{where}: 'file_path'")
    name = frame["file_path"].removeprefix("./")
    if "w" in values or "h" in values:
        size = whole_number(values, "w", where), whole_number(values, "h", where)
    elif image is None:  # no size that fields of view could refer to
        return PosedImage(name, None, None)
    else:
        size = scene.picture_size_of(image)
    c2w = numbers(frame, "transform_matrix", (4, 4), where)
    c2w[:3, 1:3] *= -1  # from OpenGL's axes: y up, z backwards
    distortion = _distortion(values, where)
    fxfycxcy = _intrinsics(values, *size, where)
    with scene.naming(where):
        camera = PosedCamera(c2w, fxfycxcy, *size)
    return scene.posed_image(name, image, camera, where, distortion)


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


def _distortion(values: Mapping[str, Any], where: str) -> Distortion:
    model = values.get("camera_model", "PINHOLE")
    model = "PINHOLE" if model == "PERSPECTIVE" else model  # nerfstudio's word for it
    kind = next((kind for field, kind in _OTHER_CAMERAS.items() if values.get(field)), None)
    if kind or model not in LENSES:
        raise SceneError(
            f"{where}: 'camera_model' is {kind or repr(model)}, expected one of {LENSES}"
        )
    fields = filter(_COEFFICIENT.fullmatch, sorted(values))
    parameters = {field: number(values, field, where) for field in fields}
    if isinstance(values.get("distortion_params"), list):
        parameters |= _listed(values, where)
    model = RATIONAL if parameters.get("k5") or parameters.get("k6") else model
    with scene.naming(where):
        return Distortion.of(model, parameters)


def _listed(values: Mapping[str, Any], where: str) -> dict[str, float]:
    """The coefficients of nerfstudio's `distortion_params`."""
    given = numbers(values, "distortion_params", (len(values["distortion_params"]),), where)
    if len(given) != len(_LIST) and given.any():
        expected = f"{len(_LIST)}: {', '.join(_LIST)}"
        raise SceneError(f"{where}: 'distortion_params' has {len(given)} numbers, not {expected}")
    return dict(zip(_LIST, given.tolist(), strict=False))
