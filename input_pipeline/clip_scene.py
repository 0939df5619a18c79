"""A clip of a dataset as a scene of posed photographs."""

import contextlib
import dataclasses
import io
import os
import re

import numpy as np

from input_pipeline.alpha import read_alpha
from input_pipeline.storage import SplitReader
from lvsm_jax.common.colours import Colour
from lvsm_jax.common.files import expand
from lvsm_jax.scenes.photograph import PosedCamera
from lvsm_jax.scenes.readers import Scene, SceneError, ScenePhotograph, read_scene
from lvsm_jax.scenes.readers.scene import naming, picture_size_of, some_of

_SPLIT = re.compile(r"/(\w+):")


def open_scene(
    path: str | os.PathLike,
    *,
    images: str | os.PathLike | None = None,
    background: Colour | None = None,
) -> Scene:
    """Reads a clip of a dataset, `DATASET/SPLIT:KEY`, or any other scene as `read_scene` does.

    UserError names the file, the place in it, and what was expected. A clip holds its images
    itself, and goes with no folder of `images`. Its transparent pixels are put on the `background`,
    else on that which the dataset states.
    """
    path = os.path.expanduser(os.fspath(path))
    if os.path.exists(path):
        return read_scene(path, images=images, background=background)
    # Keys may hold anything: where there are several places to cut, the directory decides.
    cuts = [(path[: cut.start()], cut[1], path[cut.end() :]) for cut in _SPLIT.finditer(path)]
    there = (cut for cut in cuts if expand(cut[0]).is_dir())
    directory, split, key = next(there, cuts[-1] if cuts else ("", "", ""))
    if not (directory and key):
        raise SceneError(f"no scene {path}: no such file or folder, nor is it DATASET/SPLIT:KEY")
    if images is not None:
        raise SceneError(f"{path} is a clip of a dataset, which holds its images itself")
    photographs, stated = [], read_alpha(directory)
    with contextlib.closing(SplitReader(directory, split)) as reader:
        keys = reader.scenes.key.tolist()
        if key not in keys:
            there = some_of(keys)
            raise SceneError(f"{directory} has no clip {key!r} in split {split!r}; it has {there}")
        row = keys.index(key)
        first, count = int(reader.scenes.first_frame[row]), int(reader.scenes.num_frames[row])
        for i, frame in enumerate(reader.frames(range(first, first + count))):
            with naming(reader.describe(first + i)):
                size = picture_size_of(io.BytesIO(frame.image))
                fxfycxcy = frame.normalized_fxfycxcy * np.array(size * 2, np.float64)
                camera = PosedCamera.from_w2c(frame.w2c, fxfycxcy, *size)
            photographs.append(ScenePhotograph(f"frame-{i}", camera, frame.image))
    if stated is not None:
        alpha = stated.alpha
        background = (
            alpha if background is None else dataclasses.replace(alpha, background=background)
        )
    return Scene(path, photographs, []).on(background)
