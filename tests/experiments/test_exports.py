"""Exports compared on other cameras, and by the entropy of their attention."""

import json

import numpy as np
import pytest

import lvsm_jax
from experiments import attention_entropy, user_cameras
from input_pipeline.loading import open_eval_set
from lvsm_jax.common.command_line import parse_with_config
from lvsm_jax.common.config import DataConfig, EvalConfig, section
from lvsm_jax.evaluation.scoring import evaluate
from tests.helpers.tiny_export import save_tiny_export


@pytest.fixture(scope="module")
def tiny_export(tmp_path_factory):
    return save_tiny_export(tmp_path_factory.mktemp("exports") / "tiny")


def user_cameras_arguments(dataset, *more):
    fields = [f"data.path={dataset}", "data.image_height=16", "eval.batch_size=3"]
    config = ["--config=configs/quickstart.py", *(f"--config.{field}" for field in fields)]
    return [*map(str, more), *config]


def test_models_are_compared_on_other_cameras(tiny_export, rooms, tmp_path, capsys):
    output = tmp_path / "user_cameras.json"
    factors = ["--factors", "1", "2", f"--output={output}"]
    user_cameras.main(user_cameras_arguments(rooms, tiny_export, tiny_export, *factors))
    printed = capsys.readouterr().out
    report = json.loads(output.read_text())
    assert (report["num_scenes"], report["num_images"]) == (4, 12)
    rows = {(row["factor"], row["place"]): row for row in report["rows"]}
    assert rows.keys() == {(f, p) for f in (1, 2) for p in user_cameras.PLACES}
    for row in report["rows"]:
        assert row["psnr"][0] == pytest.approx(row["psnr"][1]) and row["psnr"][0] > 3
    assert f"{rows[2, 'middle']['copy_nearest']:.2f}" in printed and str(tiny_export) in printed
    # Rooms are square, seen straight on: at factor 1 there is one window.
    whole, corner = rows[1, "middle"], rows[1, "lower right"]
    assert corner["fxfycxcy"] == whole["fxfycxcy"] and corner["psnr"] == whole["psnr"]
    fx, _, cx, cy = whole["fxfycxcy"]
    for place, centre in (("middle", 0.5), ("upper left", 1.0), ("lower right", 0.0)):
        np.testing.assert_allclose([cx, cy], 0.5, atol=1e-6)
        expected = [2 * fx, 2 * fx, centre, centre]
        np.testing.assert_allclose(rows[2, place]["fxfycxcy"], expected, atol=1e-6)
        assert rows[2, place]["psnr"] != whole["psnr"]


def test_the_window_of_an_evaluation_is_that_of_its_row(tiny_export, rooms):
    arguments = user_cameras_arguments(rooms, tiny_export, "--factors", 2)
    options, config = parse_with_config(user_cameras._parser(), arguments)
    row = user_cameras.measure(config, options)["rows"][1]
    settings = EvalConfig(crop_share=0.5, crop_place=(0.0, 0.0))
    data = section(config, "data", DataConfig)
    scores = evaluate(lvsm_jax.load(tiny_export), open_eval_set(data, settings), progress=False)
    assert row["psnr"] == [pytest.approx(scores.mean("psnr"), abs=1e-4)]
    assert row["copy_nearest"] == pytest.approx(scores.mean("psnr", "copy_nearest"), abs=1e-4)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--factors", "0.5"], "--factors has 0.5, expected at least 1"),
        (["--config.eval.crop_shar=1"], "crop_shar"),
        (["--factor=2"], "factor"),
    ],
)
def test_mistakes_about_other_cameras_are_told_in_a_line(tiny_export, rooms, more, message):
    with pytest.raises(SystemExit, match=f"error: .*{message}"):
        user_cameras.main(user_cameras_arguments(rooms, tiny_export, *more))


def test_entropies_by_number_of_inputs(tiny_export, rooms, tmp_path, capsys):
    output = tmp_path / "entropy.json"
    arguments = [str(tiny_export), "--config=configs/quickstart.py", "--inputs", "1", "3"]
    fields = [f"--config.data.path={rooms}", "--config.data.image_height=16"]
    attention_entropy.main([*arguments, "--scenes=3", f"--output={output}", *fields])
    report = json.loads(output.read_text())
    assert report["num_scenes"] == 3
    found = report["rows"][0]["inputs"]
    assert {count: found[count]["tokens"] for count in found} == {"1": 4, "3": 12}
    # Random weights look at all tokens nearly alike.
    for count in found.values():
        assert 0.9 * np.log(count["tokens"]) < count["entropy"][0] <= np.log(count["tokens"])
    assert f"{found['3']['entropy'][0]:.2f} (" in capsys.readouterr().out
