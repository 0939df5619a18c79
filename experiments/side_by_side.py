"""The three models trained side by side: PSNR over steps, and over time.

    python -m experiments.side_by_side runs/side_by_side             # hours on two CPU cores
    python -m experiments.side_by_side runs/side_by_side --no-train  # draws what is there

Trains `experiments/configs/side_by_side.py:ARCHITECTURE` with train.py, one after the other, in
runs/side_by_side/ARCHITECTURE: first --steps each, then the faster ones until they have had as much
time as the slowest. Interrupted at any moment, the same command goes on. It writes

    curves.png           PSNR on held-out scenes over steps and over minutes
    side_by_side.json    the same as numbers

and prints tables of PSNR at the same step and at the same time, linear between two evaluations.
Time is steps times the seconds of a step, for those that a run took depend on what else the machine
did. A step's seconds are measured once all have had --steps, on random pictures of the runs' sizes:
the models take turns, and the median counts. Evaluations and waiting for data are left out. Let
nothing else run meanwhile.
"""

import argparse
import math
import pathlib
from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from benchmarks import common
from benchmarks.common import COLORS, NAMES
from experiments import runs as training
from experiments.parallel_runs import Run, train_all
from experiments.report import common_end, draw_training, over_training
from lvsm_jax.common.command_line import program
from lvsm_jax.common.errors import UserError

_MODELS = ("EfficientLVSM", "LVSMDecoderOnly", "LVSMEncoderDecoder")
_MEASURED_STEPS = 20


@program
def main(arguments: list[str]) -> None:
    """Trains, measures, draws."""
    options = _parser().parse_args(arguments)
    directory = options.directory = options.directory.resolve()
    if not options.no_train:
        train(dict.fromkeys(_MODELS, options.steps), options)
    timing = step_times(directory, options.measure_steps)
    if not options.no_train:
        steps = steps_in_same_time(timing["step_seconds"], options.steps)
        for name, count in steps.items():
            every = training.read_config(directory / name).run.eval_every
            steps[name] = math.ceil(count / every) * every
        train(steps, options)
    report = make_report(directory, timing)
    common.write_report(directory / "side_by_side.json", report)
    common.save_figure(directory / "curves.png", draw(report))
    print(tables(report))
    print(f"\nwrote {directory / 'side_by_side.json'} and {directory / 'curves.png'}")


def train(steps: Mapping[str, int], options: argparse.Namespace) -> None:
    """Trains each architecture up to its steps, one after the other, unless they are done."""
    runs = []
    for architecture, count in steps.items():
        config, workdir = f"side_by_side.py:{architecture}", options.directory / architecture
        fields = {"run.num_steps": count}
        command = training.train_command(config, workdir, fields, options.train_flags)
        runs.append(Run(architecture, 0, count, workdir, command))
    if failed := train_all(runs, options.directory / ".compiled", 1):
        raise UserError(f"not trained to the end, see their .txt: {', '.join(failed)}")


def step_times(directory: pathlib.Path, rounds: int | None) -> dict[str, Any]:
    """Seconds of a step, by default those of an earlier call: how long runs train rests on them."""
    runs = {
        name: [directory / name] for name in _MODELS if (directory / name / "config.json").exists()
    }
    if not runs:
        raise UserError(f"no runs in {directory}; without --no-train they are made")
    timing = training.find_timing(runs, directory / "side_by_side.json", rounds)
    if rounds is None and not (timing["measured"] and timing["step_seconds"].keys() == runs.keys()):
        timing = training.find_timing(runs, directory / "side_by_side.json", _MEASURED_STEPS)
    return timing


def steps_in_same_time(step_seconds: Mapping[str, float], steps: int) -> dict[str, int]:
    """Steps for each to have as much time as the slowest has for `steps`."""
    time_of_slowest = max(step_seconds.values()) * steps
    return {name: math.ceil(time_of_slowest / s - 1e-9) for name, s in step_seconds.items()}


def make_report(directory: pathlib.Path, timing: Mapping[str, Any]) -> dict[str, Any]:
    """The runs as arms of one seed each, see `experiments.report`."""
    arms = {}
    for name in timing["step_seconds"]:
        workdir = directory / name
        run = {"curve": [list(point) for point in training.read_curve(workdir)], "inputs": {}}
        steps = {"steps": training.last_step(workdir)}
        arms[name] = steps | training.about(workdir) | {"runs": {"0": run}}
    if not any(arm["runs"]["0"]["curve"] for arm in arms.values()):
        raise UserError(f"no evaluations in {directory}/*/metrics.csv")
    return {"timing": dict(timing), "arms": arms}


def tables(report: Mapping[str, Any]) -> str:
    """The comparison in Markdown tables."""
    seconds, rows = report["timing"]["step_seconds"], []
    for name, arm in report["arms"].items():
        curve = arm["runs"]["0"]["curve"]
        row = [NAMES[name], f"{arm['parameters'] / 1e6:.2f} M", f"{seconds[name]:.3f}"]
        row += [f"{seconds[name] / min(seconds.values()):.2f}×", arm["steps"]]
        rows.append([*row, f"{curve[-1][1]:.2f}" if curve else None])
    header = ["model", "weights", "s a step", "of the fastest", "steps", "PSNR at the end, dB"]
    compared = over_training(report, list(report["arms"]), NAMES)
    source = f"Seconds a step: {report['timing']['source']}."
    return "\n\n".join([source, common.markdown_table(header, rows), compared])


def draw(report: Mapping[str, Any]) -> Figure:
    """PSNR over steps and over minutes, a line a model."""
    arms = report["arms"]
    first = next(iter(arms.values()))["config"]
    data, run = first["data"], first["run"]
    curves = {name: [arm["runs"]["0"]["curve"]] for name, arm in arms.items()}
    curves = {name: own for name, own in curves.items() if own[0]}
    labels = {name: NAMES[name].removeprefix("LVSM ") for name in curves}
    figure, (over_steps, over_time) = draw_training(curves, report["timing"], labels, COLORS)
    figure.suptitle(
        f"Held-out PSNR in training: {data['image_height']} px, {data['num_inputs']} inputs, "
        f"{data['num_targets']} targets, batch {run['batch_size']}, one run each",
        fontsize=12,
    )
    steps, seconds = common_end(arms, report["timing"]["step_seconds"])
    for axes, x, text in (
        (over_steps, steps, "same steps "),
        (over_time, seconds / 60, "same time "),
    ):
        axes.axvline(x, color="0.6", linewidth=1, linestyle=":")
        axes.text(x, 0.02, text, transform=axes.get_xaxis_transform(), ha="right", color="0.4")
    return figure


def _parser() -> argparse.ArgumentParser:
    parser = common.module_parser("experiments.side_by_side", __doc__)
    training.add_training_options(parser)
    parser.add_argument("--steps", type=int, default=800,
                        help="that each model is trained for at least (800)")  # fmt: skip
    return parser


if __name__ == "__main__":
    main()
