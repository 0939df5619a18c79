"""Scenes of one JSON file: `cameras.json` here, and those of other tools by what is in the file."""

import pathlib
from collections.abc import Iterator
from typing import Any

from lvsm_jax.common.files import read_any_json
from lvsm_jax.scenes import camera_json
from lvsm_jax.scenes.readers import scene
from lvsm_jax.scenes.readers.inria import is_inria, posed_by_inria
from lvsm_jax.scenes.readers.opencv_cameras import is_opencv_cameras, posed_by_opencv_cameras
from lvsm_jax.scenes.readers.scene import PosedImage, Scene, SceneError
from lvsm_jax.scenes.readers.transforms import is_transforms, posed_by_transforms

_NAMES = (
    "cameras.json",
    "opencv_cameras.json",
    "transforms.json",
    "transforms_train.json",
    "nerfstudio/transforms.json",  # of DL3DV
)


def read_scene_json(path: pathlib.Path, images: pathlib.Path | None) -> Scene | None:
    """Reads such a file, or the one in a folder."""
    if path.is_file() and path.suffix.lower() != ".json":
        return None
    files = [path, *(path / name for name in _NAMES)]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        return None
    content = read_any_json(file)
    if isinstance(content, list):
        content = {"frames": content}
    elif not isinstance(content, dict):
        raise SceneError(f"{file}: a {type(content).__name__}, expected an object or a list")
    frames, root = camera_json.frames_of(content, file), images or file.parent
    if is_transforms(frames[0]):
        posed = posed_by_transforms(content, frames, root, file)
    elif is_inria(frames[0]):
        posed = posed_by_inria(frames, _images_of_inria(images, root), file)
    elif is_opencv_cameras(frames[0]):
        posed = posed_by_opencv_cameras(frames, root, file)
    else:
        posed = list(_posed_by_cameras(frames, root, file))
    # Images beside those that the file names should have a pose too.
    folders = {image.file.parent if image.file else (root / image.name).parent for image in posed}
    others = (path for folder in folders if folder.is_dir() for path in folder.iterdir())
    by_name = is_transforms(frames[0]) or is_inria(frames[0])
    return scene.make_scene(file, root, posed, others, by_name=by_name)


def _posed_by_cameras(
    frames: list[dict[str, Any]], root: pathlib.Path, file: pathlib.Path
) -> Iterator[PosedImage]:
    for i, frame in enumerate(frames):
        where = f"{file}: frames[{i}]"
        camera = camera_json.camera_of(frame, where)
        image = scene.find_image(root, frame.get("file"), f"{where}: 'file'")
        yield scene.posed_image(frame["file"], image, camera, where)


def _images_of_inria(images: pathlib.Path | None, folder: pathlib.Path) -> pathlib.Path:
    """The file lies in the folder of a trained model, which holds no images."""
    return images or next((p for p in (folder / "images", folder) if p.is_dir()), folder)
