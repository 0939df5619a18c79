"""The experiments of experiments/configs/arms.py: their views, runs at a time, means over seeds."""

import json
import sys
import time

import pytest

from experiments import __main__ as experiments
from experiments import parallel_runs
from experiments import report as reporting
from experiments.configs import arms as experiments_config
from input_pipeline import make_index, view_index
from input_pipeline.loading import open_eval_set
from input_pipeline.sampling import evaluation_views
from lvsm_jax.common.config import DataConfig, EvalConfig


def test_many_scenes_take_the_flops_of_few():
    few, many = map(experiments_config.get_config, ("plucker", "many_scenes"))
    flops = [c.run.num_steps * experiments_config.step_flops(c) for c in (few, many)]
    assert flops[1] == pytest.approx(flops[0], rel=5 / many.run.num_steps)
    assert (many.run.num_steps % 10, many.run.batch_size, many.data.num_targets) == (0, 16, 2)


@pytest.mark.parametrize("frames", [40, 41, 60])
def test_targets_of_the_experiments_are_never_inputs(frames):
    for seed in range(50):
        entry = view_index.choose_views(frames, view_index.COUNTS, [0, seed])
        assert entry == view_index.choose_views(frames, view_index.COUNTS, [0, seed])
        first, last = entry.context
        assert first >= 0 and last < frames and last - first >= 0.8 * frames
        assert len(set(entry.target)) == 3 and all(first < t < last for t in entry.target)
        for count in view_index.COUNTS:
            assert not set(entry.target) & set(evaluation_views(entry, count).inputs.tolist())
    with pytest.raises(ValueError, match="16 frames leave 0"):
        view_index.choose_views(16, [16], [0])


def test_an_index_for_few_and_many_inputs(rooms, tmp_path, capsys):
    output = tmp_path / "views.json"
    arguments = [str(rooms), f"--output={output}", "--inputs", "1", "2", "4"]
    make_index.main(arguments)
    data = DataConfig(path=rooms, image_height=32, num_inputs=4)
    some = open_eval_set(data, EvalConfig(index=str(output), num_inputs=4))
    assert some.num_scenes == 4
    assert all(not set(views.inputs) & set(views.targets) for views in some.views)
    for message, more in (("exists; choose another", []), ("clip .*: num_inputs is 16", ["16"])):
        if more:
            output.unlink()
        with pytest.raises(SystemExit, match=f"error: .*{message}"):
            make_index.main(arguments + more)


TINY_EXPERIMENT = [
    *("--arms", "plucker", "last_layer", "--seeds", "0", "--steps=4", "--inputs", "1", "2", "4"),
    *("--pictures", "plucker", "last_layer"),
]
TINY_RUN = {
    "model.width": 32,
    "model.head_dim": 16,
    "model.num_layers": 1,
    "data.image_height": 16,
    "data.num_views": 4,
    "data.min_span": 8,
    "data.num_targets": 1,
    "run.batch_size": 2,
    "run.eval_every": 2,
    "run.log_every": 1,
}


