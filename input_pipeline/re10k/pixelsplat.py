"""RealEstate10K as pixelSplat stores it: folders of chunks, each a `torch.save`d list of clips.

A clip is a dict of `key` and `url` (text), `timestamps` (int64[n], microseconds), `cameras`
(float32[n, 18]: fx, fy, cx, cy divided by the image's size, two zeros, then the 3×4 OpenCV
world-to-camera matrix row by row) and `images` (n uint8 tensors, each the bytes of one JPEG).
Chunks are downloads of half a terabyte, so everything is checked before it is believed: a clip is
taken as a whole, with its bytes as they are, or refused as a whole with the reason.
"""

import io
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Float32
from PIL import Image

from input_pipeline.storage import Clip, Frame
from lvsm_jax.common.camera_limits import check_positions, check_shares
from lvsm_jax.common.errors import UserError
from lvsm_jax.common.files import expand
from lvsm_jax.scenes.pictures import MAX_PIXELS
from lvsm_jax.weights import torch_file

_FIELDS = ("key", "url", "timestamps", "cameras", "images")
_FREE_BYTES, _MOST_COPIES = 64 * 2**20, 2  # of images, beyond which a chunk repeats itself
_ROTATION_TOLERANCE = 1e-3  # of any entry of R Rᵀ; float32 cameras of the real set are within 1e-7


class ChunkError(UserError):
    """Why a chunk as a whole cannot be read."""


class ClipError(UserError):
    """What is wrong with a clip, for the report of refusals."""


def read_chunk(path: epath.PathLike, *, verify: bool) -> list[tuple[str, Any]]:
    """The clips of a chunk, unchecked, by their keys; ChunkError where there is no list of them.

    The fourth element has the key "#3" if it has none of its own. `verify` compares the checksums
    of the file.
    """
    try:
        clips = torch_file.load(path, verify=verify)
    except torch_file.TorchFileError as error:
        raise ChunkError(str(error).removeprefix(f"{path}: ")) from error
    if not isinstance(clips, list):
        raise ChunkError(f"expected a list of clips, found a {type(clips).__name__}")
    _check_total(clips, _FREE_BYTES + _MOST_COPIES * expand(path).stat().length)
    keys = [fields.get("key") if isinstance(fields, dict) else None for fields in clips]
    keys = [key if _is_key(key) else f"#{position}" for position, key in enumerate(keys)]
    return list(zip(keys, clips, strict=True))


def _check_total(clips: list[Any], limit: int) -> None:
    """Raises ChunkError for more bytes of images than a file of this size can honestly hold.

    A clip may be named again and again, and an image in it; counting ends where the limit is met.
    """
    total = 0
    for fields in clips:
        images = fields.get("images") if isinstance(fields, dict) else None
        for image in images if isinstance(images, list) else ():
            # Others are refused for what they are.
            whole = isinstance(image, np.ndarray) and image.flags.c_contiguous
            total += 1 + (image.nbytes if whole else 0)
            if total > limit:
                raise ChunkError(f"its images are more than {limit} bytes: some are there twice")


def _is_key(key: Any) -> bool:
    return isinstance(key, str) and key != "" and key.isprintable()


def check_clip(fields: Any, *, verify: bool) -> Clip:
    """The clip, after all checks, or a ClipError with the reason.

    `verify` decodes every JPEG; without it only their headers and end markers are looked at.
    """
    if not isinstance(fields, dict):
        raise ClipError(f"expected a dict, found a {type(fields).__name__}")
    if missing := [name for name in _FIELDS if name not in fields]:
        raise ClipError(f"has no {', '.join(missing)}")
    for name in ("key", "url"):
        if not isinstance(fields[name], str):
            raise ClipError(f"{name}: expected text, found a {type(fields[name]).__name__}")
    if not _is_key(fields["key"]):
        raise ClipError("key: is empty or not printable")
    timestamps, cameras, images = fields["timestamps"], fields["cameras"], fields["images"]
    _check_array("timestamps", timestamps, np.int64)
    _check_array("cameras", cameras, np.float32, 18)
    if not isinstance(images, list):
        raise ClipError(f"images: expected a list, found a {type(images).__name__}")
    if not len(images) == len(cameras) == len(timestamps):
        raise ClipError(
            f"{len(images)} images, {len(cameras)} cameras and {len(timestamps)} timestamps"
        )
    if not images:
        raise ClipError("has no frames")
    _check_cameras(cameras)
    frames, first_size = [], None
    everything = zip(timestamps.tolist(), cameras, images, strict=True)
    for position, (timestamp, camera, image) in enumerate(everything):
        try:
            jpeg, size = _check_image(image, verify)
            first_size = first_size or size
            if size != first_size:
                raise ClipError("image is {}×{}, frame 0 is {}×{}".format(*size, *first_size))
        except ClipError as error:
            raise ClipError(f"frame {position}: {error}") from error
        w2c = camera[6:].reshape(3, 4).copy()
        frames.append(Frame(jpeg, camera[:4].copy(), w2c, timestamp))
    return Clip(fields["key"], fields["url"], frames)


