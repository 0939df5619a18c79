"""Poses of photographs, from end to end, on a room whose cameras are known."""

import importlib.metadata
import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from benchmarks.poses import pose_errors
from lvsm_jax.common.errors import UserError
from lvsm_jax.poses import PosesRefused, find_poses, output_of
from lvsm_jax.poses.check import check_scene
from lvsm_jax.poses.process import run_worker
from lvsm_jax.programs import check as check_program
from lvsm_jax.programs import poses as program
from lvsm_jax.scenes.readers import NoCamerasError, read_scene
from tests.helpers import photographed_room

pytest.importorskip("pycolmap", reason="finding poses needs pycolmap")


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    """A folder of three photographs whose poses were found, what was told, and true cameras."""
    folder = tmp_path_factory.mktemp("poses") / "my room"
    cameras = photographed_room.write(folder, 3)
    told = []
    found = find_poses(folder, progress=told.append)
    return folder, found, told, {f"{i}.jpg": camera for i, camera in enumerate(cameras)}


def test_cameras_are_those_that_took_the_photographs(room):
    folder, found, told, true = room
    assert found.folder == output_of(folder) == folder / "lvsm_poses" and not found.reused
    assert found.registered == list(true) and not found.left_out
    scene = read_scene(found.folder)
    cameras = {one.name.removeprefix("images/"): one.camera for one in scene.photographs}
    errors = pose_errors(cameras, true)
    assert errors.rotation.max() < 0.6 and errors.position.max() < 0.01
    for photograph in scene.photographs:
        assert abs(photograph.camera.fxfycxcy[0] / photographed_room.FOCAL - 1) < 0.03
        photograph.load()
    assert [one.stage for one in told if one.stage in ("features", "matching")]
    assert all(one.done <= one.total for one in told if one.total)
    assert not [name for name in os.listdir(folder) if name.startswith(".")]


def test_the_same_as_a_colmap_model(room):
    _, found, _, true = room
    posed = read_scene(found.folder / "sparse" / "0", images=found.folder / "images")
    by_json = {one.name: one.camera for one in read_scene(found.folder).photographs}
    assert [one.name for one in posed.photographs] == list(true)
    for photograph in posed.photographs:
        same = by_json[f"images/{photograph.name}"]
        np.testing.assert_allclose(photograph.camera.c2w, same.c2w, atol=1e-9)
        np.testing.assert_allclose(photograph.camera.fxfycxcy, same.fxfycxcy, rtol=1e-9)


def test_found_once_and_again_after_changes(room, tmp_path):
    folder, found, _, _ = room
    again = find_poses(folder)
    assert again.reused and again.registered == found.registered and again.notes == found.notes
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    record = other / "lvsm_poses" / "poses.json"
    record.write_text(record.read_text().replace("1600", "900"))
    assert find_poses(other).reused  # nobody said how large, as render and view do not
    with pytest.raises(UserError, match=r"found with max_size 900: .* --overwrite"):
        find_poses(other, max_size=1600)
    with pytest.raises(UserError, match=r"frames=9, but .*other is no video"):
        find_poses(other, frames=9)
    (other / "2.png").rename(other / "3.png")
    with pytest.raises(UserError, match=r"1 new \(3.png\), 1 gone \(2.png\); .* --overwrite"):
        find_poses(other)
    with pytest.raises(UserError, match="max_size 1600"):
        find_poses(folder, max_size=800)
    record.unlink()
    with pytest.raises(FileExistsError, match="holds no poses"):
        find_poses(other)
    with pytest.raises(FileExistsError, match="not overwritten"):
        find_poses(other, overwrite=True)


def test_page_says_right(room):
    _, found, _, _ = room
    page = found.page.read_text()
    assert (
        ">Right<" in page and page.count("<line ") >= 10 and "http" not in page.split("<body>")[1]
    )


def test_check_tells_right_cameras_from_wrong_ones(room, tmp_path, capsys):
    _, found, _, _ = room
    for name in ("right", "wrong"):
        folder = tmp_path / name
        shutil.copytree(found.folder, folder)
        content = json.loads((folder / "cameras.json").read_text())
        if name == "wrong":  # as OpenGL has them
            for frame in content["frames"]:
                frame["c2w"] = (np.array(frame["c2w"]) @ np.diag([1, -1, -1, 1])).tolist()
        (folder / "cameras.json").write_text(json.dumps(content))
    with pytest.raises(SystemExit, match=r"no scene .*none: no such file or folder"):
        check_program.main([str(tmp_path / "none")])
    with pytest.raises(SystemExit, match="PAGE=/proc cannot be written"):
        check_program.main([str(tmp_path / "right"), "/proc/page.html"])
    checked = check_scene(read_scene(tmp_path / "wrong"), tmp_path / "wrong.html")
    assert checked.kind == "wrong" and ">Wrong<" in checked.page.read_text()
    check_program.main([str(tmp_path / "right")])
    told = capsys.readouterr().out
    assert told.startswith("right: the cameras fit") and "lvsm_check.html" in told
    with pytest.raises(SystemExit, match="exists"):
        check_program.main([str(tmp_path / "right")])


