"""Matches of photographs whose cameras are known, and take no part. In the worker's process."""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pycolmap

from lvsm_jax.poses import features
from lvsm_jax.poses.epipolar import FEWEST_MATCHES
from lvsm_jax.poses.pairs import Pair, pairs_to_match, save_pairs
from lvsm_jax.poses.pictures import Upright
from lvsm_jax.poses.process import MATCHES

_FEATURES = 4096  # of a photograph: for a check fewer are enough


def match_posed(
    job: dict[str, Any], work: pathlib.Path, told: Callable[[str, int, int], None]
) -> dict[str, Any]:
    """Matches the job's photographs, each with each, into `work/matches.npz`; how many pairs did.

    The cameras give a focal length, by which matches are kept that fit some motion, and no more.
    """
    photographs = [
        Upright(one["name"], one["file"], tuple(one["size"]), one["focal"], one["file"])
        for one in job["photographs"]
    ]
    folder, database = work / "photographs", work / "database.db"
    pycolmap.set_random_seed(features.SEED)
    features.write_database(database, photographs).close()
    features.extract_features(
        database, folder, photographs, lambda *n: told("features", *n), most=_FEATURES
    )
    pairs = pairs_to_match(len(photographs), in_order=False)
    features.match_pairs(database, photographs, pairs, lambda *n: told("matching", *n))
    found = read_pairs(database, photographs)
    save_pairs(work / MATCHES, found)
    return {"pairs": len(found)}


def read_pairs(
    database: pathlib.Path,
    photographs: Sequence[Upright],
    straighten: Callable[[str, np.ndarray], np.ndarray] = lambda _, places: places,
) -> list[Pair]:
    """The pairs of a database with their matches, as far as they fit some motion of a camera.

    `straighten` takes a photograph's name and places in it to those in its undistorted picture.
    """
    opened = pycolmap.Database.open(database)
    ids, geometries = opened.read_two_view_geometries()
    places = [
        straighten(one.name, opened.read_keypoints(i)[:, :2].astype(np.float64))
        for i, one in enumerate(photographs, start=1)
    ]
    opened.close()
    pairs = []
    for pair_id, geometry in sorted(zip(ids, geometries, strict=True), key=lambda item: item[0]):
        one, other = (i - 1 for i in pycolmap.pair_id_to_image_pair(pair_id))
        matches = geometry.inlier_matches
        if len(matches) >= FEWEST_MATCHES:
            both = places[one][matches[:, 0]], places[other][matches[:, 1]]
            pairs.append(Pair((photographs[one].name, photographs[other].name), both))
    return pairs
