"""What the benchmarks of the three models compute, tabulate and draw; no test of speed."""

import argparse
import csv
import json

import jax
import numpy as np
import pytest
from flax import nnx

import lvsm_jax
from benchmarks import cache_quality, incremental, losses, models
from benchmarks.common import markdown_table, measured, random_batch, spread
from experiments import attention_entropy, runs, side_by_side, user_cameras
from experiments.configs import side_by_side as side_by_side_config
from input_pipeline.clip_scene import open_scene
from input_pipeline.loading import open_eval_set
from input_pipeline.storage import SplitReader
from lvsm_jax.common.command_line import read_config_file
from lvsm_jax.common.config import DataConfig, EvalConfig, section
from lvsm_jax.evaluation.scoring import evaluate
from lvsm_jax.models.architectures import CONFIGS


def test_labels_keep_apart_and_in_order():
    assert spread([0.5, 0.1, 0.9], 0.1) == [0.5, 0.1, 0.9]
    moved = spread([0.51, 0.5, 0.9, 0.52], 0.1)
    np.testing.assert_allclose(moved, [0.51, 0.41, 0.9, 0.61])
    # Two groups that grow into each other become one.
    np.testing.assert_allclose(np.diff(spread([0.0, 0.0, 0.12, 0.12], 0.1)), 0.1)


def test_markdown_table():
    table = markdown_table(["a", "number"], [["first", "1"], ["b", "20"]])
    assert table.splitlines() == [
        "| a     | number |",
        "| ----- | -----: |",
        "| first |      1 |",
        "| b     |     20 |",
    ]


@pytest.mark.parametrize(("seconds", "calls"), [(1e9, 3), (1e-12, 1)])
def test_slow_calls_are_made_once(seconds, calls):
    made = []

    def function(x):
        jax.debug.callback(lambda: made.append(1))
        return x + 1

    row = measured(function, (np.zeros(3),), 3, 3, enough_seconds=seconds)
    jax.effects_barrier()
    warm_up = 1 if calls > 1 else 0
    assert (row["calls"], len(made)) == (calls, calls + warm_up)
    assert row["argument_bytes"] == row["output_bytes"] == 12


def test_a_random_batch_fits_the_models():
    batch = random_batch(2, views=3, targets=4, size=16)
    assert batch.inputs.images.shape == (2, 3, 16, 16, 3)
    assert batch.targets.cameras.shape == (2, 4)


def options(**changes) -> argparse.Namespace:
    given = models._parser().parse_args([])
    return argparse.Namespace(**{**vars(given), **changes})


def test_sizes_keep_the_published_proportions():
    at_128 = {name: models.sized_config(name, options(size=128)) for name in CONFIGS}
    assert at_128["LVSMEncoderDecoder"].num_latents == 3072 // 4
    assert [config.num_layers for config in at_128.values()] == [12, 24, 12]
    quarter = [models.sized_config(name, options(layers_fraction=0.25)) for name in CONFIGS]
    assert [config.num_layers for config in quarter] == [3, 6, 3]


def test_each_cell_is_measured_once():
    cells = models.plan(options(views=[8, 2], targets=[1, 8], at_once=[8, 8]))
    assert len(cells) == len(set(cells)) == 2 * 2 * 3 + 2
    assert [cell.targets_at_once for cell in cells[-2:]] == [0, 0]
    assert models.plan(options(at_once=[0, 0])) == models.plan(options(at_once=[8, 8]))[:-2]


def test_exponents_of_linear_and_quadratic_cost():
    rows = [
        {"architecture": name, "targets": 1, "views": v, "seconds": v**power, "flops": v}
        for name, power in (("EfficientLVSM", 1), ("LVSMDecoderOnly", 2))
        for v in (2, 4, 8)
    ]
    rows.append({**rows[-1], "views": 16, "skipped": "would take about 9 s"})
    linear, quadratic = models.exponents(rows)
    assert (linear["seconds"], quadratic["seconds"]) == pytest.approx((1, 2))
    assert quadratic["flops"] == pytest.approx(1)
    assert quadratic["views"] == [4, 8]


