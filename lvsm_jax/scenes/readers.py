"""Reads posed photographs of one scene, in the formats that people have them in.

`read_scene(path)` takes

- a folder with `cameras.json`, or such a file: `{"frames": [{"file", "w", "h", "fxfycxcy", "w2c" or
  "c2w"}]}`, OpenCV axes, intrinsics in pixels;
- a folder with nerfstudio's `transforms.json`, or such a file (also `transforms_train.json`);
- a COLMAP model, text or binary, or a folder with one in `sparse/0` or `sparse` (needs pycolmap).

Files are not to be trusted: values are checked, images must lie inside the scene's folder and have
the size that their camera says. Lenses that distort are refused. What is in only one of poses and
images is left out and said so.
"""

import collections
import dataclasses
import importlib.util
import io
import json
import math
import os
import pathlib
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64
from PIL import Image

from lvsm_jax.common.errors import UserError
from lvsm_jax.scenes.photograph import Photograph, PosedCamera
from lvsm_jax.scenes.trajectories import camera_of, frames_of, numbers, read_json, whole_number

_PICTURES = {
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".png": "PNG",
    ".webp": "WEBP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".bmp": "BMP",
    ".ppm": "PPM",
}
# Those that are a pinhole camera when their other parameters are zero.
_PINHOLES = ("SIMPLE_PINHOLE", "PINHOLE", "SIMPLE_RADIAL", "RADIAL", "OPENCV", "FULL_OPENCV")
_DISTORTION = re.compile(r"[kps]\d+")
_COLMAP_PLACES = ("", "sparse", "sparse/*", "colmap/sparse/*")
_NAMED = 3  # files that a message names


class SceneError(UserError):
    """A scene that cannot be read. The message says where and why."""


@dataclasses.dataclass(frozen=True)
class ScenePhotograph:
    """A photograph of a scene that is not yet decoded.

    Attributes:
        name: the image as the scene calls it.
        camera: that took it.
        source: the image file, or the JPEG itself.
    """

    name: str
    camera: PosedCamera
    source: pathlib.Path | bytes

    def load(self) -> Photograph:
        """Decodes it; ValueError when that cannot be done."""
        if isinstance(self.source, pathlib.Path):
            return Photograph.open(self.source, self.camera, self.name)
        return Photograph.decode(self.source, self.camera, self.name)


@dataclasses.dataclass(frozen=True)
class Scene:
    """What `read_scene` found.

    Attributes:
        source: file, folder or clip that it was read from.
        photographs: one or more; in the order of the file or clip, those of `transforms.json` and
            COLMAP, which have none, by name.
        notes: what was left out, a sentence each.
    """

    source: str
    photographs: list[ScenePhotograph]
    notes: list[str]

    def __getitem__(self, name: str) -> ScenePhotograph:
        for photograph in self.photographs:
            if photograph.name == name:
                return photograph
        names = [photograph.name for photograph in self.photographs]
        raise SceneError(f"{self.source} has no photograph {name!r}; it has {some_of(names)}")


def read_scene(path: str | os.PathLike, *, images: str | os.PathLike | None = None) -> Scene:
    """Reads cameras and finds their images, without decoding these.

    Args:
        path: see the module.
        images: folder that the names of images are relative to and must not leave; by default that
            of the JSON file, or the folder `images` in that of a COLMAP model or up to three above.

    Raises:
        SceneError: names the file, the place in it, and what was expected.
        OSError: a file that cannot be read.
    """
    path = os.fspath(path)
    folder = pathlib.Path(path)
    images = None if images is None else pathlib.Path(images)
    if images is not None and not images.is_dir():
        raise SceneError(f"there is no folder of images {images}")
    try:
        if folder.is_file():
            return _read_json_scene(folder, images)
        if not folder.is_dir():
            raise SceneError(f"no scene {path}: no such file or folder")
        for name in ("cameras.json", "transforms.json", "transforms_train.json"):
            if (folder / name).is_file():
                return _read_json_scene(folder / name, images)
        if models := _colmap_models(folder):
            return _read_colmap(models, images)
    except SceneError:
        raise
    except ValueError as error:
        raise SceneError(str(error)) from error
    raise SceneError(_nothing_in(folder))


