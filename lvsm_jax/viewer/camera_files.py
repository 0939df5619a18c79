"""Files of cameras that other programs write, in archives that visitors upload.

The readers of scenes find pictures by the names in such a file. Uploads must name no file of ours:
the names are replaced by ours before a reader sees the file, and frames without a picture left out.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from lvsm_jax.common.errors import UserError
from lvsm_jax.scenes.camera_json import frames_of
from lvsm_jax.scenes.readers.inria import is_inria
from lvsm_jax.scenes.readers.opencv_cameras import is_opencv_cameras
from lvsm_jax.scenes.readers.transforms import is_transforms

_FIELDS = ("file_path", "img_name")  # of a frame, that name its picture
_KINDS = (is_transforms, is_inria, is_opencv_cameras)
_OF_COLMAP = ("cameras.txt", "cameras.bin", "images.txt", "images.bin")


class CameraFile(NamedTuple):
    """A file of cameras of another program."""

    name: str
    content: dict[str, Any]  # with 'frames', one or more objects

    def named(self, names: Mapping[int, str]) -> bytes:
        """The file with frames of these numbers alone, whose pictures have these names.

        UserError for values nested too deeply.
        """
        frames = []
        for number, name in names.items():
            frame = self.content["frames"][number]
            frames.append({k: name if k in _FIELDS else v for k, v in frame.items()})
        try:
            return json.dumps(self.content | {"frames": frames}).encode()
        except RecursionError:
            raise UserError(f"{self.name} has values that are nested too deeply") from None

    def picture(self, number: int) -> str:
        """What a frame calls its picture; UserError where that is no text."""
        frame = self.content["frames"][number]
        name = next((frame[field] for field in _FIELDS if field in frame), None)
        if not isinstance(name, str) or not name:
            raise UserError(f"{self.name}: frames[{number}] names no picture")
        return name


def find_camera_file(members: Iterable[tuple[str, bytes]], most: int) -> CameraFile | None:
    """The one file of cameras of another program among those of an upload; None without.

    Files of more than `most` bytes are none. UserError for several, and for a model of COLMAP.
    """
    found = []
    for name, data in members:
        base = name.rpartition("/")[2].lower()
        if base in _OF_COLMAP:
            raise UserError(
                f"{name} is of a COLMAP model, which uploads cannot be: lvsm view FOLDER shows it, "
                "or drop the pictures alone"
            )
        if base.endswith(".json") and len(data) <= most and (content := _parse(data)):
            found.append(CameraFile(name, content))
    if len(found) > 1:
        names = ", ".join(file.name for file in found[:3])
        raise UserError(f"{len(found)} files of cameras ({names}): drop one, with its pictures")
    return found[0] if found else None


def _parse(data: bytes) -> dict[str, Any] | None:
    try:
        content = json.loads(data)
        content = {"frames": content} if isinstance(content, list) else content
        frames = frames_of(content, "") if isinstance(content, dict) else []
    except (ValueError, RecursionError):  # who reads `cameras.json` says what is wrong
        return None
    return content if frames and any(kind(frames[0]) for kind in _KINDS) else None
