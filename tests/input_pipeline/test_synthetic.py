"""Worlds on disk: the same however they are made, and what was rendered is what is stored."""

import functools
import hashlib
import io
import json
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from input_pipeline import sampling, storage
from input_pipeline.alpha import DatasetAlpha, read_alpha
from input_pipeline.camera_table import read_camera_table
from input_pipeline.png import encode_png
from input_pipeline.synthetic import __main__ as program
from input_pipeline.synthetic import dataset as synthetic
from input_pipeline.synthetic.settings import Settings
from lvsm_jax.common.colours import WHITE
from lvsm_jax.models.cameras import Cameras
from lvsm_jax.scenes.pictures import Alpha
from lvsm_jax.worlds.config import WorldsConfig
from lvsm_jax.worlds.generate import Worlds
from lvsm_jax.worlds.rig import make_objects, rig_intrinsics, rig_poses
from lvsm_jax.worlds.stream import Block, render
from tests.helpers.objects import ball, gso_poses
from tests.helpers.plain_worlds import use_plain_worlds

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
SMALL = Settings(train_scenes=20, test_scenes=3, frames=6, height=16, width=24, seed=3)
FLAGS = ["--train-scenes=20", "--test-scenes=3", "--frames=6", "--seed=3", "--height=16"]


@pytest.fixture(autouse=True)
def _plain(monkeypatch, request):
    if "slow" not in request.keywords:
        use_plain_worlds(monkeypatch)
    # The devices of the tests are there already.
    monkeypatch.setattr("lvsm_jax.parallel.mesh.simulate_cpu_devices", lambda *_: None)


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> pathlib.Path:
    directory = tmp_path_factory.mktemp("worlds")
    with pytest.MonkeyPatch.context() as monkeypatch:
        use_plain_worlds(monkeypatch)
        assert synthetic.generate(str(directory), SMALL)
    return directory


def contents(directory: pathlib.Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.iterdir()
    }


def test_files_are_the_same_for_any_number_of_devices(small, tmp_path, monkeypatch):
    one = jax.local_devices()[:1]
    monkeypatch.setattr(jax, "local_devices", lambda: one)
    monkeypatch.setattr(jax, "local_device_count", lambda: 1)
    assert synthetic.generate(str(tmp_path), SMALL)
    there, here = contents(small), contents(tmp_path)
    for name in ("dataset_info.json", "scenes-train.npz"):
        assert name in there
    assert there == here


def test_repeating_is_a_no_op_and_other_settings_are_an_error(small, capsys):
    before = contents(small)
    program.main([str(small), *FLAGS, "--width=24"])
    assert "already complete" in capsys.readouterr().out
    program.main([str(small), *FLAGS, "--width=24", "--workers=1"])  # as version 0.1.0 had it
    told = capsys.readouterr()
    assert "already complete" in told.out and "--workers plays no part" in told.err
    with pytest.raises(SystemExit) as ended:
        program.main([str(small), *FLAGS, "--width=32"])
    error = ended.value.code
    assert "width 24 there, 32 asked for" in error and "--overwrite" in error
    assert "seed" not in error
    with pytest.raises(SystemExit) as ended:
        program.main([str(small), *FLAGS, "--width=24", "--boxes=40"])
    assert "'boxes': 40" in ended.value.code
    assert contents(small) == before


def test_overwrite_replaces_worlds_and_never_anything_else(tmp_path):
    few = Settings(train_scenes=17, test_scenes=1, frames=5, height=8, width=8)
    fewer = Settings(train_scenes=1, test_scenes=1, frames=5, height=8, width=8)
    folder = tmp_path / "worlds"
    synthetic.generate(str(folder), few)
    (folder / "notes.txt").write_text("mine")
    (folder / "rooms-train.array_record-00000-of-00002").write_text("of an earlier version")
    assert synthetic.generate(str(folder), fewer, overwrite=True)
    assert len(storage.SplitReader(folder, "train").scenes) == 1
    assert len(list(folder.glob("worlds-train*"))) == 1 and not list(folder.glob("rooms-*"))
    assert (folder / "notes.txt").read_text() == "mine"

    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("mine")
    with pytest.raises(storage.DatasetError, match="not empty"):
        synthetic.generate(str(tmp_path / "other"), few, overwrite=True)
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["thesis.tex"]


