"""A scene of posed photographs as a clip of a dataset."""

import io
import pathlib

import numpy as np
from jaxtyping import Float64
from PIL import Image

from input_pipeline.jpeg import encode_jpeg
from input_pipeline.storage import Clip, Frame
from lvsm_jax.common.camera_limits import check_shares
from lvsm_jax.common.errors import UserError
from lvsm_jax.scenes.pictures import MAX_PIXELS, PICTURE_ERRORS, turn_by_exif
from lvsm_jax.scenes.readers import Scene, ScenePhotograph
from lvsm_jax.scenes.readers.scene import naming

# Distance of a world's origin, in sizes of the scene, beyond which float32 would blur the cameras.
_FAR = 1e3


def clip_of_scene(scene: Scene, key: str, quality: int) -> tuple[Clip, list[str]]:
    """The clip of a scene, whose photographs keep their order, and notes on what was changed.

    JPEGs are taken bit for bit where they are upright and of a pinhole camera; others become JPEGs
    of this quality. Where a photograph cannot be used the scene is refused as a whole: UserError
    names the photograph.
    """
    if not key.isprintable():
        raise UserError(f"its name {key!r} is not printable")
    origin = world_origin(np.stack([one.camera.c2w[:3, 3] for one in scene.photographs]))
    frames, encoded, sizes = [], 0, {}
    for photograph in scene.photographs:
        with naming(photograph.name):
            jpeg = jpeg_as_it_is(photograph)
            if jpeg is None:
                encoded += 1
                jpeg = encode_jpeg(photograph.load().pixels, quality)
            frames.append(_frame(photograph, jpeg, origin))
        size = f"{photograph.camera.width}×{photograph.camera.height}"
        sizes[size] = sizes.get(size, 0) + 1
    notes = list(scene.notes)
    if encoded:
        count = len(frames)
        notes.append(f"{encoded} of {count} pictures became JPEGs of quality {quality}")
    if len(sizes) > 1:
        told = ", ".join(f"{count} of {size}" for size, count in sizes.items())
        notes.append(f"pictures of several sizes: {told}")
    if origin.any():
        told = ", ".join(f"{value:.6g}" for value in origin)
        notes.append(f"the world's origin, which is far away, was moved to ({told})")
    return Clip(key, scene.source, frames), notes


def world_origin(positions: Float64[np.ndarray, "n 3"]) -> Float64[np.ndarray, "3"]:
    """Where the world's origin goes: nowhere, or where the scene is, if that is far from it."""
    middle = positions.mean(axis=0)
    size = np.abs(positions - middle).max()
    return middle if np.abs(middle).max() > _FAR * size else np.zeros(3)


def jpeg_as_it_is(photograph: ScenePhotograph) -> bytes | None:
    """The bytes of a photograph's file, where that is a JPEG that needs no change.

    It is decoded, so that damage is found: UserError.
    """
    if photograph.lens is not None:
        return None
    camera, source = photograph.camera, photograph.source
    with open(source, "rb") if isinstance(source, pathlib.Path) else io.BytesIO(source) as file:
        data = file.read(2)
        if data != b"\xff\xd8":
            return None
        data += file.read()
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            stored, mode, turn = image.size, image.mode, turn_by_exif(image)
            if turn or mode not in ("L", "RGB") or stored != (camera.width, camera.height):
                return None
            if stored[0] * stored[1] > MAX_PIXELS:
                raise UserError("{}×{} pixels are more than {}".format(*stored, MAX_PIXELS))
            image.draft(mode, (1, 1))  # reads every byte, yet computes an eighth of the size
            image.load()
    except PICTURE_ERRORS as error:
        raise UserError(f"cannot be decoded: {error}") from error
    return data


def _frame(photograph: ScenePhotograph, jpeg: bytes, origin: Float64[np.ndarray, "3"]) -> Frame:
    camera = photograph.camera
    sides = np.array([camera.width, camera.height] * 2, np.float64)
    shares = (camera.fxfycxcy / sides).astype(np.float32)
    check_shares(shares)
    c2w = camera.c2w.copy()
    c2w[:3, 3] -= origin
    w2c = np.linalg.inv(c2w)[:3].astype(np.float32)
    return Frame(jpeg, shares, w2c, timestamp=0)
