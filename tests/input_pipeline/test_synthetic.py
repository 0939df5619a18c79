"""Procedural rooms: exact cameras, and a data set that is the same however it is made."""

import hashlib
import io
import json
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from input_pipeline import sampling, storage
from input_pipeline.synthetic import __main__ as program
from input_pipeline.synthetic import dataset as synthetic
from input_pipeline.synthetic import raycast, rooms
from lvsm_jax.models import cameras

SMALL = synthetic.Settings(train_scenes=20, test_scenes=3, frames=6, height=16, width=24, seed=3)


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> pathlib.Path:
    directory = tmp_path_factory.mktemp("rooms")
    assert synthetic.generate(str(directory), SMALL, workers=1)
    return directory


@pytest.fixture(scope="module")
def scenes() -> list[rooms.Scene]:
    config = rooms.SceneConfig(objects=(3, 5))
    return [rooms.sample_scene(np.random.default_rng([7, i]), config, 8) for i in range(6)]


def contents(directory: pathlib.Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.iterdir()
    }


def test_files_are_the_same_for_any_number_of_workers(small, tmp_path):
    assert synthetic.generate(str(tmp_path), SMALL, workers=2)
    there, here = contents(small), contents(tmp_path)
    for name in ("dataset_info.json", "scenes-train.npz"):
        assert name in there
    assert there == here


def test_repeating_is_a_no_op_and_other_settings_are_an_error(small, capsys):
    before = contents(small)
    command = [str(small), "--train-scenes=20", "--test-scenes=3", "--frames=6", "--seed=3"]
    program.main([*command, "--height=16", "--width=24"])
    assert "already complete" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        program.main([*command, "--height=16", "--width=32"])
    error = ended.value.code
    assert "width 24 there, 32 asked for" in error and "--overwrite" in error
    assert "seed" not in error
    assert contents(small) == before


def test_overwrite_replaces_rooms_and_never_anything_else(tmp_path):
    few = synthetic.Settings(train_scenes=17, test_scenes=1, frames=5, height=8, width=8)
    fewer = synthetic.Settings(train_scenes=1, test_scenes=1, frames=5, height=8, width=8)
    synthetic.generate(str(tmp_path / "rooms"), few, workers=1)
    (tmp_path / "rooms" / "notes.txt").write_text("mine")
    assert synthetic.generate(str(tmp_path / "rooms"), fewer, workers=1, overwrite=True)
    assert len(storage.SplitReader(tmp_path / "rooms", "train").scenes) == 1
    assert len(list((tmp_path / "rooms").glob("rooms-train*"))) == 1
    assert (tmp_path / "rooms" / "notes.txt").read_text() == "mine"

    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("mine")
    with pytest.raises(storage.DatasetError, match="not empty"):
        synthetic.generate(str(tmp_path / "other"), few, workers=1, overwrite=True)
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["thesis.tex"]


def test_killed_run_goes_on_where_it_was(tmp_path):
    settings = synthetic.Settings(train_scenes=64, test_scenes=1, frames=5, height=32, width=32)
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    synthetic.generate(str(straight), settings, workers=1)
    options = ["--train-scenes=64", "--test-scenes=1", "--frames=5", "--height=32", "--width=32"]
    module = [sys.executable, "-m", "input_pipeline.synthetic", str(killed), "--workers=1"]
    process = subprocess.Popen([*module, *options], cwd=pathlib.Path(__file__).parents[2])
    notes = killed / synthetic.PROGRESS_FOLDER
    while not list(notes.glob("*.json")):
        assert process.poll() is None, "finished, or failed, before it could be killed"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = {path.stem: (killed / path.stem).stat().st_mtime_ns for path in notes.glob("*.json")}
    assert not (killed / "dataset_info.json").exists()

    assert synthetic.generate(str(killed), settings, workers=1)
    assert contents(killed) == contents(straight)
    assert 0 < len(done) < 5
    assert all((killed / name).stat().st_mtime_ns == written for name, written in done.items())