def test_interrupted_run_goes_on_where_it_was(small, tmp_path, monkeypatch, capsys):
    rendered = []

    def interrupted(*arguments):
        rendered.append(arguments)
        if len(rendered) == 3:  # in the second shard
            raise KeyboardInterrupt
        return render(*arguments)

    monkeypatch.setattr(synthetic, "render", interrupted)
    with pytest.raises(SystemExit) as ended:
        program.main([str(tmp_path), *FLAGS, "--width=24"])
    assert ended.value.code == 130
    assert "interrupted; the same command goes on from here" in capsys.readouterr().err
    notes = tmp_path / synthetic.PROGRESS_FOLDER
    done = {path.stem: (tmp_path / path.stem).stat().st_mtime_ns for path in notes.glob("*.json")}
    assert len(done) == 1 and not (tmp_path / "dataset_info.json").exists()

    assert synthetic.generate(str(tmp_path), SMALL)
    assert contents(tmp_path) == contents(small)
    assert all((tmp_path / name).stat().st_mtime_ns == written for name, written in done.items())


def test_records_are_readable_by_tfds_and_hold_what_was_rendered(small):
    source = tfds.builder_from_directory(small).as_data_source("test")
    assert len(source) == 3 * 6
    (clip,) = synthetic.make_clips(SMALL, "test", [1])
    block = Block(SMALL.worlds, 6, 16, 24)
    worlds = jax.device_get(render(block, "test", SMALL.seed, np.array([1], np.int32)))
    for position, frame in enumerate(clip.frames):
        record = source[6 + position]
        assert record["image"] == frame.image
        np.testing.assert_array_equal(record["w2c"], frame.w2c)
        np.testing.assert_array_equal(record["fxfycxcy"], frame.normalized_fxfycxcy)
        assert record["timestamp"] == frame.timestamp == position * 100_000
        shown = np.asarray(Image.open(io.BytesIO(frame.image)), np.float32)
        assert np.abs(shown - worlds.images[0, position]).mean() < 4  # losses of JPEG
        c2w = worlds.cameras.c2w[0, position]
        np.testing.assert_allclose(frame.w2c @ c2w, np.eye(4)[:3], atol=1e-6)
        pixels = frame.normalized_fxfycxcy * np.array([24, 16, 24, 16], np.float32)
        np.testing.assert_allclose(pixels, worlds.cameras.fxfycxcy[0, position], rtol=1e-6)
    reader = storage.SplitReader(small, "test")
    assert reader.scenes.key[1] == clip.key == "world-test-000001"
    assert reader.frames([7])[0].image == clip.frames[1].image
    train = storage.SplitReader(small, "train").frames(range(120))
    assert not {f.image for f in train} & {f.image for f in reader.frames(range(18))}


def test_evaluation_index_lies_within_the_test_clips(small):
    index = sampling.read_index(small / "evaluation_index.json")
    table = storage.SplitReader(small, "test").scenes
    assert list(index) == table.key.tolist()
    for entry in index.values():
        first, last = entry.context
        assert 0 <= first < last < SMALL.frames
        assert len(entry.target) == 3 == len(set(entry.target))
        assert all(first < target < last for target in entry.target)
    larger = synthetic.evaluation_index(Settings(test_scenes=200, frames=32))
    spans = {entry["context"][1] - entry["context"][0] for entry in larger.values()}
    assert (min(spans), max(spans)) == (24, 31)
    json.dumps(larger)


def test_impossible_settings_are_named(tmp_path):
    with pytest.raises(SystemExit, match=r"synthetic\.frames is 4, expected at least 5"):
        program.main([str(tmp_path / "none"), "--frames=4"])
    with pytest.raises(SystemExit, match=r"worlds\.baseline is \(2\.0, 1\.0\), expected"):
        program.main([str(tmp_path / "none"), "--baseline", "2", "1"])
    assert not (tmp_path / "none").exists()


