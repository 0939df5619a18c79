"""Features and matches of photographs, in COLMAP's database. Runs in the worker's process.

Cameras and images are written first, so that features can be extracted, and pairs matched, some at
a time: progress is told in between.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence

import pycolmap

from lvsm_jax.poses.pictures import USUAL_FOCAL, Upright

SEED = 0
LENS = "SIMPLE_RADIAL"  # f, cx, cy, k

MOST_FEATURES = 8192  # of a photograph
_AT_A_TIME = 4  # photographs
_PAIRS_AT_A_TIME = 24

Told = Callable[[int, int], None]  # how many are done, and of how many


def write_database(path: pathlib.Path, photographs: Sequence[Upright]) -> pycolmap.Database:
    """Makes a database of the photographs, with a camera for each group, and returns it open.

    Ids of images are 1 and up, in the order given.
    """
    database = pycolmap.Database.open(path)
    rigs = {}
    for i, photograph in enumerate(photographs, start=1):
        if photograph.group not in rigs:
            rigs[photograph.group] = _write_camera(database, photograph, len(rigs) + 1)
        camera = rigs[photograph.group]
        image = pycolmap.Image(name=photograph.file, camera_id=camera, image_id=i)
        database.write_image(image, use_image_id=True)
        frame = pycolmap.Frame(frame_id=i, rig_id=camera)
        frame.add_data_id(pycolmap.data_t(_sensor(camera), i))
        database.write_frame(frame, use_frame_id=True)
    return database


def camera_of(photograph: Upright, camera_id: int) -> pycolmap.Camera:
    """The camera as it is before mapping: of EXIF's focal length, else of a usual one."""
    width, height = photograph.size
    focal = photograph.focal or USUAL_FOCAL * max(width, height)
    camera = pycolmap.Camera.create_from_model_name(camera_id, LENS, focal, width, height)
    camera.has_prior_focal_length = photograph.focal is not None
    return camera


def _write_camera(database: pycolmap.Database, photograph: Upright, camera_id: int) -> int:
    database.write_camera(camera_of(photograph, camera_id), use_camera_id=True)
    rig = pycolmap.Rig(rig_id=camera_id)
    rig.add_ref_sensor(_sensor(camera_id))
    database.write_rig(rig, use_rig_id=True)
    return camera_id


def _sensor(camera_id: int) -> pycolmap.sensor_t:
    return pycolmap.sensor_t(pycolmap.SensorType.CAMERA, camera_id)


def extract_features(
    path: pathlib.Path,
    folder: pathlib.Path,
    photographs: Sequence[Upright],
    told: Told,
    *,
    most: int = MOST_FEATURES,
) -> None:
    """Finds SIFT features of the photographs in a folder, and writes them to the database."""
    options = pycolmap.FeatureExtractionOptions()
    options.sift.max_num_features = most
    options.max_image_size = max(max(photograph.size) for photograph in photographs)
    names = [photograph.file for photograph in photographs]
    told(0, len(names))
    for first in range(0, len(names), _AT_A_TIME):
        some = names[first : first + _AT_A_TIME]
        pycolmap.extract_features(path, folder, some, extraction_options=options)
        told(first + len(some), len(names))


def match_pairs(
    path: pathlib.Path,
    photographs: Sequence[Upright],
    pairs: Sequence[tuple[int, int]],
    told: Told,
) -> None:
    """Matches features of pairs, and keeps the matches that fit a motion; to the database."""
    geometry = two_view_options()
    pairing = pycolmap.ImportedPairingOptions()
    pairing.match_list_path = path.with_name("pairs.txt")
    names = [photograph.file for photograph in photographs]
    told(0, len(pairs))
    for first in range(0, len(pairs), _PAIRS_AT_A_TIME):
        some = pairs[first : first + _PAIRS_AT_A_TIME]
        lines = (f"{names[i]} {names[j]}\n" for i, j in some)
        pairing.match_list_path.write_text("".join(lines), encoding="utf-8")
        pycolmap.match_image_pairs(path, pairing_options=pairing, verification_options=geometry)
        told(first + len(some), len(pairs))


def separate_cameras(
    path: pathlib.Path, target: pathlib.Path, photographs: Sequence[Upright]
) -> None:
    """Writes a database with a camera for each photograph, and the features and matches of `path`.

    Without EXIF, photographs of one size may still be of several zooms.
    """
    alone = [dataclasses.replace(photograph, group=photograph.file) for photograph in photographs]
    before, after = pycolmap.Database.open(path), write_database(target, alone)
    for i in range(1, len(photographs) + 1):
        after.write_keypoints(i, before.read_keypoints(i))
    for pair, geometry in zip(*before.read_two_view_geometries(), strict=True):
        after.write_two_view_geometry(*pycolmap.pair_id_to_image_pair(pair), geometry)
    before.close()
    after.close()


def two_view_options() -> pycolmap.TwoViewGeometryOptions:
    """Options of geometries of two views, with a fixed seed."""
    options = pycolmap.TwoViewGeometryOptions()
    options.ransac.random_seed = SEED
    options.compute_relative_pose = True
    return options