@pytest.mark.slow
@pytest.mark.long
def test_experiments_are_trained_and_reported(rooms, tmp_path, capsys):
    fields = {"data.path": rooms, **TINY_RUN}
    flags = [f"--config.{name}={value}" for name, value in fields.items()]
    experiments.main([str(tmp_path), *TINY_EXPERIMENT, "--train-flags", *flags])
    printed = capsys.readouterr().out
    report = json.loads((tmp_path / "experiments.json").read_text())
    assert list(report["arms"]) == ["plucker", "last_layer"]
    arm = report["arms"]["last_layer"]
    assert arm["overrides"] == {"model.co_refinement": False}
    assert [step for step, _ in arm["runs"]["0"]["curve"]] == [2, 4]
    # The last evaluation of training is on the same views.
    assert arm["psnr"]["2"]["mean"] == pytest.approx(arm["runs"]["0"]["curve"][-1][1], abs=1e-2)
    assert report["timing"]["step_seconds"].keys() == report["arms"].keys()
    for name in ("curves", "view_counts", "pictures"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert "| encoder's last layer" in printed

    # What is done is neither trained nor evaluated again.
    files = sorted(tmp_path.glob("*/seed_*/**/*.*"))
    changed = {file: file.stat().st_mtime_ns for file in files}
    experiments.main([str(tmp_path), *TINY_EXPERIMENT, "--train-flags", *flags])
    assert capsys.readouterr().out == printed
    assert {file: file.stat().st_mtime_ns for file in files} == changed


def invented_arm(curves, steps, inputs):
    """An arm of the report with a run a curve; the last one is not done."""
    found = {str(seed): {"curve": curve} for seed, curve in enumerate(curves)}
    for seed in range(len(curves) - 1):
        scores = {"model": curves[seed][-1][1], "copy_nearest": 10.0}
        found[str(seed)]["inputs"] = dict.fromkeys(inputs, scores)
    costs = {"steps": steps, "step_flops": 10**9, "parameters": 10**6}
    arm = {**costs, "overrides": {}, "config": {"data": {"image_height": 64}}, "runs": found}
    return arm | {"psnr": reporting.psnr_by_inputs(arm, inputs)}


def test_means_and_spreads_are_over_the_seeds_that_are_done():
    inputs = ["1", "2"]
    flat = [[(50, 20.0), (100, 20.0)], [(50, 21.0), (100, 21.0)], [(50, 30.0)]]
    better = [[(50, 21.0), (100, 22.0)], [(50, 21.0), (100, 25.0)]]
    arms = {
        "plucker": invented_arm(flat, 100, inputs),
        "prope": invented_arm(better, 100, inputs),
        "all_changes": invented_arm([[]], 100, inputs),
    }
    timing = {"step_seconds": {"plucker": 6.0, "prope": 12.0}, "source": "invented"}
    report = {"inputs": [1, 2], "timing": timing, "arms": arms}
    assert arms["plucker"]["psnr"]["2"] == {"mean": 20.5, "spread": 1.0, "seeds": 2}
    text = reporting.tables(report)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    assert ["100 steps", "20.50 (1.00)", "22.00", "+2.00"] in rows  # seed 0 against seed 0
    assert ["10.0 minutes", "20.50 (1.00)", "21.00", "+1.00"] in rows
    assert ["…, all three", "–", "–", "0"] in rows
    assert reporting.draw_curves(report, ["plucker", "prope", "all_changes"]) is not None
    assert reporting.draw_view_counts(report) is not None


def sleeping_run(tmp_path, program):
    command = [sys.executable, "-c", program]
    return parallel_runs.Run("plucker", 0, 9, tmp_path / "plucker" / "seed_0", command)


def test_a_stopped_program_stops_its_runs(tmp_path, monkeypatch):
    asked = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit('told'))"
    run = sleeping_run(tmp_path, f"{asked}; print('ready', flush=True); time.sleep(60)")
    log = tmp_path / "plucker" / "seed_0.txt"

    def interrupt(seconds):
        while "ready" not in log.read_text():
            wait(0.01)
        with pytest.raises(SystemExit, match="is being trained by another process"):
            parallel_runs.train_all([run], tmp_path, 1)
        raise KeyboardInterrupt

    wait = time.sleep
    monkeypatch.setattr(parallel_runs.time, "sleep", interrupt)
    with pytest.raises(SystemExit, match="the same command goes on"):
        parallel_runs.train_all([run], tmp_path, 1)
    assert log.read_text().endswith("told\n")


def test_runs_that_fail_are_named(tmp_path):
    run = sleeping_run(tmp_path, "import sys; sys.exit('no such field')")
    assert parallel_runs.train_all([run], tmp_path, 1) == ["plucker/seed_0"]
    assert "no such field" in (tmp_path / "plucker" / "seed_0.txt").read_text()