def _nothing_in(folder: pathlib.Path) -> str:
    if (folder / "dataset_info.json").is_file():
        splits = sorted(file.stem.removeprefix("scenes-") for file in folder.glob("scenes-*.npz"))
        return f"{folder} is a dataset: name a clip as {folder}/SPLIT:KEY, with SPLIT of {splits}"
    inner = sorted({file.parent.name for file in folder.glob("*/cameras.json")})
    inner += sorted({file.parent.name for file in folder.glob("*/transforms.json")} - set(inner))
    found = f"; it holds the scenes {some_of(inner)}" if inner else ""
    return (
        f"no scene in {folder}: expected cameras.json, transforms.json or a COLMAP model "
        f"(cameras, images and points3D, .bin or .txt; also in sparse/0){found}"
    )


def _read_json_scene(file: pathlib.Path, images: pathlib.Path | None) -> Scene:
    content = read_json(file)
    frames = frames_of(content, file)
    root = file.parent if images is None else images
    if "transform_matrix" in frames[0]:
        posed, by_name = _nerfstudio(file, content, frames, root), True
    else:
        posed, by_name = _cameras_json(file, frames, root), False
    folders = {(root / name).parent for name, _, _ in posed}
    others = (path for folder in folders if folder.is_dir() for path in folder.iterdir())
    return _scene(os.fspath(file), root, posed, others, by_name=by_name)


# The name of an image, its file (None: there is none), and its camera (None only without a file).
_Posed = tuple[str, pathlib.Path | None, PosedCamera | None]


def _cameras_json(
    file: pathlib.Path, frames: Sequence[Mapping[str, Any]], root: pathlib.Path
) -> list[_Posed]:
    posed = []
    for i, frame in enumerate(frames):
        where = f"{file}: frames[{i}]"
        camera = camera_of(frame, where)
        image = _image(root, frame.get("file"), f"{where}: 'file'")
        _check_size(image, camera, where)
        posed.append((frame["file"], image, camera))
    return posed


def _nerfstudio(
    file: pathlib.Path,
    content: Mapping[str, Any],
    frames: Sequence[Mapping[str, Any]],
    root: pathlib.Path,
) -> list[_Posed]:
    """Cameras of a `transforms.json`; what a frame does not say, the top of the file does."""
    posed = []
    for i, frame in enumerate(frames):
        where = f"{file}: frames[{i}]"
        values = {**content, **frame}
        image = _image(root, frame.get("file_path"), f"{where}: 'file_path'", [".png"])
        name = frame["file_path"].removeprefix("./")
        size = _nerfstudio_size(values, image, where)
        if size is None:  # no image, and so no size that fields of view could refer to
            posed.append((name, None, None))
            continue
        c2w = numbers(frame, "transform_matrix", (4, 4), where)
        c2w[:3, 1:3] *= -1  # from OpenGL's axes: y up, z backwards
        _check_pinhole(values, where)
        fxfycxcy = _nerfstudio_intrinsics(values, *size, where)
        try:
            camera = PosedCamera(c2w, fxfycxcy, *size)
        except ValueError as error:
            raise SceneError(f"{where}: {error}") from None
        _check_size(image, camera, where)
        posed.append((name, image, camera))
    return posed


def _nerfstudio_size(
    values: Mapping[str, Any], image: pathlib.Path | None, where: str
) -> tuple[int, int] | None:
    """Width and height, by default those of the image."""
    if "w" in values or "h" in values:
        return whole_number(values, "w", where), whole_number(values, "h", where)
    return None if image is None else picture_size_of(image)


