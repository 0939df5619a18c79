"""Posed photographs, and how they are cut to the size that a model takes. NumPy and Pillow only.

A picture is resized until it covers the wanted size, and the middle of it is cut out; its
intrinsics follow. For RealEstate10K that is the published preprocessing, bit for bit.
"""

import dataclasses
import io
import math
import os
from typing import Any

import numpy as np
from jaxtyping import Float64, UInt8
from PIL import Image

from lvsm_jax.common.camera_limits import check_pixels, check_positions
from lvsm_jax.common.colours import Colour
from lvsm_jax.common.errors import UserError
from lvsm_jax.scenes.pictures import FORMATS, MAX_PIXELS, PICTURE_ERRORS, Alpha, read_pixels

# Largest difference of RᵀR from the identity: that of a matrix written with three decimals.
ROTATION_TOLERANCE = 2e-3


_MULTIPLE = 8  # of resized sides, fixed by the published protocol, whatever the model's patch


@dataclasses.dataclass(frozen=True, eq=False)
class PosedCamera:
    """A pinhole camera in any world frame and unit; axes are OpenCV's (x right, y down, z forward).

    Arguments are copied and checked, so that a camera that exists can be used. UserError for a
    value that is not finite, a rotation that is none (RᵀR differs from the identity by more than
    `ROTATION_TOLERANCE`, or R mirrors), a size that is not positive, numbers beyond those of
    `common.camera_limits`, intrinsics in shares of the picture, a time that is not from 0 to 1.
    """

    # Any: what is given is converted, and checked with errors that say what is wrong.
    c2w: Any  # float64 [4, 4], camera to world; [3, 4] is completed
    fxfycxcy: Any  # float64 [4], focal lengths and principal point in pixels of the picture
    width: Any  # of the picture in pixels
    height: Any
    time: Any = None  # from 0 to 1, for a model that takes times; None where nothing moves

    def __post_init__(self):
        object.__setattr__(self, "c2w", _pose(self.c2w, "c2w"))
        if self.time is not None:
            object.__setattr__(self, "time", _time(self.time))
        for field in ("width", "height"):
            value = getattr(self, field)
            if not isinstance(value, int | np.integer) or value < 1:
                raise UserError(f"{field} is {value!r}, expected a positive whole number")
            object.__setattr__(self, field, int(value))
        object.__setattr__(self, "fxfycxcy", _intrinsics(self.fxfycxcy, self.width, self.height))

    @classmethod
    def from_w2c(
        cls, w2c: Any, fxfycxcy: Any, width: int, height: int, time: Any = None
    ) -> "PosedCamera":
        """The same from a world-to-camera matrix, `[4, 4]` or `[3, 4]`."""
        return cls(np.linalg.inv(_pose(w2c, "w2c")), fxfycxcy, width, height, time)

    @property
    def w2c(self) -> Float64[np.ndarray, "4 4"]:
        """World-to-camera matrix."""
        return np.linalg.inv(self.c2w)

    def cropped_to(self, height: int, width: int) -> "PosedCamera":
        """The camera of the same picture, resized to cover `height` × `width` and cropped to it."""
        crop = ResizeCrop.cover((self.width, self.height), height, width)
        return PosedCamera(self.c2w, crop.intrinsics(self.fxfycxcy), width, height, self.time)


