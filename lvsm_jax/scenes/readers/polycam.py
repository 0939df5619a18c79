"""Polycam's raw data: `keyframes/corrected_cameras/*.json` beside `keyframes/corrected_images`.

Without those that Polycam corrected, `keyframes/cameras` and `keyframes/images`. Camera to world is
written as t_00 to t_23, with ARKit's axes, which are OpenGL's: y up, z backwards; metres.
"""

import pathlib

import numpy as np

from lvsm_jax.common.files import read_json
from lvsm_jax.scenes.camera_json import number, whole_number
from lvsm_jax.scenes.photograph import PosedCamera
from lvsm_jax.scenes.readers import scene
from lvsm_jax.scenes.readers.scene import Scene

_PAIRS = (("corrected_cameras", "corrected_images"), ("cameras", "images"))


def read_polycam(path: pathlib.Path, images: pathlib.Path | None) -> Scene | None:
    """Reads the folder that holds `keyframes`, or that folder."""
    folder = path if path.name == "keyframes" else path / "keyframes"
    pairs = [(folder / cameras, folder / images) for cameras, images in _PAIRS]
    found = next((pair for pair in pairs if any(pair[0].glob("*.json"))), None)
    if found is None:
        return None
    cameras, root = found[0], images or found[1]
    posed = []
    for file in sorted(cameras.glob("*.json")):
        values, where = read_json(file), str(file)
        image = scene.find_image(root, file.stem, where)
        fxfycxcy = [number(values, field, where) for field in ("fx", "fy", "cx", "cy")]
        size = [whole_number(values, field, where) for field in ("width", "height")]
        c2w = [[number(values, f"t_{i}{j}", where) for j in range(4)] for i in range(3)]
        with scene.naming(where):  # from OpenGL's axes
            camera = PosedCamera(np.array(c2w) * [1, -1, -1, 1], fxfycxcy, *size)
        posed.append(scene.posed_image(file.stem, image, camera, where))
    others = root.iterdir() if root.is_dir() else []
    return scene.make_scene(cameras, root, posed, others, by_name=True)