def _nerfstudio_intrinsics(
    values: Mapping[str, Any], width: int, height: int, where: str
) -> Float64[np.ndarray, "4"]:
    def focal(field: str, angle: str, side: int) -> float | None:
        if field in values:
            return float(numbers(values, field, (), where))
        if angle not in values:
            return None
        radians = float(numbers(values, angle, (), where))
        if not 1e-6 < radians < math.pi:
            raise SceneError(f"{where}: {angle!r} is {radians:g}, expected radians from 0 to π")
        return side / 2 / math.tan(radians / 2)

    fx = focal("fl_x", "camera_angle_x", width)
    fy = focal("fl_y", "camera_angle_y", height)
    if fx is None:
        raise SceneError(f"{where}: neither 'fl_x' nor 'camera_angle_x', expected one of them")
    centre = [
        float(numbers(values, field, (), where)) if field in values else side / 2
        for field, side in (("cx", width), ("cy", height))
    ]
    return np.array([fx, fx if fy is None else fy, *centre])


def _check_pinhole(values: Mapping[str, Any], where: str) -> None:
    model = values.get("camera_model", "PINHOLE")
    if model not in _PINHOLES or values.get("is_fisheye"):
        model = "a fisheye" if values.get("is_fisheye") else repr(model)
        raise SceneError(f"{where}: 'camera_model' is {model}, expected one of {_PINHOLES}")
    distortion = {
        field: float(numbers(values, field, (), where))
        for field in sorted(values)
        if _DISTORTION.fullmatch(field)
    }
    _refuse_distortion(distortion, where)


def _refuse_distortion(parameters: Mapping[str, float], where: str) -> None:
    if bent := [f"{name} = {value:g}" for name, value in parameters.items() if value != 0]:
        raise SceneError(
            f"{where}: the lens distorts ({', '.join(bent)}), and only pinhole cameras can be "
            "used: undistort the images first, for example with colmap image_undistorter"
        )


def _colmap_models(folder: pathlib.Path) -> list[pathlib.Path]:
    """Folders with a COLMAP model at the places where COLMAP and its users put them."""
    for place in _COLMAP_PLACES:
        candidates = sorted(folder.glob(place)) if place else [folder]
        models = [
            path
            for path in candidates
            if any((path / f"images{suffix}").is_file() for suffix in (".bin", ".txt"))
        ]
        if models:
            return models
    return []


def _read_colmap(models: Sequence[pathlib.Path], images: pathlib.Path | None) -> Scene:
    if len(models) > 1:
        raise SceneError(f"several COLMAP models: name one of {some_of(map(str, models))}")
    folder = models[0]
    model = _colmap_model(folder)
    root = _colmap_images(folder) if images is None else images
    posed = []
    for image in model["images"]:
        name, entry = image["file"], model["cameras"][str(image["camera"])]
        where = f"{folder}: image {name!r}"
        file = _image(root, name, where)
        if image["w2c"] is None:
            continue  # its file, if there is one, is noted as one without a pose
        fxfycxcy = _colmap_intrinsics(entry, f"{folder}: camera {image['camera']}")
        try:
            camera = PosedCamera.from_w2c(image["w2c"], fxfycxcy, entry["w"], entry["h"])
        except ValueError as error:
            raise SceneError(f"{where}: {error}") from None
        _check_size(file, camera, where)
        posed.append((name, file, camera))
    return _scene(os.fspath(folder), root, posed, root.rglob("*"), by_name=True)