def test_what_cannot_be_matched_is_refused_in_a_line(tmp_path):
    folder = tmp_path / "flat"
    folder.mkdir()
    for i in range(2):
        Image.new("RGB", (200, 150), (90, 90 + i, 90)).save(folder / f"{i}.png")
    with pytest.raises(PosesRefused, match="too little texture") as refused:
        find_poses(folder)
    assert list(refused.value.left_out) == ["0.jpg", "1.jpg"] and "\n" not in str(refused.value)
    picture = photographed_room.photograph(photographed_room.cameras(1)[0])
    for i in range(2):
        Image.fromarray(picture).save(folder / f"{i}.png")
    with pytest.raises(PosesRefused, match="same place"):
        find_poses(folder)
    assert sorted(os.listdir(folder)) == ["0.png", "1.png"]


def test_what_are_no_photographs_is_refused_before_anything_starts(tmp_path, monkeypatch):
    monkeypatch.setattr("lvsm_jax.poses.find.run_worker", lambda *_: pytest.fail("it started"))
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match="has none"):
        find_poses(empty)
    Image.new("RGB", (9, 9)).save(empty / "a.png")
    with pytest.raises(UserError, match=r"has only a.png"):
        find_poses(empty)
    with pytest.raises(UserError, match="expected a folder of photographs, or a video"):
        find_poses(empty / "a.png")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        find_poses(tmp_path / "nowhere")


def test_a_damaged_picture_is_named(tmp_path):
    folder = tmp_path / "damaged"
    folder.mkdir()
    Image.new("RGB", (90, 90)).save(folder / "a.png")
    (folder / "b.jpg").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"b.jpg: not a picture"):
        find_poses(folder)
    assert sorted(os.listdir(folder)) == ["a.png", "b.jpg"]


def test_stopped_in_the_middle_nothing_is_left(room, tmp_path):
    folder = tmp_path / "room"
    folder.mkdir()
    for name in ("0.png", "1.png"):
        shutil.copy(room[0] / name, folder)

    def stop(progress):
        if progress.stage == "features":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        find_poses(folder, progress=stop)
    assert sorted(os.listdir(folder)) == ["0.png", "1.png"]


def test_a_worker_that_breaks_down_leaves_its_log(tmp_path):
    (tmp_path / "work").mkdir()
    with pytest.raises(UserError, match=r"broke down at start \(status 1\).*my.log"):
        run_worker({"do": "find"}, tmp_path / "work", tmp_path / "my.log", None)
    assert "KeyError" in (tmp_path / "my.log").read_text()


def test_without_pycolmap_a_line_says_what_to_install(tmp_path, monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    for name in ("a.png", "b.png"):
        Image.new("RGB", (90, 90)).save(tmp_path / name)
    monkeypatch.setattr("lvsm_jax.poses.process.importlib.metadata.version", missing)
    with pytest.raises(SystemExit, match=r"pip install 'lvsm_jax\[poses\]'"):
        program.main([str(tmp_path)])


def test_photographs_beside_which_nothing_can_be_written(room, tmp_path, monkeypatch):
    folder = tmp_path / "room"
    shutil.copytree(room[0], folder, ignore=shutil.ignore_patterns("lvsm_poses"))

    def refuse(name, directory):
        raise UserError(f"{name}={directory} cannot be written: Read-only file system")

    monkeypatch.setattr("lvsm_jax.poses.find.files.check_writable", refuse)
    with pytest.raises(UserError, match=r"Read-only file system; keep them elsewhere, lvsm poses"):
        find_poses(folder)


def test_readers_say_what_to_type(room):
    folder = room[0]
    with pytest.raises(NoCamerasError, match=r"lvsm poses .*my room finds them") as nothing:
        read_scene(folder)
    assert nothing.value.photographs == folder


@pytest.mark.slow
def test_frames_of_a_video(tmp_path):
    imageio = pytest.importorskip("imageio.v2", reason="a video needs imageio-ffmpeg")
    video = tmp_path / "walk.mp4"
    frames = [photographed_room.photograph(c) for c in photographed_room.cameras(5)]
    options = {"fps": 10, "quality": 9, "macro_block_size": 8}
    imageio.mimwrite(video, [frame[:352] for frame in frames], **options)
    found = find_poses(video, frames=3)
    assert found.folder == tmp_path / "walk_lvsm_poses"
    assert found.registered == ["frame_00000.jpg", "frame_00002.jpg", "frame_00004.jpg"]
    assert find_poses(video, frames=3).reused
    with pytest.raises(UserError, match="frames 3"):
        find_poses(video, frames=4)
    assert find_poses(video).reused  # as render and view ask, which have no such option
    shutil.rmtree(found.folder)
    short = find_poses(video)  # of which there are fewer than are taken by default
    assert len(short.registered) == 5
