"""Photographs of a room whose walls have texture enough to be matched, with known cameras."""

import functools
import pathlib

import numpy as np
from PIL import Image
from scipy import ndimage

from lvsm_jax.scenes.photograph import PosedCamera

WIDTH, HEIGHT, FOCAL = 480, 360, 400.0
_WALLS = ((2, 5.0), (0, -2.5), (0, 2.5), (1, 1.5), (1, -2.0))  # axis and where on it
_TEXELS = 40  # of a unit


def cameras(count: int) -> list[PosedCamera]:
    """Cameras that go sideways, and turn a little."""
    result = []
    for i in range(count):
        angle = -0.05 * (i - (count - 1) / 2)
        c2w = np.eye(4)
        c2w[:3, :3] = [
            [np.cos(angle), 0, np.sin(angle)],
            [0, 1, 0],
            [-np.sin(angle), 0, np.cos(angle)],
        ]
        c2w[:3, 3] = [0.35 * (i - (count - 1) / 2), 0.05 * (i % 2), 0.1 * i]
        intrinsics = [FOCAL, FOCAL, WIDTH / 2, HEIGHT / 2]
        result.append(PosedCamera(c2w, intrinsics, WIDTH, HEIGHT))
    return result


def photograph(camera: PosedCamera) -> np.ndarray:
    """What a camera sees, uint8 [h, w, 3]."""
    columns, rows = np.meshgrid(np.arange(WIDTH) + 0.5, np.arange(HEIGHT) + 0.5)
    fx, fy, cx, cy = camera.fxfycxcy
    rays = np.stack([(columns - cx) / fx, (rows - cy) / fy], axis=-1)
    rays = np.concatenate([rays, np.ones((HEIGHT, WIDTH, 1))], axis=-1) @ camera.c2w[:3, :3].T
    centre, nearest = camera.c2w[:3, 3], np.full((HEIGHT, WIDTH), np.inf)
    picture = np.zeros((HEIGHT, WIDTH, 3))
    for (axis, place), texture in zip(_WALLS, _textures(), strict=True):
        with np.errstate(divide="ignore"):
            depth = (place - centre[axis]) / rays[..., axis]
        seen = (depth > 0) & (depth < nearest)
        hits = centre + np.where(seen, depth, 1)[..., None] * rays
        flat = np.delete(hits, axis, axis=-1) * _TEXELS
        for channel in range(3):
            at = np.moveaxis(flat, -1, 0)
            shown = ndimage.map_coordinates(texture[..., channel], at, order=1, mode="grid-wrap")
            picture[..., channel] = np.where(seen, shown, picture[..., channel])
        nearest = np.where(seen, depth, nearest)
    return np.clip(picture, 0, 255).astype(np.uint8)


def write(folder: pathlib.Path, count: int) -> list[PosedCamera]:
    """Writes so many photographs, 0.png and on, to a new folder; their cameras."""
    folder.mkdir()
    posed = cameras(count)
    for i, camera in enumerate(posed):
        Image.fromarray(photograph(camera)).save(folder / f"{i}.png")
    return posed


@functools.cache
def _textures() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [_texture(rng) for _ in _WALLS]


def _texture(rng: np.random.Generator) -> np.ndarray:
    """Blots of many sizes, which do not repeat within the room."""
    size = 12 * _TEXELS
    layers = [
        ndimage.gaussian_filter(rng.normal(size=(size, size, 3)), (s, s, 0), mode="wrap") * s
        for s in (1.2, 3, 8)
    ]
    total = sum(layers)
    return 128 + 60 * total / total.std()