def _colmap_model(folder: pathlib.Path) -> dict[str, Any]:
    if importlib.util.find_spec("pycolmap") is None:
        raise SceneError(
            f"{folder} is a COLMAP model, and reading it needs pycolmap: "
            "pip install 'lvsm_jax[colmap]'"
        )
    program = pathlib.Path(__file__).with_name("colmap_model.py")
    # -P: this package's modules must not stand in for others of the same name.
    done = subprocess.run(
        [sys.executable, "-P", os.fspath(program), os.fspath(folder.resolve())],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        reason = lines[-1] if lines and done.returncode == 1 else "its reader broke down"
        raise SceneError(f"{folder}: no COLMAP model that can be read: {reason}")
    return json.loads(done.stdout)


def _colmap_images(folder: pathlib.Path) -> pathlib.Path:
    folder = folder.resolve()
    for above in (folder, *folder.parents[:3]):
        if (above / "images").is_dir():
            return above / "images"
    raise SceneError(
        f"{folder}: no folder 'images' there or up to three folders above: say where the images are"
    )


def _colmap_intrinsics(entry: Mapping[str, Any], where: str) -> Float64[np.ndarray, "4"]:
    if entry["model"] not in _PINHOLES:
        raise SceneError(f"{where}: its model is {entry['model']}, expected one of {_PINHOLES}")
    parameters = dict(entry["parameters"])
    f = parameters.pop("f", None)
    fx, fy = parameters.pop("fx", f), parameters.pop("fy", f)
    centre = parameters.pop("cx"), parameters.pop("cy")
    _refuse_distortion(parameters, where)
    return np.array([fx, fy, *centre])


def _image(
    root: pathlib.Path, name: Any, where: str, suffixes: Sequence[str] = ()
) -> pathlib.Path | None:
    """The image file of this name, or None where there is none.

    Args:
        root: the folder that it must lie in, also after following links.
        name: relative to the root.
        where: for error messages.
        suffixes: that the file may have besides.
    """
    if not isinstance(name, str) or not name or "\0" in name:
        raise SceneError(f"{where} is missing or no text, expected the name of an image file")
    for path in (root / f"{name}{suffix}" for suffix in ("", *suffixes)):
        try:
            if not path.resolve().is_relative_to(root.resolve()):
                raise SceneError(f"{where} is {name!r}, which lies outside of {root}")
            if path.is_file():
                return path
        except OSError as error:  # such as a name that is too long
            raise SceneError(f"{where} is {name[:60]!r}: {error.strerror}") from None
    return None


def _check_size(image: pathlib.Path | None, camera: PosedCamera, where: str) -> None:
    if image is None:
        return
    width, height = picture_size_of(image)
    if (width, height) != (camera.width, camera.height):
        raise SceneError(
            f"{where}: 'w' and 'h' are {camera.width}×{camera.height}, but {image} has "
            f"{width}×{height} pixels"
        )


def picture_size_of(image: pathlib.Path | io.BytesIO) -> tuple[int, int]:
    """Width and height, from the first bytes."""
    try:
        with Image.open(image, formats=sorted(set(_PICTURES.values()))) as picture:
            return picture.size
    except Image.DecompressionBombError as error:
        raise SceneError(f"{image}: {error}") from None
    except (OSError, SyntaxError, ValueError) as error:
        what = image if isinstance(image, pathlib.Path) else "the image"
        damaged = not isinstance(error, Image.UnidentifiedImageError)
        raise SceneError(f"{what}: {error if damaged else 'not a picture'}") from None


def _scene(
    source: str,
    root: pathlib.Path,
    posed: Sequence[_Posed],
    files: Iterable[pathlib.Path],
    *,
    by_name: bool,
) -> Scene:
    """The scene of what is there, and notes on what is not."""
    counts = collections.Counter(name for name, _, _ in posed)
    if twice := [name for name, count in counts.items() if count > 1]:
        raise SceneError(f"{source} has several poses of {some_of(twice)}")
    photographs = [ScenePhotograph(name, cam, file) for name, file, cam in posed if file]
    missing = [name for name, file, _ in posed if file is None]
    if not photographs:
        raise SceneError(f"{source}: none of its images is in {root}: {some_of(missing)}")
    if by_name:
        photographs.sort(key=lambda photograph: _natural(photograph.name))
    known = {file.resolve() for _, file, _ in posed if file}
    unposed = sorted(
        os.fspath(file.relative_to(root))
        for file in files
        if file.suffix.lower() in _PICTURES and file.is_file() and file.resolve() not in known
    )
    notes = []
    if missing:
        notes.append(f"{len(missing)} poses have no image in {root}: {some_of(missing)}")
    if unposed:
        notes.append(f"{len(unposed)} images of {root} have no pose: {some_of(unposed)}")
    return Scene(source, photographs, notes)


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Sorts r_2 before r_10."""
    return [
        (1, int(part), "") if part.isdecimal() and part.isascii() else (0, 0, part)
        for part in re.split(r"(\d+)", name)
    ]


def some_of(names: Iterable[str]) -> str:
    """The first names of many, for a message."""
    names = list(names)
    more = f", … ({len(names)} in all)" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
