"""Picture files: what is decoded of them, turned, put on a background. NumPy and Pillow only.

Nothing is guessed: which way up a picture is, is told by the size that its camera states, and
transparent pixels need a background that somebody chose.
"""

import dataclasses
import importlib.util
import io
import re
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import ExifTags, Image, ImageOps

from lvsm_jax.common.colours import Colour
from lvsm_jax.common.errors import UserError

MAX_PIXELS = 64_000_000

# What Pillow raises for damaged files: OSError for most, the others from parsing headers.
PICTURE_ERRORS = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "PPM")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".ppm", ".heic", ".heif")
_HEIC = re.compile(rb"....ftyp(heic|heix|heim|heis|hevc|hevx|mif1|msf1)", re.DOTALL)

_COLOUR_MODES = ("1", "L", "P", "RGB", "CMYK", "YCbCr")
_ALPHA_MODES = ("LA", "PA", "RGBA")
_16_BIT_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I")

_GAMMA = 2.2  # of colours that were put on a background in linear light


@dataclasses.dataclass(frozen=True)
class Alpha:
    """What transparent pictures are put on, and what their colours lie on already."""

    background: Colour
    # Colours of renders may have been put on this one already, in linear light; None: straight
    # ones, as PNG has them.
    composited: Colour | None = None

    def put(self, pixels: UInt8[np.ndarray, "h w 4"]) -> UInt8[np.ndarray, "h w 3"]:
        """The pixels on the background, to 8 bits.

        Straight colours are blended in the stored gamma. Those that lie on this background are
        taken as they are; those on another are moved to it in linear light, as they were put there.
        """
        colours, alpha = pixels[..., :3], pixels[..., 3:].astype(np.float32) / 255
        if self.composited == self.background:
            return colours.copy()
        if self.composited is None:
            blended = colours * alpha + np.float32(self.background) * (1 - alpha)
            return np.rint(blended).astype(np.uint8)
        before, after = (_linear(np.uint8(x)) for x in (self.composited, self.background))
        moved = _linear(colours) + (1 - alpha) * (after - before)
        return np.rint(255 * np.clip(moved, 0, 1) ** (1 / _GAMMA)).astype(np.uint8)


def _linear(colours: UInt8[np.ndarray, "*n 3"]) -> Float32[np.ndarray, "*n 3"]:
    return (colours.astype(np.float32) / 255) ** np.float32(_GAMMA)


def open_picture(file: io.BufferedIOBase) -> Image.Image:
    """A picture that is not yet decoded; PICTURE_ERRORS for what is none or is damaged."""
    head = file.read(12)
    file.seek(0)
    if not _HEIC.match(head):
        return Image.open(file, formats=FORMATS)
    if importlib.util.find_spec("pillow_heif") is None:
        raise UserError("a HEIC picture, which needs pillow-heif: pip install 'lvsm_jax[heic]'")
    import pillow_heif

    pillow_heif.register_heif_opener()
    # It comes upright: libheif turns it, and the tag that is left says so.
    return Image.open(file, formats=("HEIF",))


def turn_by_exif(image: Image.Image) -> int | None:
    """EXIF's orientation of a picture that it says to turn; None for an upright one."""
    orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    return None if orientation in (0, 1) else orientation  # 0 is what some cameras write for 1


def sizes_of(image: Image.Image) -> list[tuple[int, int]]:
    """Width and height of an opened picture: as stored and, where EXIF lays it down, as turned."""
    width, height = image.size
    lies = (turn_by_exif(image) or 1) >= 5
    return [(width, height), (height, width)] if lies and width != height else [(width, height)]


