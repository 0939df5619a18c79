"""Reads posed photographs of one scene, in the formats that people have them in.

A reader is a function. Given a file or folder, and the folder of images if that is another, it
returns the scene, or None where there is nothing of its format. To add a format, write such a
function and add it to `READERS`.
"""

import os
import pathlib

from lvsm_jax.scenes.readers.colmap import read_colmap
from lvsm_jax.scenes.readers.scene import Scene, SceneError, ScenePhotograph, some_of
from lvsm_jax.scenes.readers.scene_json import read_scene_json

__all__ = ["READERS", "Scene", "SceneError", "ScenePhotograph", "read_scene"]

READERS = (read_scene_json, read_colmap)  # the first that finds one reads


def read_scene(path: str | os.PathLike, *, images: str | os.PathLike | None = None) -> Scene:
    """Reads cameras and finds their images, without decoding these.

    `path` is a folder with, or file of, `cameras.json` (`{"frames": [{"file", "w", "h", "fxfycxcy",
    "w2c" or "c2w"}]}`, OpenCV axes, intrinsics in pixels) or nerfstudio's `transforms.json` (also
    `transforms_train.json`); or a COLMAP model, text or binary, or a folder with one in `sparse/0`
    or `sparse` (needs pycolmap). `images` is the folder that the names of images are relative to
    and must not leave; by default that of the JSON file, or the folder `images` in that of a COLMAP
    model or up to three above. SceneError names the file, the place in it, and what was expected;
    OSError is for a file that cannot be read.
    """
    path = pathlib.Path(path).expanduser()
    if images is not None and not (images := pathlib.Path(images).expanduser()).is_dir():
        raise SceneError(f"there is no folder of images {images}")
    if not path.exists():
        raise SceneError(f"no scene {path}: no such file or folder")
    try:
        for read in READERS:
            if (scene := read(path, images)) is not None:
                return scene
    except SceneError:
        raise
    except ValueError as error:
        raise SceneError(str(error)) from error
    raise SceneError(_nothing_in(path))


def _nothing_in(folder: pathlib.Path) -> str:
    if (folder / "dataset_info.json").is_file():
        splits = sorted(file.stem.removeprefix("scenes-") for file in folder.glob("scenes-*.npz"))
        return f"{folder} is a dataset: name a clip as {folder}/SPLIT:KEY, with SPLIT of {splits}"
    files = [*sorted(folder.glob("*/cameras.json")), *sorted(folder.glob("*/transforms.json"))]
    inner = dict.fromkeys(file.parent.name for file in files)
    found = f"; it holds the scenes {some_of(inner)}" if inner else ""
    return (
        f"no scene in {folder}: expected cameras.json, transforms.json or a COLMAP model "
        f"(cameras, images and points3D, .bin or .txt; also in sparse/0){found}"
    )
