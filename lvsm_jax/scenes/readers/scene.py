"""A scene of posed photographs, and the checks that its readers share.

Files are not to be trusted: values are checked, images must lie inside the scene's folder and have
the size that their camera says, or a whole part of it. Photographs of lenses that distort become a
pinhole's when they are read. What is in only one of poses and images is left out and said so.
"""

import collections
import contextlib
import dataclasses
import io
import itertools
import os
import pathlib
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from lvsm_jax.common.colours import Colour
from lvsm_jax.common.errors import UserError
from lvsm_jax.common.text import shortened
from lvsm_jax.scenes import pictures
from lvsm_jax.scenes.lens import Distortion, Lens
from lvsm_jax.scenes.photograph import Photograph, PosedCamera

# Models of lenses whose pictures a pinhole camera can show.
LENSES = ("SIMPLE_PINHOLE", "PINHOLE", "SIMPLE_RADIAL", "RADIAL", "OPENCV", "FULL_OPENCV")
_LEVELS = ("", "_2", "_4", "_8")  # folders of the same pictures, so many times smaller
_SMALLEST = 32  # sides of a picture in which shares cannot be pixels
_NAMED = 3  # files that a message names


class SceneError(UserError):
    """A scene that cannot be read. The message says where and why."""


class NoCamerasError(SceneError):
    """Photographs, or a video, without cameras, which can be found."""

    def __init__(self, message: str, photographs: pathlib.Path):
        super().__init__(message)
        self.photographs = photographs  # the folder, or the video


@dataclasses.dataclass(frozen=True)
class ScenePhotograph:
    """A photograph of a scene that is not yet decoded."""

    name: str  # the image as the scene calls it
    camera: PosedCamera  # that takes what `load` returns
    source: pathlib.Path | bytes  # the image file, or the JPEG itself
    lens: Lens | None = None  # that took the file's picture, where that is no pinhole
    background: Colour | pictures.Alpha | None = None  # for transparent pixels

    def load(self) -> Photograph:
        """Decodes it, and undoes what its lens distorts; UserError when that cannot be done."""
        options = {"background": self.background}
        if isinstance(self.source, pathlib.Path):
            result = Photograph.open(self.source, self.camera, self.name, **options)
        else:
            result = Photograph.decode(self.source, self.camera, self.name, **options)
        if self.lens is None:
            return result
        pixels = self.lens.undistort(result.pixels, self.camera.fxfycxcy)
        return dataclasses.replace(result, pixels=pixels)


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

    def on(self, background: Colour | pictures.Alpha | None) -> "Scene":
        """The same with transparent pixels put on a colour; None refuses them."""
        photographs = [dataclasses.replace(p, background=background) for p in self.photographs]
        return dataclasses.replace(self, photographs=photographs)


class PosedImage(NamedTuple):
    """A pose of a scene file, with its image where there is one."""

    name: str
    file: pathlib.Path | None
    camera: PosedCamera | None  # None only without an image
    lens: Lens | None = None
    smaller: int = 1  # how many times the picture is than its camera was said to be


@contextlib.contextmanager
def naming(where: str) -> Iterator[None]:
    """Puts a place before what is wrong there, as a SceneError."""
    try:
        yield
    except ValueError as error:
        raise SceneError(f"{where}: {error}") from error


def load_array(file: pathlib.Path) -> Any:
    """What an untrusted file of NumPy holds, unpickling nothing: an array, or several by name."""
    try:
        return np.load(io.BytesIO(file.read_bytes()), allow_pickle=False)
    except Exception as error:  # of damaged ones: the header is a piece of Python, and parsed so
        raise SceneError(f"no array of NumPy: {shortened(error)}") from None


def posed_image(
    name: str,
    file: pathlib.Path | None,
    camera: PosedCamera,
    where: str,
    distortion: Distortion | None = None,
) -> PosedImage:
    """An image with the camera that a scene file states, which is fitted to the picture.

    Of pictures that are a whole number of times smaller, intrinsics are scaled by the plain ratio
    of the sizes; a lens that distorts gets the widest pinhole camera that it fills. SceneError for
    a picture of any other size, or a lens for which there is none.
    """
    if file is None:
        return PosedImage(name, None, camera)
    smaller, (width, height) = _smaller(file, camera, where)
    scale = np.array([width / camera.width, height / camera.height] * 2)
    fxfycxcy, lens = camera.fxfycxcy * scale, None
    with naming(where):
        if distortion:
            lens = Lens(fxfycxcy, distortion)
            fxfycxcy = lens.pinhole(width, height)
        if smaller > 1 or lens:
            camera = PosedCamera(camera.c2w, fxfycxcy, width, height)
    return PosedImage(name, file, camera, lens, smaller)


