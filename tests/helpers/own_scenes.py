"""Scenes of posed photographs on disk, as people have them."""

import json

import numpy as np
from PIL import Image

SIZE = 48, 32


def picture(seed: int, size=SIZE) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), np.uint8)
    return Image.fromarray(pixels).resize(size)


def w2c_of(position: int) -> list:
    matrix = np.eye(4)
    matrix[0, 3] = -0.1 * position
    return matrix.tolist()


def write_scene(folder, count=4, size=SIZE, suffix="jpg", mode="RGB", seed=0, far=0.0, **save):
    """A scene of `cameras.json`."""
    (folder / "images").mkdir(parents=True)
    frames = []
    for i in range(count):
        file = f"images/{i}.{suffix}"
        picture(seed + i, size).convert(mode).save(folder / file, **save)
        w2c = np.array(w2c_of(i))
        w2c[1, 3] = -far
        camera = {"w": size[0], "h": size[1], "fxfycxcy": [40, 40, size[0] / 2, size[1] / 2]}
        frames.append({"file": file, "w2c": w2c.tolist(), **camera})
    (folder / "cameras.json").write_text(json.dumps({"frames": frames}))
