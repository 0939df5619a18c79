"""Views of an object as a clip of a dataset: the bytes of its pictures, with their transparency."""

import dataclasses
import io
import pathlib

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from input_pipeline.own_scenes.import_scenes import SceneFolder
from input_pipeline.own_scenes.scene_clip import make_clip, picture_as_it_is
from input_pipeline.png import encode_png
from input_pipeline.storage import Clip
from lvsm_jax.common.colours import WHITE, colour_of, name_of
from lvsm_jax.common.errors import UserError
from lvsm_jax.scenes.pictures import is_transparent, open_picture, turn_by_exif
from lvsm_jax.scenes.readers import ScenePhotograph
from lvsm_jax.scenes.readers.objects import look_beside, read_object

STRAIGHT = "none"  # what colours lie on that are straight


@dataclasses.dataclass(frozen=True)
class ReadObject:
    """How an object is read; see `lvsm import-objects` for what the fields mean."""

    layout: str | None
    fov: float | None  # degrees
    composited: str | None  # a colour, or `STRAIGHT`; None where nobody says

    def __call__(self, folder: SceneFolder) -> tuple[Clip, list[str]]:
        """The clip of an object, and notes; UserError where it is refused."""
        found, layout = read_object(pathlib.Path(folder.path), self.layout, self.fov)

        def store(photograph: ScenePhotograph) -> tuple[bytes, bool]:
            data = picture_as_it_is(photograph, ("JPEG", "PNG"))
            stored = data or as_png(photograph)
            self._check_clear(clear_pixels(stored))
            return stored, data is None

        clip, notes = make_clip(found, folder.name, store, "PNGs", np.zeros(3))
        if self.layout is None:
            notes.insert(0, f"read as {layout}")
        notes += look_beside(found)
        return dataclasses.replace(clip, url=folder.name), notes

    def _check_clear(self, clear: UInt8[np.ndarray, "n 3"] | None) -> None:
        """UserError where the clear pixels of a picture are not as they are said to be."""
        if clear is None or not len(clear):
            return
        if self.composited is None and (clear == WHITE).all():
            raise UserError(
                "its clear pixels are white: do its colours lie on white already? Say "
                f"--composited=white, or --composited={STRAIGHT} where they are straight"
            )
        if self.composited in (None, STRAIGHT):
            return
        colour = colour_of(self.composited)
        if (others := (clear != colour).any(axis=1)).any():
            raise UserError(
                f"{others.sum()} of its {len(clear)} clear pixels are not {name_of(colour)}: its "
                f"colours do not lie on it (--composited={self.composited})"
            )


def clear_pixels(image: bytes) -> UInt8[np.ndarray, "n 3"] | None:
    """The colours of pixels of alpha 0; None for a picture that is not transparent."""
    with Image.open(io.BytesIO(image)) as picture:
        if not is_transparent(picture):
            return None
        pixels = np.asarray(picture.convert("RGBA"))
    return pixels[pixels[..., 3] == 0][:, :3]


def as_png(photograph: ScenePhotograph) -> bytes:
    """A picture of another format, or that is to be changed, as a PNG with its transparency."""
    source = photograph.source
    with open(source, "rb") if isinstance(source, pathlib.Path) else io.BytesIO(source) as file:
        picture = open_picture(file)
        keep = is_transparent(picture) and photograph.lens is None and not turn_by_exif(picture)
        pixels = np.asarray(picture.convert("RGBA")) if keep else photograph.load().pixels
    return encode_png(pixels)