def _check_array(name: str, array: Any, dtype: type, *inner: int) -> None:
    """ClipError unless it is an array of this type and any length, whose elements are `inner`."""
    expected = f"{name}: expected {np.dtype(dtype)}[{', '.join(['n', *map(str, inner)])}]"
    if not isinstance(array, np.ndarray):
        raise ClipError(f"{expected}, found a {type(array).__name__}")
    if array.dtype != dtype or not array.ndim or array.shape[1:] != inner:
        raise ClipError(f"{expected}, found {array.dtype}{list(array.shape)}")


def _check_cameras(cameras: Float32[np.ndarray, "n 18"]) -> None:
    """Raises ClipError at the first frame whose camera is not a finite, rigid pinhole camera."""
    rotations = cameras[:, 6:].reshape(-1, 3, 4)[:, :, :3].astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        skew = np.abs(rotations @ rotations.swapaxes(1, 2) - np.eye(3)).max(axis=(1, 2))
        turned = np.linalg.det(rotations)
    for frame, camera in enumerate(cameras):
        if not np.isfinite(camera).all():
            raise ClipError(f"frame {frame}: its camera is not finite")
        if camera[:2].min() <= 0:
            raise ClipError(f"frame {frame}: fx, fy = {camera[0]:g}, {camera[1]:g} must be > 0")
        try:
            check_shares(camera[:4])
            check_positions("w2c", camera[[9, 13, 17]])
        except UserError as error:
            raise ClipError(f"frame {frame}: {error}") from None
        if camera[4:6].any():
            raise ClipError(f"frame {frame}: numbers 5 and 6 of its camera must be 0 (distortion)")
        if skew[frame] > _ROTATION_TOLERANCE:
            raise ClipError(
                f"frame {frame}: its camera is not a rotation, R Rᵀ is {skew[frame]:.2g} off the"
                f" identity (limit {_ROTATION_TOLERANCE:g})"
            )
        if turned[frame] < 0:
            raise ClipError(f"frame {frame}: its camera is a reflection (determinant -1)")


def _check_image(image: Any, verify: bool) -> tuple[bytes, tuple[int, int]]:
    """A whole JPEG, its width and height; ClipError where it is none."""
    _check_array("image", image, np.uint8)
    if not image.flags.c_contiguous:  # may claim any size from a few bytes
        raise ClipError("image: its bytes do not lie one after the other")
    jpeg = image.tobytes()
    if jpeg[:2] != b"\xff\xd8":
        raise ClipError(f"image is not a JPEG, it starts with {jpeg[:4].hex() or 'nothing'}")
    if jpeg[-2:] != b"\xff\xd9":
        raise ClipError("JPEG is truncated, it has no end marker")
    try:
        with Image.open(io.BytesIO(jpeg), formats=["JPEG"]) as image:
            size = image.size
            if image.size[0] * image.size[1] > MAX_PIXELS:
                raise ClipError("{}×{} pixels are more than {}".format(*image.size, MAX_PIXELS))
            if verify:
                image.draft("RGB", (1, 1))  # reads every byte, yet computes an eighth of the size
                image.load()
    except Exception as error:
        raise ClipError(f"JPEG cannot be decoded: {error}") from error
    return jpeg, size
