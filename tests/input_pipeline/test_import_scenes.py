"""A folder of scenes becomes a dataset: bit for bit where it can, whole, resumed to the byte."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from input_pipeline import storage
from input_pipeline.camera_table import read_camera_table, table_path
from input_pipeline.clip_scene import open_scene
from input_pipeline.own_scenes import __main__ as import_scenes
from input_pipeline.own_scenes.import_scenes import is_of_test
from input_pipeline.own_scenes.scene_clip import world_origin
from lvsm_jax.scenes.readers import read_scene
from tests.helpers.own_scenes import SIZE, picture, w2c_of, write_scene


def write_dl3dv(folder, count=4):
    """As DL3DV's: full-size intrinsics with a lens, pictures four times smaller."""
    (folder / "nerfstudio" / "images_4").mkdir(parents=True)
    frames = []
    for i in range(count):
        name = f"frame_{i + 1:05d}.png"
        picture(i).save(folder / "nerfstudio" / "images_4" / name)
        c2w = np.linalg.inv(w2c_of(i)) @ np.diag([1, -1, -1, 1])
        frames.append({"file_path": f"images/{name}", "transform_matrix": c2w.tolist()})
    lens = {"camera_model": "OPENCV", "k1": 0.01, "k2": 0.0, "p1": 0.0, "p2": 0.0}
    size = {"w": 192, "h": 128, "fl_x": 160.0, "fl_y": 160.0, "cx": 96.0, "cy": 64.0}
    content = json.dumps(size | lens | {"frames": frames})
    (folder / "nerfstudio" / "transforms.json").write_text(content)


@pytest.fixture
def scenes(tmp_path):
    folder = tmp_path / "in"
    write_scene(folder / "plain", quality=80)
    write_scene(folder / "png", suffix="png")
    write_scene(folder / "upright", size=SIZE[::-1])
    write_dl3dv(folder / "lens")
    write_scene(folder / "far", far=5e6, seed=3)
    write_scene(folder / "damaged")
    file = folder / "damaged" / "images" / "2.jpg"
    file.write_bytes(file.read_bytes()[:-300])
    (folder / "photographs").mkdir()
    picture(0).save(folder / "photographs" / "a.jpg")
    (folder / "notes.txt").write_text("not a scene")
    return folder


def reasons(findings, refused):
    return {f.chunk: f.reason for f in findings if f.refused == refused}


def test_scenes_become_clips_and_what_cannot_is_told(scenes, tmp_path, capsys):
    out = tmp_path / "out"
    findings = import_scenes.run(scenes, out, test_scenes=["png"], quality=90)
    refused = reasons(findings, True)
    assert sorted(refused) == ["damaged", "photographs"]
    assert "images/2.jpg: cannot be decoded: " in refused["damaged"]
    assert "has 1 photographs, but no cameras" in refused["photographs"]
    notes = [(f.chunk, f.reason) for f in findings if not f.refused]
    assert ("png", "4 of 4 pictures became JPEGs of quality 90") in notes
    assert any("undistorted" in reason for chunk, reason in notes if chunk == "lens")
    assert any("was moved to" in reason for chunk, reason in notes if chunk == "far")
    assert not any(chunk == "plain" for chunk, _ in notes)
    told = json.loads((out / "refused.json").read_text())
    assert (len(told["refused"]), len(told["notes"])) == (2, len(notes))
    assert "train       6      4      16        2" in capsys.readouterr().out

    reader = storage.SplitReader(out, "train")
    assert reader.scenes.key.tolist() == ["far", "lens", "plain", "upright"]
    frames = reader.frames(range(len(reader)))
    for key in ("plain", "upright"):  # bit for bit
        first = int(reader.scenes.first_frame[reader.scenes.key.tolist().index(key)])
        files = [scenes / key / "images" / f"{i}.jpg" for i in range(4)]
        assert [f.image for f in frames[first : first + 4]] == [f.read_bytes() for f in files]
    for key, split in (
        ("plain", "train"),
        ("png", "test"),
        ("upright", "train"),
        ("lens", "train"),
    ):
        ours, original = open_scene(f"{out}/{split}:{key}"), read_scene(scenes / key)
        for one, other in zip(ours.photographs, original.photographs, strict=True):
            np.testing.assert_allclose(one.camera.w2c, other.camera.w2c, atol=1e-6)
            np.testing.assert_allclose(one.camera.fxfycxcy, other.camera.fxfycxcy, rtol=1e-5)
            off = one.load().pixels.astype(int) - other.load().pixels
            assert np.abs(off).mean() < 3
    # Far from its origin, float32 would have the cameras 0.5 apart or not at all.
    far = np.stack([frame.w2c for frame in frames[:4]])
    np.testing.assert_allclose(np.diff(far[:, 0, 3]), -0.1, atol=1e-6)

    table = read_camera_table(out, "train", len(reader))
    np.testing.assert_array_equal(table.w2c, [frame.w2c for frame in frames])
    shares = [frame.normalized_fxfycxcy for frame in frames]
    np.testing.assert_array_equal(table.normalized_fxfycxcy, shares)


