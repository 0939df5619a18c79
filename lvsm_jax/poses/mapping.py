"""Maps: cameras and points of matched photographs, incremental or global. In the worker's process.

One thread and a fixed seed, so that the same photographs give the same cameras.
"""

import pathlib
import tempfile
from collections.abc import Callable, Sequence

import numpy as np
import pycolmap

from lvsm_jax.poses.features import SEED
from lvsm_jax.poses.gates import Lens, Map
from lvsm_jax.poses.pictures import Upright

_THREADS = 1
_SMALLEST_MODEL = 2  # photographs

INCREMENTAL, GLOBAL = "incremental", "global"
OTHER_SEEDS = (SEED + 1, SEED + 2)


def map_incrementally(
    database: pathlib.Path, folder: pathlib.Path, seed: int = SEED, told: Callable | None = None
) -> pycolmap.Reconstruction | None:
    """The map with most photographs of those that grow from a pair; None where there is none."""
    options = pycolmap.IncrementalPipelineOptions()
    options.min_model_size = _SMALLEST_MODEL
    options.random_seed = seed
    options.num_threads = _THREADS
    options.extract_colors = False
    with tempfile.TemporaryDirectory(dir=database.parent) as place:
        maps = pycolmap.incremental_mapping(
            database, folder, place, options=options, next_image_callback=told
        )
    return _largest(maps)


def map_globally(
    database: pathlib.Path, folder: pathlib.Path, seed: int = SEED
) -> pycolmap.Reconstruction | None:
    """The map with most photographs, of those made of all pairs at once; None if there is none."""
    options = pycolmap.GlobalPipelineOptions()
    options.min_model_size = _SMALLEST_MODEL
    options.random_seed = seed
    options.num_threads = _THREADS
    options.mapper.random_seed = seed
    options.mapper.num_threads = _THREADS
    options.mapper.rotation_averaging.random_seed = seed
    options.mapper.global_positioning.random_seed = seed
    with tempfile.TemporaryDirectory(dir=database.parent) as place:
        maps = pycolmap.global_mapping(database, folder, place, options=options)
    return _largest(maps)


def _largest(maps: dict[int, pycolmap.Reconstruction]) -> pycolmap.Reconstruction | None:
    return max(
        maps.values(), key=lambda one: (one.num_reg_images(), one.num_points3D()), default=None
    )


def describe(
    reconstruction: pycolmap.Reconstruction, method: str, photographs: Sequence[Upright]
) -> Map:
    """A map in numbers, by the photographs' names."""
    names = {photograph.file: photograph.name for photograph in photographs}
    images = [image for image in reconstruction.images.values() if image.has_pose]
    images.sort(key=lambda image: image.image_id)
    return Map(
        method,
        {names[image.name]: _matrix(image) for image in images},
        {names[image.name]: _lens(image.camera) for image in images},
        {names[image.name]: image.num_points3D for image in images},
        reconstruction.compute_mean_reprojection_error(),
    )


def _matrix(image: pycolmap.Image) -> np.ndarray:
    return np.concatenate([image.cam_from_world().matrix(), [[0, 0, 0, 1.0]]])


def _lens(camera: pycolmap.Camera) -> Lens:
    focal, cx, cy, k = camera.params.tolist()
    return Lens(focal, (cx, cy), k, (camera.width, camera.height))


METHODS = {INCREMENTAL: map_incrementally, GLOBAL: map_globally}
