"""The three models trained side by side: PSNR over steps, and over time.

    python -m benchmarks.side_by_side runs/side_by_side             # hours on two CPU cores
    python -m benchmarks.side_by_side runs/side_by_side --no-train  # draws what is there

Trains `configs/side_by_side.py:ARCHITECTURE` with train.py, one model after the other, in
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
import concurrent.futures
import csv
import io
import json
import math
import multiprocessing
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

import jax
import ml_collections
import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

from benchmarks.common import COLORS, NAMES, hardware, label_ends, markdown_table, random_batch
from lvsm_jax.architectures import CONFIGS, abstract_model
from lvsm_jax.files import atomic_write, write_text
from lvsm_jax.mesh import MeshConfig, make_mesh, shard_batch, simulate_cpu_devices
from lvsm_jax.train_state import TrainingConfig, compiled_step, init_state

_REPOSITORY = pathlib.Path(__file__).resolve().parent.parent

# Evaluations of a run: steps and PSNR in dB.
Curve = list[tuple[int, float]]


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
    command = [
        sys.executable,
        str(_REPOSITORY / "train.py"),
        f"--config={_REPOSITORY}/configs/side_by_side.py:{architecture}",
        f"--workdir={workdir}",
        f"--config.run.num_steps={steps}",
        *options.train_flags,
    ]
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


def read_rows(workdir: pathlib.Path) -> list[dict[str, float]]:
    """The rows of a run's metrics.csv, without its empty cells."""
    file = workdir / "metrics.csv"
    text = file.read_text() if file.exists() else ""
    rows = csv.DictReader(io.StringIO(text))
    return [{name: float(value) for name, value in row.items() if value} for row in rows]


def read_curve(workdir: pathlib.Path) -> Curve:
    """The quick evaluations of a run."""
    rows = read_rows(workdir)
    return [(int(row["step"]), row["eval/psnr"]) for row in rows if "eval/psnr" in row]


def last_step(workdir: pathlib.Path) -> int:
    """The last step that a run has logged."""
    return int(max((row["step"] for row in read_rows(workdir)), default=0))


def read_config(workdir: pathlib.Path) -> ml_collections.ConfigDict:
    """The config that a run was made with."""
    return ml_collections.ConfigDict(json.loads((workdir / "config.json").read_text()))


def about(workdir: pathlib.Path) -> dict[str, Any]:
    """What the report says of a run's model."""
    config = read_config(workdir)
    leaves = jax.tree.leaves(abstract_model(TrainingConfig.of(config).model))
    return {"parameters": sum(leaf.size for leaf in leaves), "config": config.to_dict()}


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
        logged = {
            name: [row["step_seconds"] for row in read_rows(run) if "step_seconds" in row]
            for name, run in runs.items()
        }
        seconds = {name: statistics.median(times) for name, times in logged.items() if times}
        return {"step_seconds": seconds, "source": "as logged while training"}
    configs = {name: read_config(run) for name, run in runs.items()}
    # In a process of its own: it takes the accelerator, which training may need again.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_measure_in_process, configs, rounds).result()


def measure_steps(
    configs: Mapping[str, ml_collections.ConfigDict], rounds: int
) -> dict[str, float]:
    """The median seconds of a training step of each config, measured in turns.

    Args:
        configs: by name; all arrays are of the config's sizes, images square and random.
        rounds: steps of each.
    """
    mesh = make_mesh()
    steps, states, batches = {}, {}, {}
    with jax.set_mesh(mesh):
        for name, config in configs.items():
            training, data = TrainingConfig.of(config), config.data
            batches[name] = random_batch(
                config.run.batch_size,
                views=data.num_inputs,
                targets=data.num_targets,
                size=data.image_height,
            )
            steps[name] = compiled_step(training, mesh)
            states[name] = init_state(training, mesh, config.run.seed)
        times: dict[str, list[float]] = {name: [] for name in configs}
        for done in tqdm(range(-1, rounds), "timing steps", file=sys.stderr):
            for name in configs:
                batch = jax.block_until_ready(shard_batch(mesh, batches[name]))
                start = time.perf_counter()
                states[name], metrics = steps[name](states[name], batch)
                jax.block_until_ready((states[name], metrics))
                if done >= 0:  # the first compiles
                    times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def steps_in_same_time(step_seconds: Mapping[str, float], steps: int) -> dict[str, int]:
    """Steps for each to have as much time as the slowest has for `steps`."""
    time_of_slowest = max(step_seconds.values()) * steps
    return {name: math.ceil(time_of_slowest / s - 1e-9) for name, s in step_seconds.items()}


def psnr_at(curve: Curve, step: float) -> float | None:
    """PSNR at a step, linear between two evaluations; None outside of them."""
    if not curve or not curve[0][0] <= step <= curve[-1][0]:
        return None
    return float(np.interp(step, *zip(*curve, strict=True)))


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
            [format(row[unit], form), *(_decibels(row[name]) for name in curves)]
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


def _measure_in_process(
    configs: Mapping[str, ml_collections.ConfigDict], rounds: int
) -> dict[str, Any]:
    first = next(iter(configs.values()))
    run = first.run  # devices as in train.py
    part = run.batch_size // run.grad_accumulation
    simulate_cpu_devices(run.cpu_devices, MeshConfig(), part, first.eval.batch_size)
    seconds = measure_steps(configs, rounds)
    source = f"measured in turns, median of {rounds}, on {hardware()}"
    return {"step_seconds": seconds, "source": source}


def _decibels(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.side_by_side",
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