@pytest.mark.skipif(not pathlib.Path("/proc/self/task").exists(), reason="finds workers in /proc")
def test_ctrl_c_ends_the_program_and_its_workers_at_once(tmp_path):
    sizes = ["--train-scenes=64", "--height=400", "--width=400", "--frames=40", "--workers=2"]
    module = [sys.executable, "-m", "input_pipeline.synthetic", str(tmp_path / "rooms"), *sizes]
    repository = pathlib.Path(__file__).parents[2]
    process = subprocess.Popen(
        module,
        cwd=repository,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that starts the tests in its background has them ignore SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    while len(list((tmp_path / "rooms").glob(".*.tmp"))) < 2:  # both write a shard
        assert process.poll() is None, "finished, or failed, before it could be interrupted"
        time.sleep(0.02)
    workers = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.send_signal(signal.SIGINT)  # to the program alone
    _, errors = process.communicate(timeout=30)  # all rooms would take minutes
    assert process.returncode == 130
    assert "interrupted; the same command goes on from here" in errors
    assert "Traceback" not in errors
    assert not [worker for worker in workers if pathlib.Path(f"/proc/{worker}/fd/0").exists()]


def test_records_are_readable_by_tfds_and_hold_what_was_rendered(small):
    source = tfds.builder_from_directory(small).as_data_source("test")
    assert len(source) == 3 * 6
    clip = synthetic.make_clip(SMALL, "test", 1)
    for position, frame in enumerate(clip.frames):
        record = source[6 + position]
        assert record["image"] == frame.jpeg
        np.testing.assert_array_equal(record["w2c"], frame.w2c)
        np.testing.assert_array_equal(record["fxfycxcy"], frame.normalized_fxfycxcy)
        assert record["timestamp"] == frame.timestamp == position * 100_000
        assert Image.open(io.BytesIO(frame.jpeg)).size == (24, 16)
    reader = storage.SplitReader(small, "test")
    assert reader.scenes.key[1] == clip.key
    assert reader.frames([7])[0].jpeg == clip.frames[1].jpeg
    train = storage.SplitReader(small, "train").frames(range(120))
    assert not {f.jpeg for f in train} & {f.jpeg for f in reader.frames(range(18))}


def test_evaluation_index_lies_within_the_test_clips(small):
    index = sampling.read_index(small / "evaluation_index.json")
    table = storage.SplitReader(small, "test").scenes
    assert list(index) == table.key.tolist()
    for entry in index.values():
        first, last = entry.context
        assert 0 <= first < last < SMALL.frames
        assert len(entry.target) == 3 == len(set(entry.target))
        assert all(first < target < last for target in entry.target)
    larger = synthetic.evaluation_index(synthetic.Settings(test_scenes=200, frames=32))
    spans = {entry["context"][1] - entry["context"][0] for entry in larger.values()}
    assert (min(spans), max(spans)) == (24, 31)
    json.dumps(larger)


def test_rays_are_those_of_the_model(scenes):
    height, width = 6, 10
    for scene in scenes[:2]:
        c2w = np.linalg.inv(np.vstack([scene.w2c[2], [0, 0, 0, 1]])).astype(np.float32)
        pixels = scene.normalized_fxfycxcy * np.array([width, height, width, height], np.float32)
        model = cameras.Cameras(c2w[None, None], pixels[None, None])
        origin, directions = cameras.rays(model, height, width)
        ours, rays = raycast.rays(scene.w2c[2], scene.normalized_fxfycxcy, height, width)
        rays = rays / np.linalg.norm(rays, axis=0)
        np.testing.assert_allclose(ours, origin[0, 0], atol=1e-5)
        np.testing.assert_allclose(rays.T.reshape(height, width, 3), directions[0, 0], atol=1e-5)


def test_cameras_are_rotations_that_stay_clear_of_walls_and_furniture(scenes):
    for scene in scenes:
        rotation = scene.w2c[:, :, :3].astype(np.float64)
        np.testing.assert_allclose(rotation @ rotation.swapaxes(1, 2), [np.eye(3)] * 8, atol=1e-6)
        np.testing.assert_allclose(np.linalg.det(rotation), 1, atol=1e-6)
        assert (rotation[:, 1, 1] > 0.9).all()  # upright: down in the picture is down
        centers = -np.einsum("nji,nj->in", rotation, scene.w2c[:, :, 3]).astype(np.float32)
        half = scene.room.half[:, None]
        assert (np.abs(centers[[0, 2]]) < half[[0, 2]] - 0.4).all()
        assert (half[1] - centers[1] > 1.1).all() and (centers[1] > -half[1] + 0.5).all()
        walked = np.linalg.norm(np.diff(centers, axis=1), axis=0).sum()
        assert 0.75 < walked < 1.6
        for solid in scene.room.solids:
            away = np.hypot(*(centers - solid.center[:, None])[[0, 2]])
            assert (away > min(solid.half[[0, 2]]) + rooms.CLEARANCE).all()
            assert (solid.reach(centers) > 1).all()


def test_what_one_camera_sees_another_sees_at_the_projected_place(scenes):
    compared = 0
    for scene in scenes:
        room, (first, last) = scene.room, scene.w2c[[0, -1]]
        origin, directions = raycast.rays(first, scene.normalized_fxfycxcy, 48, 48)
        distance, surface = raycast.cast(room, origin, directions)
        points = origin[:, None] + directions * distance
        colors = raycast.shade(room, points, surface)
        depth = (last[:, :3] @ points + last[:, 3:])[2]
        center = -last[:, :3].T @ last[:, 3]
        met, other = raycast.cast(room, center, points - center[:, None])
        assert (met < 1 + 1e-4).all()  # nothing is seen through what the first camera saw
        seen = (met > 1 - 1e-4) & (depth > 0.1)
        again = raycast.shade(room, center[:, None] + (points - center[:, None]) * met, other)
        # The texture may jump at edges, where rounding decides which surface is met.
        same = seen & (surface == other)
        assert same.sum() > 0.97 * seen.sum()
        difference = np.abs(again - colors)[:, same]
        assert np.quantile(difference, 0.99) < 2e-3
        compared += int(same.sum())
    assert compared > 0.4 * len(scenes) * 48 * 48


def test_pictures_agree_through_the_stored_cameras():
    """Reprojects decoded pixels with the stored numbers alone; half a pixel off must show."""
    settings = synthetic.Settings(frames=9, height=96, width=128)
    errors = {0.0: [], 0.5: []}
    for number in range(4):
        clip = synthetic.make_clip(settings, "test", number)
        rng = np.random.default_rng([settings.seed, 1, number])
        room = rooms.sample_scene(rng, settings.scene, settings.frames, aspect=128 / 96).room
        one, two = clip.frames[3], clip.frames[5]
        images = [np.asarray(Image.open(io.BytesIO(f.jpeg)), np.float32) for f in (one, two)]
        origin, directions = raycast.rays(one.w2c, one.normalized_fxfycxcy, 96, 128)
        distance, _ = raycast.cast(room, origin, directions)
        points = origin[:, None] + directions * distance
        x, y, z = two.w2c[:, :3] @ points + two.w2c[:, 3:]
        fx, fy, cx, cy = two.normalized_fxfycxcy * np.array([128, 96, 128, 96], np.float32)
        for shift, found in errors.items():
            u, v = fx * x / z + cx - 0.5 + shift, fy * y / z + cy - 0.5 + shift
            inside = (z > 0.1) & (u > 0) & (u < 126) & (v > 0) & (v < 94)
            difference = (
                bilinear(images[1], u[inside], v[inside]) - images[0].reshape(-1, 3)[inside]
            )
            found.append(np.median(np.abs(difference)))
    assert np.mean(errors[0.0]) < 1.0  # of 255
    assert np.mean(errors[0.5]) > 1.5 * np.mean(errors[0.0])


def bilinear(image: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    column, row = u.astype(int), v.astype(int)
    a, b = (u - column)[:, None], (v - row)[:, None]
    top = image[row, column] * (1 - a) + image[row, column + 1] * a
    bottom = image[row + 1, column] * (1 - a) + image[row + 1, column + 1] * a
    return top * (1 - b) + bottom * b


@pytest.mark.parametrize("shape", sorted(raycast.SHAPES))
def test_rays_meet_solids_on_their_surface(shape):
    rng = np.random.default_rng(0)
    texture = raycast.Texture(
        np.ones((2, 3), np.float32), np.ones((2, 4), np.float32), np.ones(3, np.float32), 1.0
    )
    center, half = np.float32([0.3, 0.2, 2.0]), np.float32([0.4, 0.7, 0.5])
    solid = raycast.Solid(shape, center, half, 0.6, texture)
    directions = rng.uniform([[-1], [-1], [1]], [[1], [1], [3]], (3, 4000)).astype(np.float32)
    enter, leave = solid.interval(np.zeros(3, np.float32), directions)
    hit = enter < leave
    assert 0.1 < hit.mean() < 0.9
    level = {"box": lambda x, y, z: np.max(np.abs([x, y, z]), axis=0)}
    level["ball"] = lambda x, y, z: np.sqrt(x * x + y * y + z * z)
    level["cylinder"] = lambda x, y, z: np.maximum(np.hypot(x, z), np.abs(y))
    for distance in (enter, leave):
        points = (directions * distance)[:, hit]
        np.testing.assert_allclose(level[shape](*solid.unit(points)), 1, atol=1e-4)
        normals = solid.normals(points)
        np.testing.assert_allclose(np.linalg.norm(normals, axis=0), 1, atol=1e-5)
        outside, inside = (level[shape](*solid.unit(points + s * normals)) for s in (1e-2, -1e-2))
        assert (outside > 1).all() and (inside < 1).all()
    assert ((normals * directions[:, hit]).sum(axis=0) > -1e-6).all()  # leaving
    along = directions[:, ~hit][:, :, None] * np.linspace(0.2, 4, 60, dtype=np.float32)
    assert (level[shape](*solid.unit(along.reshape(3, -1))) > 1 - 1e-4).all()  # misses do miss


def test_impossible_settings_are_named():
    with pytest.raises(ValueError, match="frames is 4, expected at least 5"):
        synthetic.Settings(frames=4)
    with pytest.raises(ValueError, match=r"motion is from 2\.0 to 1\.0"):
        rooms.SceneConfig(motion=(2.0, 1.0))
    with pytest.raises(ValueError, match="less motion"):
        half = np.float32([1.0, 1.3, 1.0])
        config = rooms.SceneConfig(motion=(9.0, 10.0), turn=0.5)
        rooms.sample_path(np.random.default_rng(0), half, 8, config)
