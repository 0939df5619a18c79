"""Poses of real photographs, beside surveyed ones: right, or refused, never wrong."""

import shutil

import numpy as np
import pytest
from PIL import Image

from benchmarks.poses import pose_errors
from lvsm_jax.poses import PosesRefused, find_poses
from lvsm_jax.poses.check import check_scene
from lvsm_jax.scenes.readers import read_scene

pytest.importorskip("pycolmap", reason="finding poses needs pycolmap")
pytestmark = [pytest.mark.slow, pytest.mark.long]


def some_of(scene, places, folder):
    """Copies photographs of a scene, without their cameras, to a folder; their true cameras."""
    folder.mkdir()
    chosen = [scene.photographs[i] for i in places]
    for photograph in chosen:
        shutil.copy(photograph.source, folder)
    return {photograph.source.name: photograph.camera for photograph in chosen}


def errors_of(found, true):
    cameras = {one.source.name: one.camera for one in read_scene(found.folder).photographs}
    return pose_errors(cameras, true)


@pytest.mark.parametrize(
    ("scene", "first", "count"),
    [
        ("fountain-P11", 3, 4),
        ("fountain-P11", 0, 11),
        ("entry-P10", 2, 6),
        ("Herz-Jesus-P25", 5, 13),
        ("castle-P30", 0, 6),
    ],
)
def test_neighbouring_photographs(shared_data, tmp_path, scene, first, count):
    scene = read_scene(shared_data / "strecha" / scene)
    true = some_of(scene, range(first, first + count), tmp_path / "photographs")
    found = find_poses(tmp_path / "photographs")
    assert len(found.registered) == count
    errors = errors_of(found, true)
    assert np.median(errors.rotation) <= 0.6 and np.median(errors.position) <= 0.004


@pytest.mark.parametrize("every", [2, 4])
def test_two_zooms_that_exif_does_not_tell_apart(shared_data, tmp_path, every):
    """Of some photographs the middle, enlarged to the size of the others."""
    scene = read_scene(shared_data / "strecha" / "fountain-P11")
    true = some_of(scene, range(1, 8), tmp_path / "photographs")
    zoomed = list(true)[::every]
    for name in zoomed:
        file = tmp_path / "photographs" / name
        with Image.open(file) as image:
            (width, height), off = image.size, 0.5 - 0.5 / 1.4
            box = (width * off, height * off, width * (1 - off), height * (1 - off))
            closer = image.resize(image.size, Image.LANCZOS, box=box)
        file.unlink()
        closer.save(file, quality=95)
    found = find_poses(tmp_path / "photographs")
    assert "a camera of its own" in found.notes[-1] and len(found.registered) == 7
    errors = errors_of(found, true)
    assert np.median(errors.rotation) <= 0.6 and errors.position.max() <= 0.01
    for one in read_scene(found.folder).photographs:
        zoom = one.camera.fxfycxcy[0] / true[one.source.name].fxfycxcy[0]
        assert abs(zoom / (1.4 if one.source.name in zoomed else 1) - 1) < 0.02


@pytest.mark.parametrize(
    ("scene", "places"),
    [("fountain-P11", (3, 4)), ("fountain-P11", (3, 5)), ("Herz-Jesus-P25", (8, 9))],
)
def test_two_photographs(shared_data, tmp_path, scene, places):
    true = some_of(read_scene(shared_data / "strecha" / scene), places, tmp_path / "photographs")
    found = find_poses(tmp_path / "photographs")
    one, other = (c.camera.w2c for c in read_scene(found.folder).photographs)
    expected = [camera.w2c for camera in true.values()]
    motion, expected = other @ np.linalg.inv(one), expected[1] @ np.linalg.inv(expected[0])
    cosine = (np.trace(motion[:3, :3] @ expected[:3, :3].T) - 1) / 2
    assert np.degrees(np.arccos(min(cosine, 1))) <= 1.5
    directions = [m[:3, 3] / np.linalg.norm(m[:3, 3]) for m in (motion, expected)]
    assert np.degrees(np.arccos(min(directions[0] @ directions[1], 1))) <= 1.5


@pytest.mark.parametrize(
    ("scene", "places"),
    [
        ("hololens_office", range(0, 187, 4)),
        ("hololens_office", range(0, 48, 4)),
        ("hololens_office", range(0, 32, 2)),
        ("strecha/castle-P30", range(0, 30, 6)),
        ("strecha/castle-P30", range(0, 30, 7)),
    ],
)
def test_refused_or_right_never_wrong(shared_data, tmp_path, scene, places):
    true = some_of(read_scene(shared_data / scene), places, tmp_path / "photographs")
    try:
        found = find_poses(tmp_path / "photographs")
    except PosesRefused as refused:
        assert "take more photographs in between" in str(refused)
        assert not (tmp_path / "photographs" / "lvsm_poses").exists()
        return
    errors = errors_of(found, true)
    assert np.median(errors.rotation) <= 2 and errors.rotation.max() <= 5
    assert np.median(errors.position) <= 0.02


def test_the_same_result_twice(shared_data, tmp_path):
    true = some_of(read_scene(shared_data / "hololens_office"), range(16), tmp_path / "photographs")
    written = []
    for name in ("one", "other"):
        find_poses(tmp_path / "photographs", tmp_path / name)
        files = sorted(file for file in (tmp_path / name).rglob("*") if file.suffix != ".log")
        written.append(
            {f.relative_to(tmp_path / name): f.read_bytes() for f in files if f.is_file()}
        )
    assert len(written[0]) > len(true) and written[0] == written[1]


@pytest.mark.parametrize("scene", ["hololens_office", "strecha/fountain-P11"])
def test_surveyed_cameras_are_right(shared_data, tmp_path, scene):
    checked = check_scene(read_scene(shared_data / scene), tmp_path / "page.html")
    assert checked.kind == "right"
