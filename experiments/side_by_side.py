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
import json
import math
import pathlib
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.common import COLORS, NAMES, decibels, label_ends, markdown_table
from experiments.runs import (
    Curve,
    about,
    last_step,
    logged_times,
    measure_apart,
    psnr_at,
    read_config,
    read_curve,
    train_command,
)
from lvsm_jax.common.files import atomic_write, write_text
from lvsm_jax.models.architectures import CONFIGS


def main(arguments: list[str] | None = None) -> None:
    """Trains, measures, draws."""
    options = _parser().parse_args(arguments)
    directory = options.directory
    if not options.no_train:
        for architecture in CONFIGS:
            train(architecture, options.steps, options)
    timing = known_timing(directory) if options.measure_steps is None else None
    if timing is None:
        timing = time_steps(
            directory, 20 if options.measure_steps is None else options.measure_steps
        )
    if not options.no_train:
        same_time = steps_in_same_time(timing["step_seconds"], options.steps)
        for architecture, steps in same_time.items():
            every = read_config(directory / architecture).run.eval_every
            train(architecture, math.ceil(steps / every) * every, options)
    curves = {name: read_curve(directory / name) for name in timing["step_seconds"]}
    if not any(curves.values()):
        sys.exit(f"error: no evaluations in {directory}/*/metrics.csv")
    report = compare(curves, timing, options.steps)
    report["models"] = {name: about(directory / name) for name in curves}
    write_text(directory / "side_by_side.json", json.dumps(report, indent=2) + "\n")
    with atomic_write(directory / "curves.png") as local:
        draw(report).savefig(local, format="png", dpi=150)
    print(tables(report))
    print(f"\nwrote {directory / 'side_by_side.json'} and {directory / 'curves.png'}")


def train(architecture: str, steps: int, options: argparse.Namespace) -> None:
    """Runs train.py up to so many steps, unless they are done."""
    workdir = (options.directory / architecture).resolve()
    if last_step(workdir) >= steps:
        return
    config = f"side_by_side.py:{architecture}"
    command = train_command(config, workdir, {"run.num_steps": steps}, options.train_flags)
    print(f"==> {architecture} up to step {steps}", file=sys.stderr, flush=True)
    with subprocess.Popen(command) as process:
        try:
            process.wait()
        except KeyboardInterrupt:  # train.py has been told too, and saves its state
            process.wait()
    if process.returncode:
        sys.exit(f"error: training {architecture} failed; see {workdir}/log.txt")
    if last_step(workdir) < steps:
        sys.exit(f"stopped at step {last_step(workdir)}; the same command goes on from there")


def known_timing(directory: pathlib.Path) -> dict[str, Any] | None:
    """What an earlier call measured for these runs: how long they train rests on it."""
    file = directory / "side_by_side.json"
    if not file.exists():
        return None
    timing = json.loads(file.read_text())["timing"]
    runs = {name for name in CONFIGS if (directory / name / "config.json").exists()}
    return timing if timing["step_seconds"].keys() == runs else None


def time_steps(directory: pathlib.Path, rounds: int) -> dict[str, Any]:
    """Seconds of a training step of the runs in a directory, and how they were found.

    Args:
        directory: with a run of each architecture; those that are missing are left out.
        rounds: steps of each that are measured; 0 takes the median of what the runs logged.
    """
    runs = {
        name: directory / name for name in CONFIGS if (directory / name / "config.json").exists()
    }
    if not runs:
        sys.exit(f"error: no runs in {directory}; without --no-train they are made")
    if not rounds:
        return logged_times({name: [run] for name, run in runs.items()})
    return measure_apart({name: read_config(run) for name, run in runs.items()}, rounds)


def steps_in_same_time(step_seconds: Mapping[str, float], steps: int) -> dict[str, int]:
    """Steps for each to have as much time as the slowest has for `steps`."""
    time_of_slowest = max(step_seconds.values()) * steps
    return {name: math.ceil(time_of_slowest / s - 1e-9) for name, s in step_seconds.items()}


