"""Training runs as the experiments see them: calls of train.py, its tables, seconds of a step."""

import argparse
import concurrent.futures
import csv
import io
import json
import multiprocessing
import os
import pathlib
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from tqdm import tqdm

from benchmarks.common import hardware, random_batch
from lvsm_jax.batch import Batch, shard_batch
from lvsm_jax.common.config import DataConfig, section
from lvsm_jax.models.architectures import abstract_model
from lvsm_jax.parallel.mesh import MeshConfig, make_mesh, simulate_cpu_devices
from lvsm_jax.training.train_state import TrainingConfig, compiled_step, init_state
from lvsm_jax.worlds.generate import Worlds
from lvsm_jax.worlds.stream import Block, render

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
CONFIGS = REPOSITORY / "experiments" / "configs"

_RENDERED_AT_ONCE = 16  # worlds

# Evaluations of a run: steps and PSNR in dB.
Curve = list[tuple[int, float]]


def add_training_options(parser: argparse.ArgumentParser) -> None:
    """What programs that train and compare runs have in common."""
    add = parser.add_argument
    add("directory", type=pathlib.Path, help="of the runs and of what is written")
    add("--measure-steps", type=int, metavar="N",
        help="steps of each to time; 0 takes the times that the runs logged (what an earlier call "
             "found)")  # fmt: skip
    add("--no-train", action="store_true", help="only report what is there")
    add("--train-flags", nargs=argparse.REMAINDER, default=[], metavar="FLAG",
        help="passed to train.py, last: --train-flags --config.data.path=...")  # fmt: skip


def add_arm_options(
    parser: argparse.ArgumentParser, arms: Mapping[str, Any], *, use: str, at_once: int
) -> None:
    """Which arms to `use`, with which seeds, and how many runs train at a time."""
    add = parser.add_argument
    add("--arms", nargs="+", choices=arms, default=list(arms), metavar="ARM",
        help=f"which to {use} ({' '.join(arms)})")  # fmt: skip
    add("--seeds", nargs="+", type=int, default=[0, 1], metavar="S", help="of each arm (0 1)")
    add("--at-once", type=int, default=at_once, help=f"runs that train at a time ({at_once})")


def train_command(
    config: str, workdir: pathlib.Path, fields: Mapping[str, Any], flags: Sequence[str] = ()
) -> list[str]:
    """The command of a run: a `FILE:ARGUMENT` of experiments/configs, and what differs from it."""
    return [
        sys.executable,
        str(REPOSITORY / "train.py"),
        f"--config={CONFIGS}/{config}",
        f"--workdir={workdir}",
        *(f"--config.{name}={value}" for name, value in fields.items()),
        *flags,
    ]


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


def psnr_at(curve: Curve, step: float) -> float | None:
    """PSNR at a step, linear between two evaluations; None outside of them."""
    if not curve or not curve[0][0] <= step <= curve[-1][0]:
        return None
    return float(np.interp(step, *zip(*curve, strict=True)))


def render_worlds(block: Block, number: int) -> Worlds:
    """So many worlds of training, on the host."""
    group = np.arange(_RENDERED_AT_ONCE, dtype=np.int32)  # of one size, and so of one program
    made = [
        jax.device_get(render(block, "training", 0, first + group))
        for first in tqdm(range(0, number, _RENDERED_AT_ONCE), desc="worlds")
    ]
    return jax.tree.map(lambda *parts: np.concatenate(parts)[:number], *made)


def find_timing(
    runs: Mapping[str, Sequence[pathlib.Path]],
    report: pathlib.Path,
    rounds: int | None,
    threads: int = 0,
) -> dict[str, Any]:
    """Seconds of a training step of each arm, and how they were found.

    Args:
        runs: directories of the runs of each arm, one or more.
        report: JSON of an earlier call, whose measurement counts where `rounds` is None.
        rounds: steps of each arm to measure; 0, or None without a measurement, takes the times that
            the runs logged beside whatever else was running.
        threads: that compute on the CPU; 0 for one a core.
    """
    if rounds:
        configs = {name: read_config(own[0]) for name, own in runs.items()}
        # In a process of its own, since it takes the accelerator.
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
            measured = pool.submit(_measure_in_process, configs, rounds, threads).result()
        return {"measured": True} | measured
    known = json.loads(report.read_text())["timing"] if report.exists() else {}
    if rounds is None and known.get("measured"):
        if missing := [name for name in runs if name not in known["step_seconds"]]:
            print(f"not measured, without times: {', '.join(missing)}", file=sys.stderr)
        return known
    seconds = {}
    for name, own in runs.items():
        rows = (row for run in own for row in read_rows(run))
        if times := [row["step_seconds"] for row in rows if "step_seconds" in row]:
            seconds[name] = statistics.median(times)
    return {"measured": False, "step_seconds": seconds, "source": "as logged while training"}


def measure_steps(
    configs: Mapping[str, ml_collections.ConfigDict], rounds: int
) -> dict[str, float]:
    """The median seconds of `rounds` training steps of each config, measured in turns.

    All arrays are of the config's sizes, images square and random. Where steps differ in their
    number of inputs, it is the mean over these of the medians.
    """
    mesh = make_mesh()
    steps, states, batches = {}, {}, {}
    with jax.set_mesh(mesh):
        for name, config in configs.items():
            training = TrainingConfig.of(config)
            steps[name] = compiled_step(training, mesh)
            states[name] = init_state(training, mesh, config.run.seed)
            batches |= {(name, i): batch for i, batch in enumerate(_batches(config))}
        times: dict[tuple[str, int], list[float]] = {key: [] for key in batches}
        for done in tqdm(range(-1, rounds), "timing steps"):
            for (name, i), arrays in batches.items():
                batch = jax.block_until_ready(shard_batch(mesh, arrays))
                start = time.perf_counter()
                states[name], metrics = steps[name](states[name], batch)
                jax.block_until_ready((states[name], metrics))
                if done >= 0:  # the first compiles
                    times[name, i].append(time.perf_counter() - start)
    medians = {key: statistics.median(values) for key, values in times.items()}
    return {
        name: statistics.mean(value for (owner, _), value in medians.items() if owner == name)
        for name in configs
    }


def _batches(config: ml_collections.ConfigDict) -> list[Batch]:
    """A batch for each number of inputs that a step may have."""
    data = section(config, "data", DataConfig)
    sizes = {"targets": data.num_targets, "size": data.image_height}
    sizes["timed"] = config.model.get("time_channel", False)
    return [
        random_batch(config.run.batch_size, views=views, **sizes) for views in data.possible_inputs
    ]


def _measure_in_process(
    configs: Mapping[str, ml_collections.ConfigDict], rounds: int, threads: int
) -> dict[str, Any]:
    if threads:
        os.environ["NPROC"] = str(threads)  # of XLA, before it starts
    first = next(iter(configs.values()))  # devices as in train.py
    part = first.run.batch_size // first.run.grad_accumulation
    simulate_cpu_devices(first.run.cpu_devices, MeshConfig(), part, first.eval.batch_size)
    seconds = measure_steps(configs, rounds)
    source = f"measured in turns, median of {rounds}, on {hardware()}"
    if threads:
        source += f", {threads} of them used" if threads > 1 else ", one of them used"
    return {"step_seconds": seconds, "source": source}
