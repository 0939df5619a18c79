"""Reads posed photographs of one scene, in the formats that people have them in.

A reader is a function. Given a file or folder, and the folder of images if that is another, it
returns the scene, or None where there is nothing of its format. To add a format, write such a
function and add it to `READERS`.
"""

import os
import pathlib

from lvsm_jax.common.colours import Colour
from lvsm_jax.scenes.readers.colmap import read_colmap
from lvsm_jax.scenes.readers.llff import read_llff
from lvsm_jax.scenes.readers.polycam import read_polycam
from lvsm_jax.scenes.readers.record3d import read_record3d
from lvsm_jax.scenes.readers.scene import (
    NoCamerasError,
    Scene,
    SceneError,
    ScenePhotograph,
    pictures_in,
    some_of,
)
from lvsm_jax.scenes.readers.scene_json import read_scene_json
from lvsm_jax.scenes.video import VIDEO_SUFFIXES

__all__ = ["READERS", "NoCamerasError", "Scene", "SceneError", "ScenePhotograph", "read_scene"]

# The first that finds one reads.
READERS = (read_scene_json, read_llff, read_polycam, read_record3d, read_colmap)
_FIND = "lvsm poses {photographs} finds them, and so does colmap automatic_reconstructor"


def read_scene(
    path: str | os.PathLike,
    *,
    images: str | os.PathLike | None = None,
    background: Colour | None = None,
) -> Scene:
    """Reads cameras and finds their images, without decoding these.

    `path` is a folder with, or file of,

    - `cameras.json`: `{"frames": [{"file", "w", "h", "fxfycxcy", "w2c" or "c2w"}]}`, OpenCV axes,
      intrinsics in pixels;
    - `transforms.json` of nerfstudio and others, also `transforms_train.json` of Blender, and
      `nerfstudio/transforms.json` of DL3DV;
    - `opencv_cameras.json`; `cameras.json` of Gaussian splatting; `poses_bounds.npy` of LLFF;
    - the raw data of Polycam (`keyframes`) or Record3D (`EXR_RGBD`);
    - a COLMAP model, text or binary, also in `sparse/0` or `sparse` (needs pycolmap).

    `images` is the folder that the names of images are relative to and must not leave; by default
    that of the file, or the folder `images` in that of a COLMAP model or up to three above.
    Transparent pixels are put on the `background`. NoCamerasError for photographs, or a video,
    whose cameras `lvsm_jax.poses` could find; SceneError names the file, the place in it, and what
    was expected; OSError is for a file that cannot be read.
    """
    path = pathlib.Path(path).expanduser()
    if images is not None and not (images := pathlib.Path(images).expanduser()).is_dir():
        raise SceneError(f"there is no folder of images {images}")
    if not path.exists():
        raise SceneError(f"no scene {path}: no such file or folder")
    try:
        for read in READERS:
            if (scene := read(path, images)) is not None:
                return scene.on(background)
    except SceneError:
        raise
    except ValueError as error:
        raise SceneError(str(error)) from error
    raise _nothing_in(path)


def _nothing_in(path: pathlib.Path) -> SceneError:
    """What to say of a place without a scene."""
    find = _FIND.format(photographs=path)
    if path.is_file():
        if path.suffix.lower() in VIDEO_SUFFIXES:
            return NoCamerasError(f"{path} is a video without cameras: {find} of its frames", path)
        message = f"{path} is no scene: expected a file of cameras, or a folder with one"
        return SceneError(message)
    if (path / "dataset_info.json").is_file():
        splits = sorted(file.stem.removeprefix("scenes-") for file in path.glob("scenes-*.npz"))
        message = f"{path} is a dataset: name a clip as {path}/SPLIT:KEY, with SPLIT of {splits}"
        return SceneError(message)
    for folder in (path, path / "images"):
        if count := len(pictures_in(folder)) if folder.is_dir() else 0:
            message = f"{folder} has {count} photographs, but no cameras: {find}"
            return NoCamerasError(message, path)
    files = [*sorted(path.glob("*/cameras.json")), *sorted(path.glob("*/transforms.json"))]
    inner = dict.fromkeys(file.parent.name for file in files)
    found = f"; it holds the scenes {some_of(inner)}" if inner else ""
    return SceneError(
        f"no scene in {path}: expected cameras.json, transforms.json, opencv_cameras.json, "
        "poses_bounds.npy, Polycam's keyframes, Record3D's EXR_RGBD or a COLMAP model "
        f"(cameras, images and points3D, .bin or .txt; also in sparse/0){found}"
    )
