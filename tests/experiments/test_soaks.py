"""The soaks, for seconds instead of minutes, and that they notice what they are there for."""

import csv
import json
import shutil

import numpy as np
import pytest

from experiments import training_soak, viewer_soak, viewer_visits
from input_pipeline.synthetic.__main__ import main as write_worlds
from tests.helpers.tiny_export import save_tiny_export
from tests.helpers.viewer_scene import write_scene


def write_run(folder, losses=(0.5, 0.25), seconds=1.0):
    save_tiny_export(folder / "export")
    with (folder / "metrics.csv").open("w") as file:
        rows = csv.writer(file)
        rows.writerow(("step", "loss", "seconds_per_step", "data_wait_share"))
        rows.writerows((i, loss, seconds, seconds / 9) for i, loss in enumerate(losses))
    return folder


@pytest.mark.slow
@pytest.mark.long
def test_runs_that_differ_are_noticed(tmp_path):
    one = write_run(tmp_path / "one")
    assert training_soak.compare(one, write_run(tmp_path / "same", seconds=9.0)) == []
    other = write_run(tmp_path / "other", losses=(0.5, 0.26))
    assert training_soak.compare(one, other) == ["loss of step 1"]
    cut = write_run(tmp_path / "cut", losses=(0.5,))
    assert "1 rows" in training_soak.compare(one, cut)[0]
    (tmp_path / "same" / "checkpoints.old.tmp").mkdir()
    assert training_soak._left(tmp_path / "same") == ["checkpoints.old.tmp"]


def test_what_is_told_of_a_soak():
    sample = {"memory": 400.0, "threads": 9, "files_open": 7, "files": 0}
    report = {
        "hardware": "a machine",
        "jax": "1",
        "options": {"visitors": 3, "minutes": 0.5},
        "did": {"visits": 4},
        "differences": [[], [0.0, 2.0], [0.5]],
        "slowest_first_picture": 1.5,
        "samples": [sample, sample | {"memory": 500.0}, sample],
        "files_left": 0,
        "status": 0,
        "tracebacks": 0,
    }
    text = viewer_soak.table(report)
    assert "Stale pictures: 1 of 3 (furthest 2.000 grey levels)" in text and "4 visits" in text
    assert "| 400 | 500 | 500 | 400 |" in " ".join(text.split())


def test_pictures_are_compared():
    grey = np.full((4, 4, 3), 100, np.uint8)
    assert viewer_visits._difference(grey, grey) == 0
    assert viewer_visits._difference(grey, grey + np.uint8(3)) == pytest.approx(3)
    assert viewer_visits._difference(grey, None) == np.inf
    assert viewer_visits._difference(grey, grey[:2]) == np.inf


@pytest.mark.slow
@pytest.mark.long
def test_visitors_for_seconds(tmp_path, monkeypatch):
    pytest.importorskip("viser")
    scene = write_scene(tmp_path)
    monkeypatch.setattr(viewer_visits, "_STAY", (2.0, 5.0))
    file = tmp_path / "report.json"
    options = ["--visitors=2", "--minutes=0.2", "--compare-every=5", f"--output={file}"]
    viewer_soak.main([str(scene), *options])
    report = json.loads(file.read_text())
    assert report["did"]["visits"] > 2 and not any("failures" in did for did in report["did"])
    differences = [x for found in report["differences"] for x in found]
    assert len(differences) >= 2 and max(differences) < viewer_soak._STALE
    assert (report["files_left"], report["status"], report["tracebacks"]) == (0, 0, 0)
    assert report["samples"][-1]["files"] == 0


@pytest.mark.slow
@pytest.mark.long
def test_a_training_that_is_killed_twice(tmp_path):
    worlds = tmp_path / "worlds"
    write_worlds([str(worlds), "--train-scenes=8", "--test-scenes=2", "--height=16"])
    small = {"run.batch_size": 2, "run.eval_every": 0, "model.num_layers": 1, "model.width": 32}
    small |= {"model.head_dim": 16, "data.image_height": 16, "data.path": worlds}
    flags = [f"--config.{name}={value}" for name, value in small.items()]
    soak = [str(tmp_path / "soak"), "--kills=2", "--steps=30", "--early-seconds=4"]
    training_soak.main([*soak, f"--output={tmp_path / 'r.json'}", "--train-flags", *flags])
    report = json.loads((tmp_path / "r.json").read_text())
    assert len(report["kills"]) == 2 and report["rows"] == 30
    shutil.rmtree(tmp_path / "soak" / "straight")
    with pytest.raises(SystemExit, match="killed exists"):
        training_soak.main([*soak, "--train-flags", *flags])
