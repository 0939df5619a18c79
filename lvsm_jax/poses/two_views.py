"""Two photographs, of which mapping never makes a model. In the worker's process.

The lens is taken for a pinhole. Its focal length is EXIF's or a usual one, and moves from there as
far as the matches insist: with one that is wrong by 5 %, rotations are by 0.5° to 1.6°.
"""

import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pycolmap
from jaxtyping import Float64

from lvsm_jax.poses.features import SEED, two_view_options
from lvsm_jax.poses.pictures import Upright

LEAST_ANGLE = 2.5  # degrees of triangulation, in the median
FEWEST_MATCHES = 60  # that fit the motion

_EXIF_SPREAD, _USUAL_SPREAD = 0.05, 0.15  # standard deviation of the focal length's logarithm
# Errors of matches go together, as of a lens that distorts: as good as so few independent ones.
_INDEPENDENT = 0.1
_FACTORS = (np.geomspace(0.6, 1.6, 25), np.linspace(0.96, 1.04, 9))  # coarse, then about the best

Points = Float64[np.ndarray, "n 2"]


class TwoViews(NamedTuple):
    """What two photographs say of their motion."""

    found: pycolmap.Reconstruction | None  # None where they say nothing
    matches: int  # that fit it
    angle: float  # of triangulation, in degrees, in the median
    planar: bool  # a plane, or a turn alone, explains the matches as well: the motion is a guess
    focal: float  # over that which was assumed


def map_two(
    database: pathlib.Path, folder: pathlib.Path, photographs: Sequence[Upright]
) -> TwoViews:
    """The map of two photographs, by the matches of the database; its poses are not yet judged."""
    opened = pycolmap.Database.open(database)
    cameras = [opened.read_camera(opened.read_image(i).camera_id) for i in (1, 2)]
    points = [opened.read_keypoints(i)[:, :2].astype(np.float64) for i in (1, 2)]
    matches = opened.read_matches(1, 2)
    opened.close()
    if len(matches) < FEWEST_MATCHES:
        return TwoViews(None, len(matches), 0.0, False, 1.0)
    first = _geometry(cameras, points, matches, 1.0)
    fitting = first.inlier_matches
    if first.cam2_from_cam1 is None or len(fitting) < FEWEST_MATCHES:
        return TwoViews(None, len(fitting), 0.0, False, 1.0)
    planar = first.config != pycolmap.TwoViewGeometryConfiguration.CALIBRATED
    spread = _EXIF_SPREAD if photographs[0].focal else _USUAL_SPREAD
    focal = _choose_focal(cameras, points, fitting, spread)
    best = _geometry(cameras, points, fitting, focal)
    if best.cam2_from_cam1 is None:
        return TwoViews(None, len(fitting), 0.0, planar, 1.0)
    posed = _with_poses(_images_of(database), _scaled(cameras, focal), best.cam2_from_cam1)
    found = _with_points(posed, database, folder)
    return TwoViews(found, len(fitting), float(np.degrees(best.tri_angle)), planar, focal)


def _choose_focal(
    cameras: Sequence[pycolmap.Camera], points: Sequence[Points], matches: np.ndarray, spread: float
) -> float:
    """The most probable focal length, over that assumed, by matches and what is usual."""
    errors: dict[float, np.ndarray] = {}
    best = 1.0
    for factors in _FACTORS:
        for factor in best * factors:
            geometry = _geometry(cameras, points, matches, factor)
            if geometry.cam2_from_cam1 is not None:
                errors[factor] = _errors(cameras, points, matches, geometry, factor)
        if not errors:
            return 1.0
        noise = min(np.median(error) for error in errors.values()) + 1e-9

        def improbable(factor: float, noise: float = noise) -> float:
            fit = np.minimum(errors[factor] / noise, 9).sum() * _INDEPENDENT
            return fit + (np.log(factor) / spread) ** 2

        best = min(errors, key=improbable)
    return float(best)


def _errors(cameras, points, matches, geometry, factor) -> Float64[np.ndarray, " n"]:
    """Squared distances of matches from their epipolar lines, in pixels² of the first."""
    rays = [
        camera.cam_from_img(some[matches[:, i]])
        for i, (camera, some) in enumerate(zip(_scaled(cameras, factor), points, strict=True))
    ]
    essential = pycolmap.essential_matrix_from_pose(geometry.cam2_from_cam1)
    squared = pycolmap.compute_squared_sampson_error(*rays, essential)
    return np.asarray(squared) * (cameras[0].mean_focal_length() * factor) ** 2


def _geometry(cameras, points, matches, factor: float) -> pycolmap.TwoViewGeometry:
    one, other = _scaled(cameras, factor)
    return pycolmap.estimate_calibrated_two_view_geometry(
        one, points[0], other, points[1], matches, two_view_options()
    )


def _scaled(cameras: Sequence[pycolmap.Camera], factor: float) -> list[pycolmap.Camera]:
    """The same cameras with other focal lengths."""
    result = [pycolmap.Camera(camera.todict()) for camera in cameras]
    for camera in result:
        camera.focal_length *= factor
    return result


def _images_of(database: pathlib.Path) -> list[pycolmap.Image]:
    """The two images, with their features' places, as the database has them."""
    opened = pycolmap.Database.open(database)
    images = [opened.read_image(i) for i in (1, 2)]
    for i, image in enumerate(images, start=1):
        image.points2D = pycolmap.Point2DList(
            [pycolmap.Point2D(place) for place in opened.read_keypoints(i)[:, :2]]
        )
    opened.close()
    return images


def _with_poses(
    images: Sequence[pycolmap.Image], cameras: Sequence[pycolmap.Camera], second: pycolmap.Rigid3d
) -> pycolmap.Reconstruction:
    result = pycolmap.Reconstruction()
    for camera in {camera.camera_id: camera for camera in cameras}.values():
        result.add_camera_with_trivial_rig(camera)
    for image, pose in zip(images, (pycolmap.Rigid3d(), second), strict=True):
        result.add_image_with_trivial_frame(image, pose)
    return result


def _with_points(
    posed: pycolmap.Reconstruction, database: pathlib.Path, folder: pathlib.Path
) -> pycolmap.Reconstruction:
    options = pycolmap.IncrementalPipelineOptions()
    options.triangulation.ignore_two_view_tracks = False
    options.num_threads, options.random_seed, options.extract_colors = 1, SEED, False
    place = database.with_name("two_views")
    place.mkdir()
    return pycolmap.triangulate_points(posed, database, folder, place, options=options)