def test_pictures_that_need_a_change_are_encoded(tmp_path):
    folder, exif = tmp_path / "in", Image.Exif()
    exif[0x0112] = 6
    write_scene(folder / "turned", exif=exif, quality=95)
    stored = Image.open(folder / "turned" / "images" / "1.jpg")
    content = json.loads((folder / "turned" / "cameras.json").read_text())
    for frame in content["frames"]:
        frame |= {"w": SIZE[1], "h": SIZE[0], "fxfycxcy": [40, 40, 16, 24]}
    (folder / "turned" / "cameras.json").write_text(json.dumps(content))
    write_scene(folder / "transparent", suffix="png", mode="RGBA")
    write_scene(folder / "grey", mode="L", seed=9)
    import_scenes.run(folder, tmp_path / "out", test_share=0.0, background="white")
    reader = storage.SplitReader(tmp_path / "out", "train")
    pictures = [Image.open(io.BytesIO(f.image)) for f in reader.frames([1, 5, 9])]
    assert [p.size for p in pictures] == [SIZE, SIZE, SIZE[::-1]]
    grey = (folder / "grey" / "images" / "1.jpg").read_bytes()
    assert reader.frames([1])[0].image == grey
    turned = np.rot90(np.asarray(stored), 3).astype(int)
    assert np.abs(np.asarray(pictures[2]) - turned).mean() < 3
    assert not pictures[2].getexif()


def test_which_scenes_are_held_out_is_decided_by_their_names(tmp_path):
    names = [f"scene-{i}" for i in range(1000)]
    held_out = {name for name in names if is_of_test(name, 0.1)}
    assert 70 < len(held_out) < 130
    assert held_out < {name for name in names if is_of_test(name, 0.2)}
    assert is_of_test("scene-0", 0.11) and not is_of_test("scene-0", 0.1)  # for ever
    for name in ("scene-0", "scene-1"):
        write_scene(tmp_path / "in" / "more" / name)
    import_scenes.run(tmp_path / "in", tmp_path / "out", scenes="*/*", test_share=0.0)
    reader = storage.SplitReader(tmp_path / "out", "train")
    assert reader.scenes.key.tolist() == ["more/scene-0", "more/scene-1"]


def test_mistakes_are_told_in_a_line(scenes, tmp_path):
    def fails(message, *more, out="out", source=scenes):
        with pytest.raises(SystemExit, match=message) as error:
            import_scenes.main([str(source), str(tmp_path / out), "--workers=1", *more])
        assert "\n" not in str(error.value)

    fails("there is no folder of scenes", source=tmp_path / "none")
    fails("nothing in .* matches --scenes=x", "--scenes=x")
    fails("--test-scenes: there is no scene foo; there are damaged, far", "--test-scenes", "foo")
    fails("--background: 'pink' is no colour", "--background=pink")
    fails("lies inside of", out="in/out")
    fails("--strict: 2 refused", "--strict", "--test-share=0")
    assert not (tmp_path / "out" / "dataset_info.json").exists()
    fails("imported with other quality: choose another OUTPUT", "--quality=90", "--test-share=0")
    fails("imported with other scenes", "--test-scenes", "png")
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "file").touch()
    fails("is not empty and holds no scenes.json", out="else")
    shutil.rmtree(tmp_path / "in" / "plain")
    only = ("--scenes=[dp]*s", "--test-share=0")  # photographs
    fails("no scene to train on could be read", *only, out="empty")
    hint = "could be read, .*png is a scene itself: name the folder above it, with --scenes='png'"
    fails(hint, out="one", source=scenes / "png")


