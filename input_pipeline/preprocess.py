"""From a stored frame to pixels and a camera, exactly as the published numbers were computed.

A frame of W × H pixels is resized to height `s` and width `round(int(s·W/H) / 8)·8` with Pillow's
Lanczos filter on 8-bit values; then, unless the full width is kept, the middle `s` × `s` pixels
are cut out. Other shapes, and windows elsewhere in the frame, are a `Crop`. Both are cut by
`lvsm_jax.scenes.photograph.ResizeCrop`. Images stay uint8: dividing by 255 is left to the device.

Stored intrinsics are shares of the frame's width, height, width and height
(`normalized_fxfycxcy`); those of an image are in its pixels (`fxfycxcy`).
"""

import dataclasses
import io

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, UInt8
from PIL import Image

from input_pipeline.alpha import default_alpha
from lvsm_jax.common.camera_limits import check_positions, check_shares
from lvsm_jax.common.errors import UserError
from lvsm_jax.scenes.photograph import ResizeCrop, resized_side
from lvsm_jax.scenes.pictures import (
    MAX_PIXELS,
    PICTURE_ERRORS,
    Alpha,
    colours_of,
    is_transparent,
)

Intrinsics = Float[np.ndarray, "4"]
ImageAndIntrinsics = tuple[UInt8[np.ndarray, "h w 3"], Float32[np.ndarray, "4"]]


FORMATS = ("JPEG", "PNG")  # of stored pictures


class FrameError(UserError):
    """A stored frame cannot be used. The message says why, and which frame where it is known."""


@dataclasses.dataclass(frozen=True)
class Crop:
    """Which part of a photograph becomes the image; by default the largest, in the middle."""

    height: int  # of the image in pixels
    width: int  # of the image in pixels
    share: float = 1.0  # sides of what is kept over those of the largest part of that shape
    place: tuple[float, float] = (0.5, 0.5)  # between left and right, top and bottom, in [0, 1]


def preprocess_frame(
    image: bytes,
    normalized_fxfycxcy: Intrinsics,
    image_height: int,
    square_crop: bool,
    alpha: Alpha | None = None,
) -> ImageAndIntrinsics:
    """The published preprocessing: pixels, and intrinsics in those pixels, of a stored picture.

    `alpha` says what a transparent one is put on. The size that counts is the picture's own. Of an
    upright frame, which the published set has none of, the middle square is as wide as the frame.
    FrameError where it cannot be decoded, or full width is none.
    """
    picture = _decode(image, alpha)
    width, height = picture.size
    kept = image_height if square_crop else resized_side(width, height, image_height)
    if kept == 0:
        raise FrameError(
            f"a frame of {width}×{height} pixels is 0 pixels wide at height {image_height}"
        )
    return _cut(picture, normalized_fxfycxcy, Crop(image_height, kept))


def crop_frame(
    image: bytes, normalized_fxfycxcy: Intrinsics, crop: Crop, alpha: Alpha | None = None
) -> ImageAndIntrinsics:
    """The same of any part of the frame; FrameError where the picture cannot be decoded."""
    return _cut(_decode(image, alpha), normalized_fxfycxcy, crop)


def crop_mask(image: bytes, crop: Crop) -> Bool[np.ndarray, "h w"]:
    """Pixels of what `crop_frame` shows that are of the object: at least half opaque.

    All of them, where the picture is not transparent.
    """
    picture = _open(image)
    if not is_transparent(picture):
        return np.ones((crop.height, crop.width), bool)
    opacity = picture.convert("RGBA").getchannel("A").convert("RGB")
    return ResizeCrop.cover(picture.size, **vars(crop)).pixels(opacity)[..., 0] >= 128


def _cut(picture: Image.Image, shares: Intrinsics, crop: Crop) -> ImageAndIntrinsics:
    try:
        check_shares(shares)
    except UserError as error:
        raise FrameError(str(error)) from None
    cut = ResizeCrop.cover(picture.size, **vars(crop))
    fxfycxcy = cut.intrinsics(shares * np.array(picture.size * 2, np.float64))
    return cut.pixels(picture), fxfycxcy.astype(np.float32)


def camera_to_world(w2c: Float[np.ndarray, "3 4"]) -> Float64[np.ndarray, "4 4"]:
    """The inverse of a world-to-camera matrix; FrameError where it has none or is not finite."""
    matrix = np.eye(4)
    matrix[:3] = w2c
    if not np.isfinite(matrix).all():
        raise FrameError("its camera is not finite")
    try:
        check_positions("w2c", matrix[:3, 3])
    except UserError as error:
        raise FrameError(str(error)) from None
    try:
        return np.linalg.inv(matrix)
    except np.linalg.LinAlgError:
        raise FrameError("its world-to-camera matrix has no inverse") from None


def _decode(image: bytes, alpha: Alpha | None) -> Image.Image:
    """The picture in colours, on its background where it is transparent in places."""
    picture = _open(image)
    if picture.format == "JPEG":
        return picture if picture.mode == "RGB" else picture.convert("RGB")
    if is_transparent(picture) and alpha is None:
        alpha = default_alpha()
    try:
        return Image.fromarray(colours_of(picture, alpha))
    except UserError as error:
        raise FrameError(f"cannot be decoded: {error}") from None


def _open(image: bytes) -> Image.Image:
    """The decoded picture as it is stored; FrameError where it is none, or damaged."""
    try:
        picture = Image.open(io.BytesIO(image), formats=FORMATS)
        if picture.size[0] * picture.size[1] > MAX_PIXELS:
            raise ValueError("{}×{} pixels are more than {}".format(*picture.size, MAX_PIXELS))
        picture.load()
    except PICTURE_ERRORS as error:
        unknown = isinstance(error, Image.UnidentifiedImageError)
        reason = f"not a {' or '.join(FORMATS)}" if unknown else error
        raise FrameError(f"cannot be decoded ({len(image)} bytes): {reason}") from error
    return picture
