"""A scene of posed photographs, and the checks that its readers share.

Files are not to be trusted: values are checked, images must lie inside the scene's folder and have
the size that their camera says. Lenses that distort are refused. What is in only one of poses and
images is left out and said so.
"""

import collections
import contextlib
import dataclasses
import io
import os
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from PIL import Image

from lvsm_jax.common.errors import UserError
from lvsm_jax.scenes import photograph
from lvsm_jax.scenes.photograph import Photograph, PosedCamera

# Those that are a pinhole camera when their other parameters are zero.
PINHOLES = ("SIMPLE_PINHOLE", "PINHOLE", "SIMPLE_RADIAL", "RADIAL", "OPENCV", "FULL_OPENCV")
_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".ppm")
_NAMED = 3  # files that a message names


class SceneError(UserError):
    """A scene that cannot be read. The message says where and why."""


@dataclasses.dataclass(frozen=True)
class ScenePhotograph:
    """A photograph of a scene that is not yet decoded."""

    name: str  # the image as the scene calls it
    camera: PosedCamera  # that took it
    source: pathlib.Path | bytes  # the image file, or the JPEG itself

    def load(self) -> Photograph:
        """Decodes it; UserError when that cannot be done."""
        if isinstance(self.source, pathlib.Path):
            return Photograph.open(self.source, self.camera, self.name)
        return Photograph.decode(self.source, self.camera, self.name)


@dataclasses.dataclass(frozen=True)
class Scene:
    """What a reader found; `transforms.json` and COLMAP have no order but that of the names."""

    source: str  # file, folder or clip that it was read from
    photographs: list[ScenePhotograph]  # one or more
    notes: list[str]  # what was left out, a sentence each

    def __getitem__(self, name: str) -> ScenePhotograph:
        by_name = {photograph.name: photograph for photograph in self.photographs}
        if name not in by_name:
            raise SceneError(f"{self.source} has no photograph {name!r}; it has {some_of(by_name)}")
        return by_name[name]


class PosedImage(NamedTuple):
    """A pose of a scene file, with its image where there is one."""

    name: str
    file: pathlib.Path | None
    camera: PosedCamera | None  # None only without an image


@contextlib.contextmanager
def naming(where: str) -> Iterator[None]:
    """Puts a place before what is wrong there, as a SceneError."""
    try:
        yield
    except ValueError as error:
        raise SceneError(f"{where}: {error}") from error


def check_size(image: pathlib.Path | None, camera: PosedCamera, where: str) -> None:
    """SceneError if there is an image and it has another size than the camera's."""
    if image is None:
        return
    width, height = picture_size_of(image)
    if (width, height) != (camera.width, camera.height):
        hint = ""
        if (height, width) == (camera.width, camera.height):
            with Image.open(image) as picture:
                if orientation := photograph.turn_by_exif(picture):
                    hint = f"; its EXIF orientation {orientation} asks for a turn: turn its pixels"
        raise SceneError(
            f"{where}: 'w' and 'h' are {camera.width}×{camera.height}, but {image} has "
            f"{width}×{height} pixels{hint}"
        )


def make_scene(
    source: pathlib.Path,
    root: pathlib.Path,
    posed: Sequence[PosedImage],
    files: Iterable[pathlib.Path],
    *,
    by_name: bool,
) -> Scene:
    """The scene of what is there in the folder `root`, and notes on what is not.

    Photographs keep the order of `posed` unless `by_name` sorts them. Those of `files` that are
    images should have a pose in the `source`.
    """
    counts = collections.Counter(image.name for image in posed)
    if twice := [name for name, count in counts.items() if count > 1]:
        raise SceneError(f"{source} has several poses of {some_of(twice)}")
    photographs = [ScenePhotograph(p.name, p.camera, p.file) for p in posed if p.file]
    missing = [image.name for image in posed if image.file is None]
    if not photographs:
        raise SceneError(f"{source}: none of its images is in {root}: {some_of(missing)}")
    if by_name:
        photographs.sort(key=lambda one: natural_order(one.name))
    known = {image.file.resolve() for image in posed if image.file}
    unposed = sorted(
        os.fspath(file.relative_to(root))
        for file in files
        if file.suffix.lower() in _SUFFIXES and file.is_file() and file.resolve() not in known
    )
    notes = []
    if missing:
        notes.append(f"{len(missing)} poses have no image in {root}: {some_of(missing)}")
    if unposed:
        notes.append(f"{len(unposed)} images of {root} have no pose: {some_of(unposed)}")
    return Scene(os.fspath(source), photographs, notes)


def natural_order(name: str) -> list[tuple[int, int, str]]:
    """Sort key that puts r_2 before r_10."""
    return [
        (1, int(part), "") if part.isdecimal() and part.isascii() else (0, 0, part)
        for part in re.split(r"(\d+)", name)
    ]


def find_image(
    root: pathlib.Path, name: Any, where: str, suffixes: Sequence[str] = ()
) -> pathlib.Path | None:
    """The image file of this name, perhaps with one of the suffixes; None where there is none.

    The name is relative to `root`, in which the file must lie, also after following links.
    """
    if not isinstance(name, str) or not name or "\0" in name:
        raise SceneError(f"{where} is missing or no text, expected the name of an image file")
    names = dict.fromkeys((name, name.replace("\\", "/")))  # Windows writes the latter so
    for path in (root / f"{name}{suffix}" for name in names for suffix in ("", *suffixes)):
        try:
            real = path.resolve()
            if not real.is_relative_to(root.resolve()):
                is_link = pathlib.Path(os.path.abspath(path)).is_relative_to(root.absolute())
                hint = f": it is a link to {real}, put a copy in its place" if is_link else ""
                raise SceneError(f"{where} is {name!r}, which lies outside of {root}{hint}")
            if path.is_file():
                return path
        except OSError as error:  # such as a name that is too long
            raise SceneError(f"{where} is {name[:60]!r}: {error.strerror}") from None
    return None


def picture_size_of(image: pathlib.Path | io.BytesIO) -> tuple[int, int]:
    """Width and height, from the first bytes."""
    try:
        with Image.open(image, formats=photograph.FORMATS) as picture:
            return picture.size
    except photograph.PICTURE_ERRORS as error:
        what = image if isinstance(image, pathlib.Path) else "the image"
        damaged = not isinstance(error, Image.UnidentifiedImageError)
        raise SceneError(f"{what}: {error if damaged else 'not a picture'}") from None


def refuse_distortion(parameters: Mapping[str, float], where: str) -> None:
    """SceneError unless all parameters of a lens, by name, are zero."""
    if bent := [f"{name} = {value:g}" for name, value in parameters.items() if value != 0]:
        raise SceneError(
            f"{where}: the lens distorts ({', '.join(bent)}), and only pinhole cameras can be "
            "used: undistort the images first, for example with colmap image_undistorter"
        )


def some_of(names: Iterable[str]) -> str:
    """The first names of many, for a message."""
    names = list(names)
    more = f", … ({len(names)} in all)" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
