"""Objects from files to scores and pictures, by the programs."""

import csv
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from absl import logging

import lvsm_jax
from input_pipeline import make_index
from input_pipeline.objects import __main__ as import_objects
from lvsm_jax.common.config import DataConfig, EvalConfig
from lvsm_jax.programs import evaluation_run
from lvsm_jax.programs.scene_options import frame_of
from lvsm_jax.scenes.scene_frame import SceneFrame
from lvsm_jax.weights.exports import describe
from tests.helpers.objects import gso_poses, write_object

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]


def test_models_of_objects_are_rendered_in_the_objects_frame():
    objects = {"config": {"data": {"camera_normalization": "none"}}}
    for scale in (None, 2.0):
        frame = frame_of(objects, scale)
        assert isinstance(frame, SceneFrame)
        pose = gso_poses()[5]
        pose[:3, 3] *= scale or 1.0
        np.testing.assert_allclose(frame.apply(gso_poses()[5]), pose, atol=1e-6)
    assert frame_of({"config": {"data": {"camera_normalization": "all_views"}}}, None) is None
    assert frame_of({}, 2.0) is None


def test_a_model_is_evaluated_on_the_background_it_was_trained_on(tmp_path, monkeypatch):
    write_object(tmp_path / "in" / "ball", "opencv_cameras", gso_poses()[:16])
    import_objects.run(tmp_path / "in", tmp_path / "out", test_share=1.0)
    said = []
    monkeypatch.setattr(logging, "warning", lambda text, *parts: said.append(text % parts))

    def export(name, background):
        about = {} if background is None else {"config": {"data": {"background": background}}}
        return evaluation_run._Export(tmp_path / name, about, 8, {}, {})

    def used(trained, beside=None, data="", evaluation=""):
        said.clear()
        config = DataConfig(tmp_path / "out", background=data)
        other = None if beside is None else export("beside", beside)
        settings = EvalConfig(background=evaluation)
        chosen = evaluation_run._with_background(settings, config, export("model", trained), other)
        return chosen.background, len(said)

    assert used("black") == ("black", 0)
    assert used(None) == ("", 0)
    assert used("black", data="black") == ("black", 0)
    assert used("black", evaluation="#000000") == ("#000000", 0)
    assert used("black", evaluation="white") == ("white", 1)
    assert (
        f"{tmp_path}/model was trained on the background black, and is evaluated on white" in said
    )
    assert used("black", beside="white") == ("black", 1)
    assert used("black", data="white") == ("white", 1)


@pytest.mark.slow
def test_objects_are_trained_on_scored_and_rendered(tmp_path):
    for name in ("a", "b", "held_out"):
        write_object(tmp_path / "in" / name, "opencv_cameras", gso_poses(), size=32)
    import_objects.run(tmp_path / "in", tmp_path / "data", test_objects=["held_out"])
    make_index.main([str(tmp_path / "data"), "--by=gso"])
    small = {
        "data.path": tmp_path / "data",
        "data.image_height": 32,
        "data.background": "black",
        "model.num_layers": 2,
        "model.width": 32,
        "model.head_dim": 16,
        "model.copy_head": False,
        "run.num_steps": 6,
        "run.batch_size": 4,
        "run.eval_every": 0,
        "run.layers_every": 0,
        "eval.lpips": False,
        "eval.batch_size": 1,
    }

    def lvsm(command, *arguments, config=small):
        fields = [f"--config.{name}={value}" for name, value in config.items()]
        if config:
            fields.append("--config=configs/object_64.py")
        line = [sys.executable, "-m", "lvsm_jax", command, *map(str, arguments), *fields]
        environment = os.environ | {"JAX_PLATFORMS": "cpu"}
        done = subprocess.run(line, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    lvsm("train", f"--workdir={tmp_path / 'run'}")
    export = tmp_path / "run" / "export"
    assert describe(export)["config"]["data"]["background"] == "black"
    del small["data.background"]
    told = lvsm("eval", f"--checkpoint={export}", f"--output={tmp_path / 'scores'}")
    assert "PSNR OF OBJECT" in told
    summary = json.loads((tmp_path / "scores" / "summary.json").read_text())
    assert summary["background"] == "black" and summary["camera_normalization"] == "none"
    assert (summary["num_images"], summary["num_inputs"]) == (10, 4)
    assert summary["psnr_object"] not in (None, summary["psnr"])
    assert "PSNR of the object" in (tmp_path / "scores" / "index.html").read_text()
    with open(tmp_path / "scores" / "per_image.csv") as file:
        rows = list(csv.DictReader(file))
    of_object = [float(row["psnr_object"]) for row in rows]
    assert np.mean(of_object) == pytest.approx(summary["psnr_object"], abs=1e-4)

    out, scene = tmp_path / "pictures", f"{tmp_path / 'data'}/test:held_out"
    options = ["--path=orbit", "--frames=2", "--inputs=4", "--no-video"]
    lvsm("render", scene, out, f"--weights={export}", *options, config={})
    assert len(list(out.glob("frame_*.png"))) == 2
    assert lvsm_jax.load(export).config.num_layers == 2