def test_models_are_measured_and_drawn(tmp_path, capsys):
    output, plot = tmp_path / "models.json", tmp_path / "models.png"
    compared = ["EfficientLVSM", "LVSMDecoderOnly"]
    sizes = ["--size=32", "--width=64", "--layers-fraction=0.05", "--matmul-sizes=64"]
    cells = ["--views=2", "--targets=8", "--at-once", "2", "8", "--architectures", *compared]
    models.main([*sizes, *cells, "--repeats=1", f"--output={output}", f"--plot={plot}"])
    printed = capsys.readouterr().out
    report = json.loads(output.read_text())
    assert [row["architecture"] for row in report["cells"]] == [*compared, compared[1]]
    assert all(row["seconds"] > 0 and row["flops"] > 0 for row in report["cells"])
    alone, all_at_once = report["cells"][1:]
    assert (alone["targets_at_once"], all_at_once["targets_at_once"]) == (1, 0)
    assert alone["temporary_bytes"] < all_at_once["temporary_bytes"]
    assert "not the published size, layers, width" in printed
    assert plot.read_bytes().startswith(b"\x89PNG")

    models.main([f"--read={output}"])
    assert capsys.readouterr().out == printed


def test_cells_that_would_take_too_long_are_named(tmp_path, capsys):
    arguments = ["--size=16", "--width=64", "--layers-fraction=0.05", "--matmul-sizes=64"]
    with pytest.raises(SystemExit, match="nothing to draw"):
        models.main([*arguments, "--max-seconds=1e-12", f"--plot={tmp_path / 'x.png'}"])
    assert "skipped: would take about 0 s" in capsys.readouterr().out


def test_a_missing_report_is_an_error_in_one_line(tmp_path):
    with pytest.raises(SystemExit, match=r"error: .*missing\.json"):
        models.main([f"--read={tmp_path / 'missing.json'}"])


CURVES = {
    "EfficientLVSM": [(50, 10.0), (100, 20.0), (400, 26.0)],
    "LVSMDecoderOnly": [(50, 14.0), (100, 24.0)],
}
TIMING = {"step_seconds": {"EfficientLVSM": 0.5, "LVSMDecoderOnly": 2.0}, "source": "invented"}


def test_psnr_between_evaluations():
    curve = CURVES["EfficientLVSM"]
    assert side_by_side.psnr_at(curve, 75) == 15
    assert side_by_side.psnr_at(curve, 400) == 26
    assert side_by_side.psnr_at(curve, 25) is None
    assert side_by_side.psnr_at(curve, 401) is None
    assert side_by_side.psnr_at([], 50) is None


def test_same_step_and_same_time():
    report = side_by_side.compare(CURVES, TIMING, 100)
    assert report["same_step"][-1] == {"step": 100, "EfficientLVSM": 20, "LVSMDecoderOnly": 24}
    end = report["same_time"][-1]
    assert end == {"minutes": 200 / 60, "EfficientLVSM": 26, "LVSMDecoderOnly": 24}
    assert report["same_time"][0]["LVSMDecoderOnly"] is None  # before its first evaluation
    steps = side_by_side.steps_in_same_time(TIMING["step_seconds"], 100)
    assert steps == {"EfficientLVSM": 400, "LVSMDecoderOnly": 100}


def write_run(directory, architecture, curve, step_seconds):
    """A run's config and table, with rows between the evaluations as train.py writes them."""
    run = directory / architecture
    run.mkdir(parents=True)
    config = side_by_side_config.get_config(architecture)
    (run / "config.json").write_text(json.dumps(config.to_dict()))
    with (run / "metrics.csv").open("w") as file:
        table = csv.writer(file)
        table.writerow(["step", "step_seconds", "eval/psnr"])
        for step, psnr in curve:
            table.writerow([step - 25, step_seconds, ""])
            table.writerow([step, step_seconds, psnr])


def test_runs_are_read_and_drawn(tmp_path, capsys):
    for name, curve in CURVES.items():
        write_run(tmp_path, name, curve, TIMING["step_seconds"][name])
    side_by_side.main([str(tmp_path), "--no-train", "--measure-steps=0", "--steps=100"])
    report = json.loads((tmp_path / "side_by_side.json").read_text())
    assert report["timing"]["step_seconds"] == TIMING["step_seconds"]
    assert report["same_time"] == side_by_side.compare(CURVES, TIMING, 100)["same_time"]
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert "| LVSM decoder-only" in capsys.readouterr().out


def test_runs_that_are_done_are_not_trained_again(tmp_path, monkeypatch):
    write_run(tmp_path, "EfficientLVSM", CURVES["EfficientLVSM"], 0.5)
    commands = []

    class Killed:
        returncode = -9

        def __init__(self, command):
            commands.append(command)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def wait(self):
            pass

    monkeypatch.setattr(side_by_side.subprocess, "Popen", Killed)
    given = argparse.Namespace(directory=tmp_path, train_flags=["--config.data.path=x"])
    side_by_side.train("EfficientLVSM", 400, given)
    assert not commands
    with pytest.raises(SystemExit, match="training EfficientLVSM failed"):
        side_by_side.train("EfficientLVSM", 401, given)
    assert commands[0][-2:] == ["--config.run.num_steps=401", "--config.data.path=x"]