def compare(
    curves: Mapping[str, Curve], timing: Mapping[str, Any], num_steps: int
) -> dict[str, Any]:
    """Curves, and PSNR at quarters of the steps and of the slowest's time for them.

    Args:
        curves: by architecture.
        timing: from `time_steps`.
        num_steps: that all are compared at.
    """
    seconds = timing["step_seconds"]
    end = max(seconds.values()) * num_steps
    shares = (0.25, 0.5, 0.75, 1.0)
    return {
        "steps": num_steps,
        "timing": dict(timing),
        "curves": {name: [list(point) for point in curve] for name, curve in curves.items()},
        "same_step": [
            {"step": num_steps * share}
            | {name: psnr_at(curve, num_steps * share) for name, curve in curves.items()}
            for share in shares
        ],
        "same_time": [
            {"minutes": end * share / 60}
            | {name: psnr_at(curve, end * share / seconds[name]) for name, curve in curves.items()}
            for share in shares
        ],
    }


def tables(report: Mapping[str, Any]) -> str:
    """The comparison in Markdown tables."""
    curves, timing = report["curves"], report["timing"]
    seconds = timing["step_seconds"]
    names = [NAMES[name] for name in curves]
    models = [
        [
            NAMES[name],
            f"{report['models'][name]['parameters'] / 1e6:.2f} M",
            f"{seconds[name]:.3f}",
            f"{seconds[name] / min(seconds.values()):.2f}×",
            str(curve[-1][0]) if curve else "–",
            f"{curve[-1][1]:.2f}" if curve else "–",
        ]
        for name, curve in curves.items()
    ]
    header = ["model", "weights", "s a step", "of the fastest", "steps", "PSNR at the end, dB"]

    def rows(key: str, unit: str, form: str) -> str:
        lines = [
            [format(row[unit], form), *(decibels(row[name]) for name in curves)]
            for row in report[key]
        ]
        return markdown_table([f"PSNR, dB, after {unit}", *names], lines)

    return "\n\n".join(
        [
            f"Seconds a step: {timing['source']}.",
            markdown_table(header, models),
            rows("same_step", "step", ".0f"),
            rows("same_time", "minutes", ".1f"),
        ]
    )


def draw(report: Mapping[str, Any]) -> Figure:
    """PSNR over steps and over minutes, a line a model."""
    seconds = report["timing"]["step_seconds"]
    first = next(iter(report["models"].values()))["config"]
    data, run = first["data"], first["run"]
    figure = Figure(figsize=(10, 4.4), layout="constrained")
    figure.suptitle(
        f"Held-out PSNR in training: {data['image_height']} px, {data['num_inputs']} inputs, "
        f"{data['num_targets']} targets, batch {run['batch_size']}, one run each",
        fontsize=12,
    )
    over_steps, over_time = figure.subplots(1, 2, sharey=True)
    ends: dict[Any, list[tuple]] = {over_steps: [], over_time: []}
    for name, curve in report["curves"].items():
        if not curve:
            continue
        steps, values = np.array(curve).T
        for axes, x in ((over_steps, steps), (over_time, steps * seconds[name] / 60)):
            axes.plot(x, values, color=COLORS[name], linewidth=2)
            ends[axes].append((x[-1], values[-1], NAMES[name].removeprefix("LVSM "), COLORS[name]))
    end = report["same_time"][-1]["minutes"]
    for axes, x, text in (
        (over_steps, report["steps"], "same steps"),
        (over_time, end, "same time"),
    ):
        axes.axvline(x, color="0.6", linewidth=1, linestyle=":")
        axes.annotate(
            text,
            (x, 0.02),
            xycoords=("data", "axes fraction"),
            xytext=(-4, 0),
            textcoords="offset points",
            ha="right",
            color="0.4",
        )
        axes.set_xlim(left=0)
        axes.grid(True, color="0.9")
        axes.spines[["top", "right"]].set_visible(False)
    over_steps.set(xlabel="steps", ylabel="PSNR, dB")
    over_time.set_xlabel(f"minutes = steps × seconds a step,\n{report['timing']['source']}")
    for axes, labels in ends.items():
        label_ends(axes, labels, 0.08)
    return figure


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.side_by_side",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("directory", type=pathlib.Path, help="of the three runs and of what is written")
    add("--steps", type=int, default=800, help="that each model is trained for at least (800)")
    add("--measure-steps", type=int,
        help="steps of each to time; 0 takes the times that the runs logged (what an earlier call "
             "found, else 20)")  # fmt: skip
    add("--no-train", action="store_true", help="only measure a step, and draw what is there")
    add("--train-flags", nargs=argparse.REMAINDER, default=[], metavar="FLAG",
        help="passed to train.py, last: --train-flags --config.data.path=...")  # fmt: skip
    return parser


if __name__ == "__main__":
    main()
