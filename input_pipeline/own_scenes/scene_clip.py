"""A scene of posed photographs as a clip of a dataset."""

import dataclasses
import io
import pathlib
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float64
from PIL import Image

from input_pipeline.jpeg import encode_jpeg
from input_pipeline.own_scenes.import_scenes import SceneFolder
from input_pipeline.storage import Clip, Frame
from lvsm_jax.common.camera_limits import check_shares
from lvsm_jax.common.colours import Colour
from lvsm_jax.common.errors import UserError
from lvsm_jax.common.files import expand
from lvsm_jax.scenes.pictures import MAX_PIXELS, PICTURE_ERRORS, turn_by_exif
from lvsm_jax.scenes.readers import Scene, ScenePhotograph, read_scene
from lvsm_jax.scenes.readers.scene import naming

# Distance of a world's origin, in sizes of the scene, beyond which float32 would blur the cameras.
_FAR = 1e3
_FORMATS = {b"\xff\xd8": "JPEG", b"\x89P": "PNG"}  # by the first two bytes


@dataclasses.dataclass(frozen=True)
class ReadScene:
    """How a scene of photographs is read and stored."""

    quality: int  # of pictures that are no JPEGs yet, or must be changed
    images: str | None  # folder of the images inside each scene, where its reader finds none
    background: Colour | None  # of transparent pixels

    def __call__(self, scene: SceneFolder) -> tuple[Clip, list[str]]:
        """The clip of a scene, and notes; UserError where it is refused."""
        path = expand(scene.path)
        folder = path if path.is_dir() else path.parent
        images = None if self.images is None else folder / self.images
        read = read_scene(path, images=images, background=self.background)
        clip, notes = clip_of_scene(read, scene.name, self.quality)
        return dataclasses.replace(clip, url=scene.name), notes


def clip_of_scene(scene: Scene, key: str, quality: int) -> tuple[Clip, list[str]]:
    """The clip of a scene, whose photographs keep their order, and notes on what was changed.

    JPEGs are taken bit for bit where they are upright and of a pinhole camera; others become JPEGs
    of this quality. Where a photograph cannot be used the scene is refused as a whole: UserError
    names the photograph.
    """
    origin = world_origin(np.stack([one.camera.c2w[:3, 3] for one in scene.photographs]))

    def store(photograph: ScenePhotograph) -> tuple[bytes, bool]:
        jpeg = picture_as_it_is(photograph, ("JPEG",))
        return jpeg or encode_jpeg(photograph.load().pixels, quality), jpeg is None

    clip, notes = make_clip(scene, key, store, f"JPEGs of quality {quality}", origin)
    if origin.any():
        told = ", ".join(f"{value:.6g}" for value in origin)
        notes.append(f"the world's origin, which is far away, was moved to ({told})")
    return clip, notes


def make_clip(
    scene: Scene,
    key: str,
    store: Callable[[ScenePhotograph], tuple[bytes, bool]],
    become: str,
    origin: Float64[np.ndarray, "3"],
) -> tuple[Clip, list[str]]:
    """The clip of a scene, and notes on what was changed.

    `store` gives the bytes of a photograph's picture, and whether they are no longer those of its
    file; what changed ones `become` is told. The world's origin is moved to `origin`.
    """
    if not key.isprintable():
        raise UserError(f"its name {key!r} is not printable")
    frames, changed, sizes = [], 0, {}
    for photograph in scene.photographs:
        with naming(photograph.name):
            image, is_new = store(photograph)
            frames.append(_frame(photograph, image, origin))
        changed += is_new
        size = f"{photograph.camera.width}×{photograph.camera.height}"
        sizes[size] = sizes.get(size, 0) + 1
    notes = list(scene.notes)
    if changed:
        notes.append(f"{changed} of {len(frames)} pictures became {become}")
    if len(sizes) > 1:
        told = ", ".join(f"{count} of {size}" for size, count in sizes.items())
        notes.append(f"pictures of several sizes: {told}")
    return Clip(key, scene.source, frames), notes


def world_origin(positions: Float64[np.ndarray, "n 3"]) -> Float64[np.ndarray, "3"]:
    """Where the world's origin goes: nowhere, or where the scene is, if that is far from it."""
    middle = positions.mean(axis=0)
    size = np.abs(positions - middle).max()
    return middle if np.abs(middle).max() > _FAR * size else np.zeros(3)


def picture_as_it_is(photograph: ScenePhotograph, formats: Sequence[str]) -> bytes | None:
    """The bytes of a photograph's file, where that is of these formats and needs no change.

    `formats` are of JPEG and PNG. It is decoded, so that damage is found: UserError.
    """
    if photograph.lens is not None:
        return None
    camera, source = photograph.camera, photograph.source
    with open(source, "rb") if isinstance(source, pathlib.Path) else io.BytesIO(source) as file:
        data = file.read(2)
        if _FORMATS.get(data) not in formats:
            return None
        data += file.read()
    try:
        with Image.open(io.BytesIO(data), formats=formats) as image:
            stored, mode, turn = image.size, image.mode, turn_by_exif(image)
            of_jpeg = image.format == "JPEG"
            if (
                turn
                or (of_jpeg and mode not in ("L", "RGB"))
                or stored != (camera.width, camera.height)
            ):
                return None
            if stored[0] * stored[1] > MAX_PIXELS:
                raise UserError("{}×{} pixels are more than {}".format(*stored, MAX_PIXELS))
            if of_jpeg:
                image.draft(mode, (1, 1))  # reads every byte, yet computes an eighth of the size
            image.load()
    except PICTURE_ERRORS as error:
        raise UserError(f"cannot be decoded: {error}") from error
    return data


def _frame(photograph: ScenePhotograph, image: bytes, origin: Float64[np.ndarray, "3"]) -> Frame:
    camera = photograph.camera
    sides = np.array([camera.width, camera.height] * 2, np.float64)
    shares = (camera.fxfycxcy / sides).astype(np.float32)
    check_shares(shares)
    c2w = camera.c2w.copy()
    c2w[:3, 3] -= origin
    w2c = np.linalg.inv(c2w)[:3].astype(np.float32)
    return Frame(image, shares, w2c, timestamp=0)
