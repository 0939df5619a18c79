"""Record3D's EXR + RGBD export: `EXR_RGBD/metadata` (JSON) and `EXR_RGBD/rgb/0.jpg` and so on.

A pose is a quaternion, scalar last, and the centre: camera to world with OpenGL's axes, metres. `K`
is column after column, in pixels of the pictures.
"""

import pathlib

import numpy as np
from scipy.spatial.transform import Rotation

from lvsm_jax.common.files import read_json
from lvsm_jax.scenes.camera_json import numbers, whole_number
from lvsm_jax.scenes.photograph import PosedCamera
from lvsm_jax.scenes.readers import scene
from lvsm_jax.scenes.readers.scene import Scene, SceneError

_FLIP = np.diag([1.0, -1.0, -1.0])  # from OpenGL's axes: y up, z backwards


def read_record3d(path: pathlib.Path, images: pathlib.Path | None) -> Scene | None:
    """Reads the folder that holds `EXR_RGBD`, or that folder."""
    folders = (path, path / "EXR_RGBD")
    folder = next((f for f in folders if (f / "metadata").is_file()), None)
    if folder is None or not (images or folder / "rgb").is_dir():
        return None
    file, root = folder / "metadata", images or folder / "rgb"
    values = read_json(file)
    size = [whole_number(values, field, str(file)) for field in ("w", "h")]
    matrix = numbers(values, "K", (9,), str(file)).reshape(3, 3).T
    if matrix[0, 1] or matrix[1, 0] or matrix[2].tolist() != [0, 0, 1]:
        raise SceneError(f"{file}: 'K' is no matrix of a pinhole camera, column after column")
    fxfycxcy = [matrix[0, 0], matrix[1, 1], matrix[0, 2], matrix[1, 2]]
    poses = values.get("poses")
    if not isinstance(poses, list) or not poses:
        raise SceneError(f"{file}: 'poses' must be a list of 7 numbers a frame")
    posed = []
    for i, pose in enumerate(poses):
        where = f"{file}: poses[{i}]"
        given = numbers({"pose": pose}, "pose", (7,), where)
        if not 0.99 < np.linalg.norm(given[:4]) < 1.01:
            raise SceneError(f"{where}: its quaternion is not of length 1")
        c2w = np.eye(4)
        c2w[:3, :3] = Rotation.from_quat(given[:4]).as_matrix() @ _FLIP
        c2w[:3, 3] = given[4:]
        with scene.naming(where):
            camera = PosedCamera(c2w, fxfycxcy, *size)
        image = scene.find_image(root, str(i), where)
        posed.append(scene.posed_image(str(i), image, camera, where))
    return scene.make_scene(file, root, posed, root.iterdir(), by_name=True)
