"""Cameras as JSON: `{"frames": [{"w", "h", "fxfycxcy", "c2w" or "w2c"}, ...]}`.

Axes are OpenCV's, intrinsics in pixels of a picture of w × h. What is read is not trusted.
"""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lvsm_jax.common.errors import UserError
from lvsm_jax.common.files import read_json, write_text
from lvsm_jax.scenes.photograph import PosedCamera


def read_camera_path(file: str | os.PathLike) -> list[PosedCamera]:
    """The cameras of a file, with other fields or not; UserError names the frame and the field."""
    content = read_json(file)
    if "camera_path" in content:
        raise UserError(
            f"{file}: a camera path of nerfstudio's viewer, whose world is moved and "
            "scaled from that of the photographs; write its cameras as "
            '{"frames": [{"w", "h", "fxfycxcy", "c2w"}]} in the photographs\' world'
        )
    frames = frames_of(content, file)
    return [camera_of(frame, f"{file}: frames[{i}]") for i, frame in enumerate(frames)]


def write_camera_path(file: str | os.PathLike, cameras: Sequence[PosedCamera]) -> None:
    """Writes what `read_camera_path` reads, the same numbers to the last bit."""
    write_text(file, json.dumps(as_json(cameras), indent=1) + "\n")


def as_json(cameras: Sequence[PosedCamera]) -> dict[str, Any]:
    """What `write_camera_path` writes."""
    frames = [
        {"w": c.width, "h": c.height, "fxfycxcy": c.fxfycxcy.tolist(), "c2w": c.c2w.tolist()}
        for c in cameras
    ]
    return {"convention": "OpenCV axes: x right, y down, z forward", "frames": frames}


def frames_of(content: Mapping[str, Any], file: str | os.PathLike) -> list[dict[str, Any]]:
    """The list of objects `frames` of a file's content, not empty; UserError otherwise."""
    frames = content.get("frames")
    if not isinstance(frames, list) or not frames:
        raise UserError(f"{file}: 'frames' must be a list of one object a camera")
    for i, frame in enumerate(frames):
        if not isinstance(frame, dict):
            raise UserError(f"{file}: frames[{i}] is a {type(frame).__name__}, expected an object")
    return frames


def camera_of(frame: Mapping[str, Any], where: str) -> PosedCamera:
    """The camera of `w`, `h`, `fxfycxcy` and `c2w` or `w2c`; UserError names `where` and field."""
    given = [field for field in ("c2w", "w2c") if field in frame]
    if len(given) != 1:
        raise UserError(f"{where}: {' and '.join(given) or 'no'} pose, expected 'c2w' or 'w2c'")
    make = PosedCamera if given == ["c2w"] else PosedCamera.from_w2c
    size = [whole_number(frame, field, where) for field in ("w", "h")]
    intrinsics = numbers(frame, "fxfycxcy", (4,), where)
    try:
        return make(numbers(frame, given[0], (4, 4), where), intrinsics, *size)
    except (ValueError, np.linalg.LinAlgError) as error:
        raise UserError(f"{where}: {error}") from None


def numbers(
    values: Mapping[str, Any], field: str, shape: tuple[int, ...], where: str
) -> np.ndarray:
    """A field of nested lists of finite numbers; `[4, 4]` may also be `[3, 4]`."""
    value = values.get(field)
    shapes = [shape, (3, 4)] if shape == (4, 4) else [shape]
    if any(_has_shape(value, allowed) for allowed in shapes):
        return np.array(value, np.float64)
    kinds = " or ".join(str(list(allowed)) for allowed in shapes)
    what = f"finite numbers of shape {kinds}" if shape else "a finite number"
    found = "is missing" if field not in values else f"is {_shortened(value)}"
    raise UserError(f"{where}: {field!r} {found}, expected {what}")


def number(values: Mapping[str, Any], field: str, where: str) -> float:
    """A field that is a finite number."""
    return float(numbers(values, field, (), where))


def whole_number(values: Mapping[str, Any], field: str, where: str) -> int:
    """A positive whole number, as 640 or 640.0."""
    value = number(values, field, where)
    if not 1 <= value < 2**31 or value != int(value):
        raise UserError(f"{where}: {field!r} is {value:g}, expected a positive whole number")
    return int(value)


def _has_shape(value: Any, shape: tuple[int, ...]) -> bool:
    """Whether it is nested lists of numbers that are finite as floats."""
    if shape:
        fits = isinstance(value, list) and len(value) == shape[0]
        return fits and all(_has_shape(part, shape[1:]) for part in value)
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def _shortened(value: Any) -> str:
    if isinstance(value, list | dict):
        return f"a {type(value).__name__} of {len(value)}"
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