def read_pixels(
    file: io.BufferedIOBase,
    size: tuple[int, int] | None = None,
    *,
    background: Colour | Alpha | None = None,
    max_pixels: int = MAX_PIXELS,
) -> UInt8[np.ndarray, "h w 3"]:
    """The pixels of a picture file, 8 bits a colour.

    Grey, CMYK and palettes become colours, 16 bits are rounded to 8. A picture that EXIF turns by a
    quarter is turned where the camera's `size`, width and height, is that of the turned one, and
    left as it is stored where it is that. Transparent pixels are put on the `background`, in the
    stored gamma; a picture whose transparent pixels all have its colour already lies on it, unless
    an Alpha says what it lies on.
    UserError for more than `max_pixels` pixels, which are not decoded; a turn of which the size
    does not tell whether the camera is of before or after; transparency without a background.
    PICTURE_ERRORS for what is damaged or no picture.
    """
    image = open_picture(file)
    width, height = image.size
    if width * height > max_pixels:
        raise UserError(f"{width}×{height} pixels are more than {max_pixels}")
    if orientation := turn_by_exif(image):
        sizes = sizes_of(image)
        if len(sizes) == 1 or size not in sizes:
            raise UserError(
                f"EXIF orientation {orientation} would turn the picture, so that it is not clear "
                "what its intrinsics belong to: turn its pixels, or remove the tag"
            )
        if size == sizes[1]:
            image = _turned(image, orientation)
    return colours_of(image, background)


def read_upright(
    file: io.BufferedIOBase, *, background: Colour | None = None, max_pixels: int = MAX_PIXELS
) -> tuple[UInt8[np.ndarray, "h w 3"], dict[int, Any]]:
    """The pixels of a picture without a camera, turned as EXIF says, and its EXIF by tags.

    Colours and errors are as of `read_pixels`; EXIF that cannot be read is as none.
    """
    image = open_picture(file)
    width, height = image.size
    if width * height > max_pixels:
        raise UserError(f"{width}×{height} pixels are more than {max_pixels}")
    try:
        exif = image.getexif()
        tags = dict(exif) | dict(exif.get_ifd(ExifTags.IFD.Exif))
    except PICTURE_ERRORS:
        tags = {}
    return colours_of(ImageOps.exif_transpose(image), background), tags


def _turned(image: Image.Image, orientation: int) -> Image.Image:
    methods = {5: "TRANSPOSE", 6: "ROTATE_270", 7: "TRANSVERSE", 8: "ROTATE_90"}
    return image.transpose(Image.Transpose[methods[orientation]])


def colours_of(image: Image.Image, background: Colour | Alpha | None) -> UInt8[np.ndarray, "h w 3"]:
    """The colours of a picture that stands as it is stored; errors are those of `read_pixels`."""
    if image.mode in _16_BIT_MODES:
        return _from_16_bits(image)
    if image.mode not in _COLOUR_MODES + _ALPHA_MODES:
        raise UserError(f"pixels of type {image.mode}, expected 8 or 16 bits a colour")
    image.load()
    if not is_transparent(image):
        return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    pixels = np.asarray(image.convert("RGBA"))
    alpha = pixels[..., 3:]
    if alpha.min() == 255:
        return pixels[..., :3].copy()
    if background is None:
        raise UserError(
            "the picture is transparent in places: put it on a background first, or say on which "
            "(--background=white)"
        )
    if isinstance(background, Alpha):
        return background.put(pixels)
    clear = pixels[..., :3][alpha[..., 0] == 0]
    if len(clear) and (clear == background).all():
        return pixels[..., :3].copy()
    return Alpha(background).put(pixels)


def is_transparent(image: Image.Image) -> bool:
    """Whether a picture may be transparent in places, by its mode."""
    return image.mode in _ALPHA_MODES or "transparency" in image.info


def is_transparent_file(data: bytes) -> bool:
    """The same of the bytes of a picture file, of which only the first are looked at."""
    with Image.open(io.BytesIO(data)) as image:
        return is_transparent(image)


def _from_16_bits(image: Image.Image) -> UInt8[np.ndarray, "h w 3"]:
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise UserError(f"grey values from {values.min()} to {values.max()}, expected 16 bits")
    grey = np.rint(values / 257).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)
