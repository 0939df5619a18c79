"""LLFF's `poses_bounds.npy`: 17 numbers a photograph, in the order of the images' names.

The first 15 are a 3 × 5 matrix: camera to world with axes down, right, backwards; the centre; and
height, width and focal length in pixels. The last two are depths of the scene, which are not used.
"""

import pathlib

import numpy as np

from lvsm_jax.scenes import pictures
from lvsm_jax.scenes.photograph import PosedCamera
from lvsm_jax.scenes.readers import scene
from lvsm_jax.scenes.readers.scene import Scene, SceneError

_NAME = "poses_bounds.npy"
_FOLDERS = ("images", "images_2", "images_4", "images_8")
_MAX_BYTES = 64 * 2**20


def read_llff(path: pathlib.Path, images: pathlib.Path | None) -> Scene | None:
    """Reads the file, or the one in a folder."""
    file = path / _NAME if path.is_dir() else path
    if file.name != _NAME or not file.is_file():
        return None
    rows = _read_rows(file)
    folders = [images] if images else [file.parent / name for name in _FOLDERS]
    root = next((folder for folder in folders if folder.is_dir()), None)
    if root is None:
        raise SceneError(f"{file}: there is no folder of images {folders[0]}")
    there = [f for f in root.iterdir() if f.suffix.lower() in pictures.SUFFIXES and f.is_file()]
    there.sort(key=lambda file: file.name)
    if len(there) != len(rows):
        raise SceneError(f"{file} has {len(rows)} poses, but {root} {len(there)} images")
    posed = []
    for i, (row, image) in enumerate(zip(rows, there, strict=True)):
        where = f"{file}: row {i} ({image.name})"
        matrix = row[:15].reshape(3, 5)
        height, width, focal = matrix[:, 4]
        if not (1 <= height < 2**31 and 1 <= width < 2**31) or height % 1 or width % 1:
            raise SceneError(f"{where}: height and width are {height:g} and {width:g}")
        down, right, backwards, centre = matrix[:, :4].T
        c2w = np.stack([right, down, -backwards, centre], axis=1)
        with scene.naming(where):
            intrinsics = [focal, focal, width / 2, height / 2]
            camera = PosedCamera(c2w, intrinsics, int(width), int(height))
        name = image.relative_to(root).as_posix()
        posed.append(scene.posed_image(name, image, camera, where))
    return scene.make_scene(file, root, posed, [], by_name=False)


def _read_rows(file: pathlib.Path) -> np.ndarray:
    if file.stat().st_size > _MAX_BYTES:
        raise SceneError(f"{file}: more than {_MAX_BYTES >> 20} MiB, no file of cameras")
    with scene.naming(f"{file}"):
        rows = scene.load_array(file)
    if not isinstance(rows, np.ndarray) or rows.ndim != 2 or rows.shape[1] != 17 or not len(rows):
        shape = getattr(rows, "shape", "several arrays")
        raise SceneError(f"{file}: an array of shape {shape}, expected [n, 17]")
    if not np.issubdtype(rows.dtype, np.floating) or not np.isfinite(rows[:, :15]).all():
        raise SceneError(f"{file}: expected finite numbers")
    return rows.astype(np.float64)
