"""PNGs of pictures that come as pixels: nothing is lost, and transparency is kept."""

import io

from jaxtyping import UInt8
from numpy import ndarray
from PIL import Image


def encode_png(pixels: UInt8[ndarray, "h w c"]) -> bytes:
    """The PNG of 3 or 4 channels, the same bytes every time."""
    png = io.BytesIO()
    Image.fromarray(pixels).save(png, "PNG")
    return png.getvalue()
