"""The three models trained side by side: same steps, same time, and what a step takes."""

import csv
import json

import pytest

from experiments import runs, side_by_side
from experiments.configs import side_by_side as side_by_side_config

CURVES = {
    "EfficientLVSM": [(50, 10.0), (100, 20.0), (400, 26.0)],
    "LVSMDecoderOnly": [(50, 14.0), (100, 24.0)],
}
TIMING = {"step_seconds": {"EfficientLVSM": 0.5, "LVSMDecoderOnly": 2.0}, "source": "invented"}


def test_psnr_between_evaluations():
    curve = CURVES["EfficientLVSM"]
    assert runs.psnr_at(curve, 75) == 15
    assert runs.psnr_at(curve, 400) == 26
    assert runs.psnr_at(curve, 25) is None
    assert runs.psnr_at(curve, 401) is None
    assert runs.psnr_at([], 50) is None


def test_steps_in_the_same_time():
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
    curves = {name: arm["runs"]["0"]["curve"] for name, arm in report["arms"].items()}
    assert curves == {name: [list(point) for point in curve] for name, curve in CURVES.items()}
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "| LVSM decoder-only" in printed
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in printed.splitlines()]
    assert ["100 steps", "20.00", "24.00", "+4.00"] in rows
    assert ["3.3 minutes", "26.00", "24.00", "-2.00"] in rows
    assert ["0.8 minutes", "20.00", "–", "–"] in rows  # before its first evaluation


def test_the_models_are_trained_for_the_same_time(tmp_path, monkeypatch):
    """First all for the same steps, then each for as long as the slowest, in whole evaluations."""
    trained = []

    def train_all(runs, compiled, at_once):
        trained.append({run.arm: (run.steps, run.command[-2:]) for run in runs})
        for run in runs:
            if not (tmp_path / run.arm).exists():
                write_run(tmp_path, run.arm, CURVES.get(run.arm, [(50, 1.0)]), 0.5)
        return []

    monkeypatch.setattr(side_by_side, "train_all", train_all)
    times = {"EfficientLVSM": 0.5, "LVSMDecoderOnly": 2.0, "LVSMEncoderDecoder": 1.9}
    timing = {"measured": True, "step_seconds": times, "source": "invented"}
    monkeypatch.setattr(side_by_side.training, "find_timing", lambda *_: timing)
    flags = ["--train-flags", "--config.data.path=x"]
    side_by_side.main([str(tmp_path), "--steps=100", *flags])
    first, then = trained
    assert {steps for steps, _ in first.values()} == {100}
    assert [steps for steps, _ in then.values()] == [400, 100, 150]
    assert then["EfficientLVSM"][1] == ["--config.run.num_steps=400", "--config.data.path=x"]
    monkeypatch.setattr(side_by_side, "train_all", lambda *_: ["runs/LVSMDecoderOnly"])
    with pytest.raises(SystemExit, match=r"error: not trained to the end, .*LVSMDecoderOnly"):
        side_by_side.main([str(tmp_path), "--steps=100", *flags])


def test_no_runs_is_an_error_in_one_line(tmp_path):
    with pytest.raises(SystemExit, match="error: no runs"):
        side_by_side.main([str(tmp_path), "--no-train"])


@pytest.mark.slow
def test_training_steps_are_timed():
    config = side_by_side_config.get_config("LVSMDecoderOnly")
    config.model.update(width=32, num_layers=1)
    config.data.image_height = 16
    config.run.batch_size = 8
    varied = config.copy_and_resolve_references()
    varied.data.input_counts = (1, 3)
    seconds = runs.measure_steps({"tiny": config, "varied": varied}, 1)
    assert list(seconds) == ["tiny", "varied"] and min(seconds.values()) > 0
