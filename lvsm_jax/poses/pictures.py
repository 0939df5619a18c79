"""Photographs as they are reconstructed from: upright, of a limited size, in groups of a camera.

Pixels are turned once, as EXIF says, and the tag is gone: cameras and pictures cannot disagree.
"""

import dataclasses
import hashlib
import math
import pathlib
from collections.abc import Iterable

from PIL import ExifTags, Image

from lvsm_jax.common.colours import Colour
from lvsm_jax.common.errors import UserError
from lvsm_jax.scenes import pictures
from lvsm_jax.scenes.readers.scene import natural_order, pictures_in, some_of
from lvsm_jax.scenes.video import VIDEO_SUFFIXES

# Focal length over the longer side where EXIF says nothing: phones' main cameras have 0.72 to 0.85.
USUAL_FOCAL = 0.85

_DIAGONAL_35_MM = math.hypot(36, 24)
_QUALITY = {"quality": 97, "subsampling": 0}
_BLOCK = 2**20


@dataclasses.dataclass(frozen=True)
class Upright:
    """A photograph as it lies in the folder that is reconstructed from."""

    name: str  # of the photograph, with the suffix of a JPEG
    file: str  # in the folder, without what COLMAP's lists of names cannot hold
    size: tuple[int, int]  # width and height in pixels
    focal: float | None  # pixels, as EXIF says
    group: str  # photographs of one camera and zoom have one


def is_video(path: pathlib.Path) -> bool:
    """Whether a file is a video, by its name."""
    return path.is_file() and path.suffix.lower() in VIDEO_SUFFIXES


def list_photographs(folder: pathlib.Path) -> list[pathlib.Path]:
    """The photographs of a folder, or of the folder `images` in one that has none itself.

    In the order of their names, numbers by value. UserError for a folder with fewer than two.
    """
    found = _pictures_in(folder)
    if len(found) < 2:
        what = f"only {found[0].name}" if found else f"none ({', '.join(pictures.SUFFIXES)})"
        raise UserError(f"poses need two photographs at least, and {folder} has {what}")
    return found


def _pictures_in(folder: pathlib.Path) -> list[pathlib.Path]:
    for place in (folder, folder / "images"):
        if place.is_dir() and (found := pictures_in(place)):
            return sorted(found, key=lambda file: natural_order(file.name))
    return []


def fingerprint(files: Iterable[pathlib.Path]) -> dict[str, str]:
    """By the name of each file a digest of its bytes."""
    return {file.name: _digest(file) for file in files}


def _digest(file: pathlib.Path) -> str:
    result = hashlib.sha256()
    with open(file, "rb") as opened:
        while block := opened.read(_BLOCK):
            result.update(block)
    return result.hexdigest()[:16]


def what_changed(before: dict[str, str], now: dict[str, str]) -> list[str]:
    """How photographs differ from those of before, a phrase each; empty for the same."""
    kinds = {
        "new": [name for name in now if name not in before],
        "gone": [name for name in before if name not in now],
        "changed": [name for name in now if before.get(name, now[name]) != now[name]],
    }
    return [f"{len(names)} {kind} ({some_of(names)})" for kind, names in kinds.items() if names]


def name_uprights(files: Iterable[pathlib.Path]) -> dict[str, pathlib.Path]:
    """Names of JPEGs to be made of files: theirs, or with another suffix if that name is free."""
    named: dict[str, pathlib.Path] = {}
    files = list(files)
    stems = [file.stem.lower() for file in files]
    for file in files:
        alone = stems.count(file.stem.lower()) == 1
        named[f"{file.stem if alone else file.name}.jpg"] = file
    return named


def write_upright(
    file: pathlib.Path,
    target: pathlib.Path,
    name: str,
    *,
    max_size: int,
    background: Colour | None = None,
) -> Upright:
    """Writes a photograph upright as a JPEG whose longer side has at most `max_size` pixels.

    UserError, which names the file, for what is no picture, damaged, or transparent without a
    `background`.
    """
    try:
        with open(file, "rb") as opened:
            pixels, exif = pictures.read_upright(opened, background=background)
    except Image.UnidentifiedImageError:
        raise UserError(f"{file}: not a picture ({', '.join(pictures.FORMATS)})") from None
    except pictures.PICTURE_ERRORS as error:
        raise UserError(f"{file}: {error}") from error
    image = Image.fromarray(pixels)
    scale = max_size / max(image.size)
    if scale < 1:
        image = image.resize([max(1, round(scale * side)) for side in image.size], Image.LANCZOS)
    image.save(target, format="JPEG", **_QUALITY)
    focal = _focal_by_exif(exif, image.size)
    return Upright(name, target.name, image.size, focal, _group(exif, image.size))


def _focal_by_exif(exif: dict[int, object], size: tuple[int, int]) -> float | None:
    """Pixels, of the focal length in 35 mm, which is by the diagonal; None where there is none."""
    try:
        equivalent = float(exif.get(ExifTags.Base.FocalLengthIn35mmFilm) or 0)
    except (TypeError, ValueError):
        return None
    # Of a field of view beyond which no photograph is a pinhole's.
    return equivalent / _DIAGONAL_35_MM * math.hypot(*size) if 10 <= equivalent <= 1000 else None


def _group(exif: dict[int, object], size: tuple[int, int]) -> str:
    tags = ExifTags.Base
    of_camera = (tags.Make, tags.Model, tags.FocalLength, tags.FocalLengthIn35mmFilm)
    return " ".join(str(part).strip("\0 ") for part in (*map(exif.get, of_camera), *size))