def test_no_runs_is_an_error_in_one_line(tmp_path):
    with pytest.raises(SystemExit, match="error: no runs"):
        side_by_side.main([str(tmp_path), "--no-train"])


def test_training_steps_are_timed():
    config = side_by_side_config.get_config("LVSMDecoderOnly")
    config.model.update(width=32, num_layers=1)
    config.data.image_height = 16
    config.run.batch_size = 8
    varied = config.copy_and_resolve_references()
    varied.data.input_counts = (1, 3)
    seconds = runs.measure_steps({"tiny": config, "varied": varied}, 1)
    assert list(seconds) == ["tiny", "varied"] and min(seconds.values()) > 0


@pytest.fixture(scope="module")
def tiny_export(tmp_path_factory):
    config = lvsm_jax.EfficientLVSMConfig(num_layers=1, width=32, head_dim=16)
    path = tmp_path_factory.mktemp("exports") / "tiny"
    lvsm_jax.save(lvsm_jax.EfficientLVSM(config, rngs=nnx.Rngs(0)), path)
    return path


def test_the_cache_is_measured_and_drawn(tiny_export, rooms, tmp_path, capsys):
    clip = read_scene_names(rooms)[0]
    files = [f"--output={tmp_path / 'cache.json'}", f"--plot={tmp_path / 'cache.png'}"]
    sizes = ["--size=16", "--views", "1", "3", "--targets", "2", "--repeats=1", "--decoder-only=1"]
    more = ["--matmul-sizes", "64", f"--export={tiny_export}", "--scenes", clip]
    incremental.main([*sizes, *more, *files])
    printed = capsys.readouterr().out
    report = json.loads((tmp_path / "cache.json").read_text())
    assert [row["views"] for row in report["rows"]] == [1, 3]
    assert all(row["add"] > 0 and row["render_2"] > row["floor_2"] for row in report["rows"])
    assert "decoder_only_2" in report["rows"][0] and "decoder_only_2" not in report["rows"][1]
    assert report["bytes_a_view"] == 2 * 1 * 4 * 32 * 4  # 2 · layers · tokens · width · bytes
    quality = {(row["views"], row["dtype"]): row for row in report["quality"]["rows"]}
    assert quality.keys() == {(v, d) for v in (1, 3) for d in incremental.CACHE_DTYPES}
    assert quality[3, "int8"]["difference"] is None or quality[3, "int8"]["difference"] > 30
    assert "int8: lost, dB" in printed and "decoder-only" in printed
    drawn = (tmp_path / "cache.png").read_bytes()
    (tmp_path / "cache.png").unlink()
    incremental.main([f"--read={tmp_path / 'cache.json'}", files[1]])
    assert capsys.readouterr().out == printed
    assert (tmp_path / "cache.png").read_bytes() == drawn


def read_scene_names(dataset):
    return [f"{dataset}/test:{key}" for key in SplitReader(dataset, "test").scenes.key]


def test_targets_of_a_quality_measurement_are_no_inputs(rooms):
    inputs, targets = cache_quality.middle(open_scene(read_scene_names(rooms)[0]))
    names = [photograph.name for photograph in (*inputs, *targets)]
    assert len(set(names)) == len(names) and len(targets) == cache_quality.TARGETS
    assert names[0] == "frame-0"


def test_random_weights_have_no_quality(rooms):
    with pytest.raises(SystemExit, match="error: --scenes need --export"):
        incremental.main(["--scenes", read_scene_names(rooms)[0]])


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
    config = read_config_file("configs/quickstart.py")
    config.data.update(path=str(rooms), image_height=16)
    report = user_cameras.measure([str(tiny_export)], config, [2.0])
    row = report["rows"][1]
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


def test_what_each_loss_adds_is_counted(capsys):
    losses.main(["--config=configs/re10k_256_repa.py", "--batch=1", "--count"])
    _, mse, *others, not_due = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in (mse, not_due)] == ["0.0%", "0.0%"]
    # The published recipe's own: a teacher's and a projector's pass, and VGG-19's.
    more = [float(line.split()[-1].rstrip("%")) for line in others]
    assert more == [12.1, 10.0, 21.0, 33.1]