def _smaller(file: pathlib.Path, camera: PosedCamera, where: str) -> tuple[int, tuple[int, int]]:
    """How many times the picture is smaller than its camera says, and the size that it has."""
    sizes = _sizes_of(file)
    for width, height in sizes:
        times = max(1, round(camera.width / width))
        # Sides that do not divide are rounded up or down; a pixel of a few is no rounding.
        off = np.abs(np.array([width, height]) - np.array([camera.width, camera.height]) / times)
        if (off < 1).all() and (times > 1 or not off.any()):
            return times, (width, height)
    turned = f", or {sizes[1][0]}×{sizes[1][1]} turned as EXIF says" if len(sizes) > 1 else ""
    raise SceneError(
        f"{where}: 'w' and 'h' are {camera.width}×{camera.height}, but {file} has "
        f"{sizes[0][0]}×{sizes[0][1]} pixels{turned}: expected that size, or ½, ⅓, ¼, … of it"
    )


def _sizes_of(image: pathlib.Path) -> list[tuple[int, int]]:
    with _opened(image) as picture:
        return pictures.sizes_of(picture)


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
    photographs = [ScenePhotograph(p.name, p.camera, p.file, p.lens) for p in posed if p.file]
    missing = [image.name for image in posed if image.file is None]
    if not photographs:
        raise SceneError(f"{source}: none of its images is in {root}: {some_of(missing)}")
    if by_name:
        photographs.sort(key=lambda one: natural_order(one.name))
    known = {image.file.resolve() for image in posed if image.file}
    unposed = sorted(
        os.fspath(file.relative_to(root))
        for file in files
        if file.suffix.lower() in pictures.SUFFIXES
        and file.is_file()
        and file.resolve() not in known
    )
    _check_principal_points(source, photographs)
    notes = []
    if bent := [image.name for image in posed if image.file and image.lens]:
        notes.append(f"{len(bent)} images are undistorted when they are read: {some_of(bent)}")
    if small := [image for image in posed if image.smaller > 1]:
        camera, times = small[0].camera, small[0].smaller
        notes.append(
            f"{len(small)} images are smaller than their cameras say, and intrinsics are scaled: "
            f"{small[0].name} is {camera.width}×{camera.height}, 1/{times}"
        )
    if missing:
        notes.append(f"{len(missing)} poses have no image in {root}: {some_of(missing)}")
    if unposed:
        notes.append(f"{len(unposed)} images of {root} have no pose: {some_of(unposed)}")
    return Scene(os.fspath(source), photographs, notes)


def pictures_in(folder: pathlib.Path) -> list[pathlib.Path]:
    """The files of a folder that are pictures by their suffix, hidden ones aside, by name."""
    files = (file for file in folder.iterdir() if not file.name.startswith("."))
    there = [file for file in files if file.suffix.lower() in pictures.SUFFIXES and file.is_file()]
    return sorted(there, key=lambda file: file.name)


def natural_order(name: str) -> list[tuple[int, int, str]]:
    """Sort key that puts r_2 before r_10."""
    return [
        (1, int(part), "") if part.isdecimal() and part.isascii() else (0, 0, part)
        for part in re.split(r"(\d+)", name)
    ]


