"""The scene that is written: pinhole pictures, `cameras.json`, and the same as a COLMAP model."""

import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pycolmap

from lvsm_jax.common import files
from lvsm_jax.poses.pictures import Upright
from lvsm_jax.scenes.camera_json import as_json
from lvsm_jax.scenes.photograph import PosedCamera

IMAGES = "images"
_QUALITY = 95  # of JPEGs


class Written(NamedTuple):
    """What the check page needs of a scene that was written."""

    cameras: dict[str, PosedCamera]  # by the photographs' names
    # From a photograph's name and places in it to those in its undistorted picture.
    straighten: Callable[[str, np.ndarray], np.ndarray]


def write_scene(
    target: pathlib.Path,
    found: pycolmap.Reconstruction,
    folder: pathlib.Path,
    photographs: Sequence[Upright],
    joined: Sequence[str],
) -> Written:
    """Writes the photographs that joined, undistorted, with their cameras, to a new folder."""
    names = {photograph.file: photograph.name for photograph in photographs}
    keep = set(joined)
    for image in list(found.images.values()):
        if image.has_pose and names[image.name] not in keep:
            found.deregister_frame(image.frame_id)
    distorted, work = target.with_name("distorted"), target.with_name("undistorted")
    distorted.mkdir()
    found.write_binary(distorted)
    pycolmap.undistort_images(work, distorted, folder, jpeg_quality=_QUALITY)
    model = pycolmap.Reconstruction(work / "sparse")
    (target / IMAGES).mkdir(parents=True)
    for image in model.images.values():
        (work / IMAGES / image.name).rename(target / IMAGES / names[image.name])
        image.name = names[image.name]
    (target / "sparse" / "0").mkdir(parents=True)
    model.write_binary(target / "sparse" / "0")
    images = {image.name: image for image in model.images.values()}
    cameras = {name: _camera(images[name]) for name in joined}
    _write_cameras(target, cameras)
    lenses = {names[image.name]: image.camera for image in found.images.values()}

    def straighten(name: str, places: np.ndarray) -> np.ndarray:
        if name not in cameras:
            return places
        focal, centre = np.split(cameras[name].fxfycxcy, 2)
        return lenses[name].cam_from_img(places) * focal + centre

    return Written(cameras, straighten)


def _write_cameras(target: pathlib.Path, cameras: Mapping[str, PosedCamera]) -> None:
    content = as_json(list(cameras.values()))
    for frame, name in zip(content["frames"], cameras, strict=True):
        frame["file"] = f"{IMAGES}/{name}"
    files.write_text(target / "cameras.json", json.dumps(content, indent=1, ensure_ascii=False))


def _camera(image: pycolmap.Image) -> PosedCamera:
    camera = image.camera
    fxfycxcy = [
        camera.focal_length_x,
        camera.focal_length_y,
        camera.principal_point_x,
        camera.principal_point_y,
    ]
    w2c = image.cam_from_world().matrix()
    return PosedCamera.from_w2c(w2c, fxfycxcy, camera.width, camera.height)
