"""Epipolar lines and verdicts, on points that are made up."""

import itertools
import re

import numpy as np
import pytest
from PIL import Image

from lvsm_jax.poses import epipolar
from lvsm_jax.poses.epipolar import check_pair, lines_of, verdict_on
from lvsm_jax.poses.page import write_page
from lvsm_jax.poses.pairs import Pair, load_pairs, save_pairs
from lvsm_jax.poses.plan import SIZE, draw_plan
from lvsm_jax.scenes.photograph import PosedCamera
from tests.helpers.photographed_room import cameras as cameras_of_room

CAMERAS = {f"{i}.jpg": camera for i, camera in enumerate(cameras_of_room(4))}


def seen(camera, points):
    """Pixels at which a camera sees points of the world."""
    inside = points @ camera.w2c[:3, :3].T + camera.w2c[:3, 3]
    return inside[:, :2] / inside[:, 2:] * camera.fxfycxcy[:2] + camera.fxfycxcy[2:]


def pairs_of(cameras=CAMERAS, count=40):
    points = np.random.default_rng(0).uniform([-1, -1, 3], [1, 1, 5], size=(count, 3))
    pairs = [
        Pair((a, b), (seen(cameras[a], points), seen(cameras[b], points)))
        for a, b in itertools.combinations(cameras, 2)
    ]
    return pairs, points


def checks_of(pairs, cameras):
    return [check_pair(pair, *(cameras[name] for name in pair.names)) for pair in pairs]


def test_points_lie_on_the_lines_of_right_cameras_and_meet_where_they_are():
    pairs, points = pairs_of()
    for check in checks_of(pairs, CAMERAS):
        assert check.distances.max() < 1e-6 and check.ahead.all()
        np.testing.assert_allclose(check.points, points, atol=1e-6)
    assert verdict_on(checks_of(pairs, CAMERAS))[0] == "right"


def test_distances_are_in_pixels():
    pairs, _ = pairs_of()
    one, other = (CAMERAS[name] for name in pairs[0].names)
    lines = lines_of(pairs[0].places[0], one, other)
    moved = pairs[0].places[1] + 3 * lines[:, :2]  # across the lines
    check = check_pair(Pair(pairs[0].names, (pairs[0].places[0], moved)), one, other)
    assert 2.5 < check.median < 3.5


@pytest.mark.parametrize("convention", ["w2c for c2w", "OpenGL", "x and y turned"])
def test_poses_by_another_convention_are_wrong(convention):
    pairs, _ = pairs_of()
    axes = np.diag([1, -1, -1, 1] if convention == "OpenGL" else [-1, -1, 1, 1])
    wrong = {
        name: PosedCamera(
            c.w2c if convention == "w2c for c2w" else c.c2w @ axes, c.fxfycxcy, c.width, c.height
        )
        for name, c in CAMERAS.items()
    }
    kind, sentence = verdict_on(checks_of(pairs, wrong))
    assert kind == "wrong" and "lie" in sentence


def test_one_camera_that_is_wrong_is_doubtful_and_nothing_unknown():
    names = [f"{i}.jpg" for i in range(8)]
    cameras = dict(zip(names, cameras_of_room(8), strict=True))
    pairs, _ = pairs_of(cameras)
    turned = cameras["7.jpg"].c2w @ np.array(
        [[1, 0, 0, 0], [0, 0.99, -0.141067, 0], [0, 0.141067, 0.99, 0], [0, 0, 0, 1]]
    )
    camera = cameras["7.jpg"]
    cameras["7.jpg"] = PosedCamera(turned, camera.fxfycxcy, camera.width, camera.height)
    assert verdict_on(checks_of(pairs, cameras))[0] == "doubtful"
    assert verdict_on([])[0] == "unknown"


def test_pairs_are_read_as_they_were_written(tmp_path):
    pairs, _ = pairs_of()
    save_pairs(tmp_path / "pairs.npz", pairs)
    for pair, same in zip(pairs, load_pairs(tmp_path / "pairs.npz"), strict=True):
        assert pair.names == same.names
        np.testing.assert_array_equal(pair.places, same.places)
    save_pairs(tmp_path / "none.npz", [])
    assert load_pairs(tmp_path / "none.npz") == []


def test_cameras_at_one_place_have_no_lines():
    camera = CAMERAS["0.jpg"]
    assert not epipolar.are_apart(camera, camera, 1.0)
    assert not lines_of(np.ones((3, 2)), camera, camera).any()


def test_plan_shows_all_cameras():
    _, points = pairs_of()
    plan = draw_plan(CAMERAS, np.concatenate([points, [[np.nan] * 3]]))
    wedges = np.stack([camera["wedge"] for camera in plan["cameras"]])
    assert wedges.shape == (4, 3, 2) and (wedges >= 0).all() and (wedges <= SIZE).all()
    assert (np.diff(wedges[:, 0, 0]) > 0).all()  # they go to the right, and so they do here
    assert len(plan["points"]) == len(points)


def test_page_is_one_file_that_says_what_was_left_out(tmp_path):
    pictures = {name: tmp_path / name for name in CAMERAS}
    for path in pictures.values():
        Image.new("RGB", (480, 360), "grey").save(path)
    pairs, _ = pairs_of()
    kind, _ = write_page(
        tmp_path / "page.html",
        title="<room>",
        pictures=pictures,
        cameras=CAMERAS,
        pairs=pairs,
        notes=["a note"],
        left_out={"9.jpg": "did not join"},
    )
    page = (tmp_path / "page.html").read_text()
    assert kind == "right" and "&lt;room&gt;" in page
    assert "9.jpg" in page and "did not join" in page and "a note" in page
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert page.count("<section") == 6