def find_image(root: pathlib.Path, name: Any, where: str) -> pathlib.Path | None:
    """The image file of this name; None where there is none.

    The name is relative to `root`, in which the file must lie, also after following links. As
    written, else with blanks or backslashes as other systems have them, other forms of the same
    Unicode, another suffix or none, or from a folder of the same pictures made smaller, such as
    images_4. SceneError where several files could be meant.
    """
    if not isinstance(name, str) or not name or "\0" in name:
        raise SceneError(f"{where} is missing or no text, expected the name of an image file")
    slashes = dict.fromkeys((name, name.replace("\\", "/")))  # Windows writes the former
    forms = [unicodedata.normalize(f, n) for f in ("NFC", "NFD") for n in slashes]
    names = list(dict.fromkeys((*slashes, *forms)))
    try:
        for path in (root / name for name in names):
            if _lies_in(root, path, name, where) and path.is_file():
                return path
        for level, form in itertools.product(_LEVELS, names):
            path = _at_level(root, form, level)
            found = _other_suffixes(path) if _lies_in(root, path, name, where) else []
            if len(found) > 1:
                raise SceneError(f"{where} is {name!r}: which of {some_of(map(str, found))}?")
            if found and _lies_in(root, found[0], name, where):
                return found[0]
    except OSError as error:  # such as a name that is too long
        raise SceneError(f"{where} is {name[:60]!r}: {error.strerror}") from None
    return None


def _lies_in(root: pathlib.Path, path: pathlib.Path, name: str, where: str) -> bool:
    real = path.resolve()
    if real.is_relative_to(root.resolve()):
        return True
    is_link = pathlib.Path(os.path.abspath(path)).is_relative_to(root.absolute())
    hint = f": it is a link to {real}, put a copy in its place" if is_link else ""
    raise SceneError(f"{where} is {name!r}, which lies outside of {root}{hint}")


def _at_level(root: pathlib.Path, name: str, level: str) -> pathlib.Path:
    """The file, in the folder beside its own whose name ends in the level, as images_4."""
    path = root / name
    inside = pathlib.PurePath(name).parent.name
    return path.parent.with_name(inside + level) / path.name if inside else path


def _other_suffixes(path: pathlib.Path) -> list[pathlib.Path]:
    """The file itself, else those whose names differ from it in the suffix alone."""
    if path.is_file():
        return [path]
    if not path.parent.is_dir():
        return []
    stems = {path.name} | ({path.stem} if path.suffix.lower() in pictures.SUFFIXES else set())
    files = (path.parent / stem for stem in stems)
    suffixes = [*pictures.SUFFIXES, *map(str.upper, pictures.SUFFIXES)]
    found = {f.with_name(f.name + suffix) for f in files for suffix in suffixes}
    return sorted(file for file in found if file.is_file())


def picture_size_of(image: pathlib.Path | io.BytesIO) -> tuple[int, int]:
    """Width and height, from the first bytes; SceneError where EXIF turns the picture.

    Only where no camera states a size: then nothing tells what its intrinsics belong to.
    """
    with _opened(image) as picture:
        if orientation := pictures.turn_by_exif(picture):
            raise SceneError(
                f"{image if isinstance(image, pathlib.Path) else 'the image'}: EXIF orientation "
                f"{orientation} would turn the picture, and no camera states its size: turn its "
                "pixels, or remove the tag"
            )
        return picture.size


@contextlib.contextmanager
def _opened(image: pathlib.Path | io.BytesIO) -> Iterator[Image.Image]:
    """A picture that is not decoded; SceneError where it is none."""
    what = image if isinstance(image, pathlib.Path) else "the image"
    try:
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(open(image, "rb")) if what is image else image
            yield pictures.open_picture(file)
    except SceneError:
        raise
    except pictures.PICTURE_ERRORS as error:
        damaged = not isinstance(error, Image.UnidentifiedImageError)
        raise SceneError(f"{what}: {error if damaged else 'not a picture'}") from None


def _check_principal_points(source: pathlib.Path, photographs: list[ScenePhotograph]) -> None:
    """SceneError for those beyond the lower right, of a larger picture, and for shares of it."""
    for photograph in photographs:
        camera = photograph.camera
        centre, size = camera.fxfycxcy[2:], np.array([camera.width, camera.height])
        larger, shares = (centre > size).all(), ((centre > 0) & (centre < 1)).all()
        if larger or (shares and size.min() >= _SMALLEST):
            found = f"({', '.join(f'{value:g}' for value in centre)})"
            hint = "of a larger picture" if larger else "shares of its sides"
            raise SceneError(
                f"{source}: the principal point of {photograph.name} is {found}, but its picture "
                f"has {camera.width}×{camera.height} pixels: are these {hint}?"
            )


def some_of(names: Iterable[str]) -> str:
    """The first names of many, for a message."""
    names = list(names)
    more = f", … ({len(names)} in all)" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
