"""Worlds on disk: the same however they are made, and what was rendered is what is stored."""

import hashlib
import io
import json
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from input_pipeline import sampling, storage
from input_pipeline.synthetic import __main__ as program
from input_pipeline.synthetic import dataset as synthetic
from input_pipeline.synthetic.settings import Settings
from lvsm_jax.worlds.config import WorldsConfig
from lvsm_jax.worlds.stream import Block, render
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