@dataclasses.dataclass(frozen=True, eq=False)
class Photograph:
    """A picture and the camera that took it; UserError for pixels of another type or size."""

    pixels: Any  # uint8 [h, w, 3]
    camera: PosedCamera  # whose width and height are the picture's
    name: str | None = None  # by which a session knows it

    def __post_init__(self):
        pixels = np.asarray(self.pixels)
        object.__setattr__(self, "pixels", pixels)
        what = "the photograph" if self.name is None else f"photograph {self.name!r}"
        if self.name is not None and (not isinstance(self.name, str) or not self.name):
            raise UserError(f"the name of a photograph is {self.name!r}, expected some text")
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
            found = f"{pixels.dtype} of shape {pixels.shape}"
            raise UserError(f"{what} is {found}, expected uint8 [h, w, 3]")
        height, width, _ = pixels.shape
        if (height, width) != (self.camera.height, self.camera.width):
            raise UserError(
                f"{what} is {width}×{height} pixels, but its camera is of a picture of "
                f"{self.camera.width}×{self.camera.height}"
            )

    def cropped_to(self, height: int, width: int) -> UInt8[np.ndarray, "{height} {width} 3"]:
        """The pixels that `camera.cropped_to` belongs to; read-only."""
        crop = ResizeCrop.cover((self.camera.width, self.camera.height), height, width)
        pixels = crop.pixels(Image.fromarray(self.pixels)).copy()
        pixels.flags.writeable = False
        return pixels

    @classmethod
    def open(
        cls,
        path: str | os.PathLike,
        camera: PosedCamera,
        name: str | None = None,
        *,
        background: Colour | Alpha | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> "Photograph":
        """Reads a picture file: JPEG, PNG, WebP, TIFF, BMP or PPM; HEIC with pillow-heif.

        Grey, CMYK and 16 bits become 8 bits a colour. A picture that EXIF turns is turned if the
        camera has the size of the turned one. What would have to be guessed is refused: a turn that
        the size does not decide, and transparency without a `background` (red, green and blue of
        255). UserError, which names the file, for these, for what is damaged or no picture, and for
        more than `max_pixels` pixels, which are not decoded; OSError for a file that cannot be
        read.
        """
        with open(os.path.expanduser(path), "rb") as file:
            return cls._decode(file, os.fspath(path), camera, name, background, max_pixels)

    @classmethod
    def decode(
        cls,
        data: bytes,
        camera: PosedCamera,
        name: str,
        *,
        background: Colour | Alpha | None = None,
    ) -> "Photograph":
        """As `open`, from the bytes of a picture file; errors name `name`."""
        return cls._decode(io.BytesIO(data), name, camera, name, background, MAX_PIXELS)

    @classmethod
    def _decode(cls, file, where, camera, name, background, max_pixels) -> "Photograph":
        size, options = (camera.width, camera.height), {"max_pixels": max_pixels}
        try:
            return cls(read_pixels(file, size, background=background, **options), camera, name)
        except Image.UnidentifiedImageError:
            raise UserError(f"{where}: not a picture ({', '.join(FORMATS)})") from None
        except PICTURE_ERRORS as error:
            raise UserError(f"{where}: {error}") from error


@dataclasses.dataclass(frozen=True)
class ResizeCrop:
    """A picture is resized, and a window is cut out of the result."""

    source: tuple[int, int]  # width and height of the picture
    resized: tuple[int, int]  # width and height that it is resized to
    window: tuple[int, int, int, int]  # left, top, right, bottom in the resized picture

    @classmethod
    def cover(
        cls,
        source: tuple[int, int],
        height: int,
        width: int,
        *,
        share: float = 1.0,
        place: tuple[float, float] = (0.5, 0.5),
    ) -> "ResizeCrop":
        """The middle `height` × `width` of the picture, resized so that it just covers them.

        As in the published protocol the side that is cropped is resized to a multiple of 8, so that
        pixels may become oblong by a little; intrinsics take it into account. A picture of the
        wanted shape is resized as it is.

        With a `share` below 1 the picture is enlarged, so that a part with sides of about this
        share of the largest possible is kept. `place` is where that lies between left and right
        and between top and bottom, in [0, 1].
        """
        w, h = source
        if w * height == h * width:
            resized = width, height
        elif (columns := resized_side(w, h, height)) >= width:
            resized = columns, height
        else:
            resized = width, max(height, resized_side(h, w, width))
        if share < 1:  # columns in multiples of 8 too, so that `pixels` need not compute them all
            columns = round(resized[0] / share / _MULTIPLE) * _MULTIPLE
            resized = max(width, columns), max(height, round(resized[1] / share))
        left, top = int(place[0] * (resized[0] - width)), int(place[1] * (resized[1] - height))
        return cls(source, resized, (left, top, left + width, top + height))

    def pixels(self, image: Image.Image) -> UInt8[np.ndarray, "h w 3"]:
        """The window of the picture, by Pillow's Lanczos filter on 8-bit values.

        Columns that would be cropped away are not computed, save those up to where source and
        result have a pixel edge in common: from edge to edge the filter has the same weights as
        over the full width, so that the result is the same bit for bit. Rows are all computed:
        which of its two passes Pillow does first may depend on them.
        """
        left, top, right, bottom = self.window
        (width, height), source = self.resized, self.source[0]
        step = width // math.gcd(width, source)  # columns from one common edge to the next
        first, last = left // step * step, -(-right // step) * step
        box = (first * source // width, 0, last * source // width, self.source[1])
        columns = image.resize((last - first, height), Image.Resampling.LANCZOS, box=box)
        return np.asarray(columns)[top:bottom, left - first : right - first]

    def intrinsics(self, fxfycxcy: Float64[np.ndarray, "4"]) -> Float64[np.ndarray, "4"]:
        """From pixels of the picture to those of the window."""
        # Multiplied first: exact for RealEstate10K's float32 shares of the picture's size.
        result = fxfycxcy * np.array(self.resized * 2, np.float64) / (self.source * 2)
        result[2:] -= self.window[:2]
        return result


def resized_side(side: int, other: int, other_resized: int) -> int:
    """Length of a side after resizing, a multiple of 8, when the other side has a given length."""
    return round(int(other_resized * side / other) / _MULTIPLE) * _MULTIPLE


def _time(value: Any) -> float:
    """A time as a float; UserError for what is none from 0 to 1."""
    is_number = isinstance(value, int | float | np.integer | np.floating)
    if not is_number or isinstance(value, bool) or not 0 <= value <= 1:
        raise UserError(f"time is {value!r}, expected a number from 0 to 1")
    return float(value)


def _pose(matrix: Any, name: str) -> Float64[np.ndarray, "4 4"]:
    """A rigid transform, checked; a copy that cannot be written to."""
    given = np.asarray(matrix, np.float64)
    if given.shape not in ((4, 4), (3, 4)):
        raise UserError(f"{name} has shape {given.shape}, expected [4, 4] or [3, 4]")
    pose = np.eye(4)
    pose[: len(given)] = given
    if not np.isfinite(pose).all():
        raise UserError(f"{name} is not finite")
    check_positions(name, pose[:3, 3])
    if not np.allclose(pose[3], [0, 0, 0, 1], rtol=0, atol=1e-6):
        raise UserError(f"the last row of {name} is {pose[3].tolist()}, expected 0, 0, 0, 1")
    rotation = pose[:3, :3]
    error = np.abs(rotation.T @ rotation - np.eye(3)).max()
    if not error <= ROTATION_TOLERANCE:
        raise UserError(
            f"the rotation in {name} is not orthonormal: RᵀR differs from the identity by "
            f"{error:.2g}, allowed are {ROTATION_TOLERANCE}"
        )
    if np.linalg.det(rotation) < 0:
        raise UserError(f"the rotation in {name} mirrors: its determinant is negative")
    pose.flags.writeable = False
    return pose


def _intrinsics(fxfycxcy: Any, width: int, height: int) -> Float64[np.ndarray, "4"]:
    values = np.array(fxfycxcy, np.float64)
    if values.shape != (4,):
        raise UserError(f"fxfycxcy has shape {values.shape}, expected [4]")
    check_pixels(values, width, height)
    values.flags.writeable = False
    return values