def test_objects_on_a_rig_are_a_dataset_of_objects(tmp_path, monkeypatch, capsys):
    def make_balls(keys, config, *, height, width, complexity=1.0):
        number = keys.shape[0]
        images = np.stack([ball(pose, height) for pose in rig_poses()])
        c2w = np.broadcast_to(rig_poses().astype(np.float32), (number, 64, 4, 4))
        lens = np.broadcast_to(rig_intrinsics(height, width).astype(np.float32), (number, 64, 4))
        images = jnp.broadcast_to(images, (number, *images.shape))
        return Worlds(images, Cameras(jnp.asarray(c2w), jnp.asarray(lens)), None)

    monkeypatch.setattr("lvsm_jax.worlds.stream.make_objects", make_balls)
    flags = ["--rig=gso", "--train-scenes=2", "--test-scenes=1", "--height=16", "--width=16"]
    program.main([str(tmp_path / "out"), *flags])
    assert "configs/object_64.py" in capsys.readouterr().out
    index = sampling.read_index(tmp_path / "out" / "evaluation_index.json")
    assert index["world-test-000000"].context == (18, 22, 26, 30)
    assert len(index["world-test-000000"].target) == 10
    assert read_alpha(tmp_path / "out") == DatasetAlpha(Alpha(WHITE), True)
    reader = storage.SplitReader(tmp_path / "out", "train")
    frames, poses = reader.frames(range(len(reader))), rig_poses()
    table = read_camera_table(tmp_path / "out", "train", len(reader))
    np.testing.assert_array_equal(table.w2c, [frame.w2c for frame in frames])
    shares = [frame.normalized_fxfycxcy for frame in frames]
    np.testing.assert_array_equal(table.normalized_fxfycxcy, shares)
    np.testing.assert_allclose(np.linalg.inv(poses)[:, :3], table.w2c[:64], atol=1e-6)
    np.testing.assert_allclose(poses, gso_poses(), atol=1e-12)
    assert frames[70].image == encode_png(ball(poses[6], 16))
    for wrong, told in (
        ("--frames=20", "frames is 20, expected 64"),
        ("--samples=4", "--samples means"),
    ):
        with pytest.raises(SystemExit, match=told):
            program.main([str(tmp_path / "none"), *flags, wrong])
    assert "rig" not in SMALL.to_json()  # sets of before stay what they are


@pytest.mark.slow
def test_rendered_objects_are_transparent_around_and_alike_from_all_sides():
    config = WorldsConfig(boxes=12, ellipsoids=4, cylinders=4)
    made = jax.jit(functools.partial(make_objects, config=config, height=32, width=32))
    worlds = jax.device_get(made(jax.random.split(jax.random.key(0), 3)))
    assert worlds.images.shape == (3, 64, 32, 32, 4)
    alpha = worlds.images[..., 3]
    assert set(np.unique(alpha)) <= {0, 64, 128, 191, 255}
    assert (alpha[:, :, :1] == 0).mean() > 0.95 and (alpha == 255).mean((1, 2, 3)).min() > 0.02
    assert (worlds.images[alpha == 0] == 0).all()
    # What a view sees of the object's height does not depend on the azimuth: z is up.
    rows = (alpha[:, :16] > 128).any(3)  # [object, azimuth, row] of elevation 0
    top = rows.argmax(2)
    assert np.ptp(top, axis=1).max() <= 12 and top.mean() < 16
    assert worlds.images[alpha == 255][:, :3].std() > 20
    for images, opaque in zip(worlds.images, alpha == 255, strict=True):  # exposed by the object
        assert 60 < np.percentile(images[opaque][:, :3], 90) < 240


@pytest.mark.slow
@pytest.mark.long
def test_the_program_writes_worlds_and_the_files_do_not_depend_on_devices(tmp_path):
    """The generator itself; and worlds are those that a training run would see."""
    sizes = ["--train-scenes=3", "--test-scenes=2", "--frames=5", "--height=16", "--width=16"]
    sizes += ["--boxes=12", "--ellipsoids=4", "--cylinders=4"]
    for devices in (1, 2):
        command = [sys.executable, "-m", "lvsm_jax", "synthetic", str(tmp_path / str(devices))]
        command += [*sizes, f"--cpu-devices={devices}"]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "worlds: 100%" in done.stderr
    assert contents(tmp_path / "1") == contents(tmp_path / "2")
    worlds = WorldsConfig(boxes=12, ellipsoids=4, cylinders=4)
    made = render(Block(worlds, 5, 16, 16), "train", 0, np.arange(2, dtype=np.int32))
    frames = storage.SplitReader(tmp_path / "1", "train").frames([5])
    shown = np.asarray(Image.open(io.BytesIO(frames[0].image)), np.float32)
    assert np.abs(shown - np.asarray(made.images)[1, 0]).mean() < 6