def test_given_again_it_does_what_is_left(scenes, tmp_path, capsys):
    out = tmp_path / "out"
    import_scenes.run(scenes, out, test_share=0.0)
    written = {path: path.stat().st_mtime_ns for path in out.glob("*.array_record*")}
    write_scene(tmp_path / "whole", seed=5)
    shutil.copy(tmp_path / "whole/images/2.jpg", scenes / "damaged/images/2.jpg")  # mended
    shutil.rmtree(scenes / "photographs")
    write_scene(scenes / "photographs")
    capsys.readouterr()
    assert not any(f.refused for f in import_scenes.run(scenes, out, test_share=0.0))
    assert "is complete." in capsys.readouterr().out
    again = {path for path, time in written.items() if path.stat().st_mtime_ns != time}
    assert (
        {path.name[:28] for path in again}
        == {  # those two alone
            f"scenes-train.array_record-{i:05d}"[:28] for i in (0, 3)
        }
    )
    assert len(storage.SplitReader(out, "train").scenes) == 7
    import_scenes.run(scenes, out, test_share=0.0)
    assert "was complete already: nothing to do" in capsys.readouterr().out
    import_scenes.run(scenes, out, test_scenes=["far", "lens"], overwrite=True)
    assert len(storage.SplitReader(out, "train").scenes) == 5
    assert not [path for path in out.iterdir() if path.name.endswith("-of-00007")]


def test_a_damaged_table_of_cameras_is_told(scenes, tmp_path):
    import_scenes.run(scenes, tmp_path / "out", test_share=0.0, scenes="plain")
    path = table_path(tmp_path / "out", "train")
    assert read_camera_table(tmp_path / "out", "test", 4) is None
    with pytest.raises(ValueError, match=r"w2c is float32\[4, 3, 4\], expected finite float32\[5"):
        read_camera_table(tmp_path / "out", "train", 5)
    whole = path.read_bytes()
    for damaged in (whole[:-40], b"", whole[:200] + b"\xff" * 60 + whole[260:]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"cannot read the cameras .*cameras-train\.npz"):
            read_camera_table(tmp_path / "out", "train", 4)


def test_the_origin_moves_only_where_float32_would_blur_the_cameras():
    near = np.array([[0, 0, 0], [1.0, 0, 0]]) + 400
    assert not world_origin(near).any()
    np.testing.assert_allclose(world_origin(near + 1e5), [100400.5, 100400, 100400])


def test_killed_at_any_moment_it_goes_on_and_ends_the_same(tmp_path):
    for i in range(5):
        write_scene(tmp_path / "in" / f"scene-{i}", 8, (320, 240), "bmp")
    source, out = str(tmp_path / "in"), tmp_path / "out"
    import_scenes.run(source, tmp_path / "straight", test_share=0.4)
    program = [sys.executable, "-m", "input_pipeline.own_scenes", source, str(out)]
    program += ["--test-share=0.4", "--workers=2"]
    run = subprocess.Popen(program, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while len(list((out / ".import").glob("*.json"))) < 1:
        assert run.poll() is None
        time.sleep(0.005)
    run.send_signal(signal.SIGKILL)
    run.wait()
    assert not (out / "dataset_info.json").exists()
    time.sleep(0.5)  # its workers end with it
    kept = {path: path.stat().st_mtime_ns for path in out.glob(".import/*.json")}
    import_scenes.run(source, out, test_share=0.4)
    assert all(path.stat().st_mtime_ns == written for path, written in kept.items())
    files = {path.name for path in (tmp_path / "straight").iterdir() if path.is_file()}
    assert {path.name for path in out.iterdir() if path.is_file()} == files
    for name in files:
        assert (out / name).read_bytes() == (tmp_path / "straight" / name).read_bytes(), name


def test_real_scenes(shared_data, tmp_path):
    source = shared_data / "strecha"
    findings = import_scenes.run(source, tmp_path / "out", test_scenes=["fountain-P11"])
    assert reasons(findings, True) == {}
    reader = storage.SplitReader(tmp_path / "out", "test")
    scene = read_scene(source / "fountain-P11")
    jpegs = [photograph.source.read_bytes() for photograph in scene.photographs]
    assert [frame.image for frame in reader.frames(range(11))] == jpegs
    assert os.listdir(tmp_path / "out" / ".import")
