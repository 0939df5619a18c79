"""Scenes of `cameras.json`: OpenCV axes, intrinsics in pixels."""

import pathlib
from typing import Any

from lvsm_jax.scenes import camera_json
from lvsm_jax.scenes.readers.scene import PosedImage, Scene, check_size, find_image, make_scene

_NAMES = ("cameras.json", "transforms.json", "transforms_train.json")


def read_cameras_json(path: pathlib.Path, images: pathlib.Path | None) -> Scene | None:
    """Reads `{"frames": [{"file", "w", "h", "fxfycxcy", "w2c" or "c2w"}]}`."""
    found = open_scene_json(path)
    if found is None or "transform_matrix" in found[1]["frames"][0]:
        return None
    file, content = found
    root, posed = images or file.parent, []
    for i, frame in enumerate(content["frames"]):
        where = f"{file}: frames[{i}]"
        camera = camera_json.camera_of(frame, where)
        image = find_image(root, frame.get("file"), f"{where}: 'file'")
        check_size(image, camera, where)
        posed.append(PosedImage(frame["file"], image, camera))
    return scene_of_json(file, root, posed, by_name=False)


def open_scene_json(path: pathlib.Path) -> tuple[pathlib.Path, dict[str, Any]] | None:
    """The JSON file of a scene and its content, whose `frames` are one object or more."""
    files = [path, *(path / name for name in _NAMES)]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        return None
    content = camera_json.read_json(file)
    camera_json.frames_of(content, file)
    return file, content


def scene_of_json(
    file: pathlib.Path, root: pathlib.Path, posed: list[PosedImage], *, by_name: bool
) -> Scene:
    """The scene of a JSON file; images beside those that it names should have a pose too."""
    folders = {(root / image.name).parent for image in posed}
    others = (path for folder in folders if folder.is_dir() for path in folder.iterdir())
    return make_scene(file, root, posed, others, by_name=by_name)
