"""JPEGs of pictures that come as pixels, or in another format."""

import io

from jaxtyping import UInt8
from numpy import ndarray
from PIL import Image

QUALITY = 95


def encode_jpeg(pixels: UInt8[ndarray, "h w 3"], quality: int = QUALITY) -> bytes:
    """The JPEG, with its colours at full resolution (4:4:4): the same bytes every time."""
    jpeg = io.BytesIO()
    Image.fromarray(pixels).save(jpeg, "JPEG", quality=quality, subsampling=0)
    return jpeg.getvalue()
