"""PSNR of models over pixels that move and over those that do not, on held-out worlds.

    python -m experiments.moving_pixels runs/timed/export runs/untimed/export

Worlds are those of experiments/configs/time_arms.py, whatever a model was trained on; in each, some
inputs and three targets, each of a time of its own. A pixel moves where the target shows a body
that does, wherever the inputs show it. Errors are pooled over the pixels of all targets.
"""

import argparse
import functools
import json
import math
import pathlib
from collections import defaultdict

import jax
import numpy as np

import lvsm_jax
from experiments.configs import time_arms
from lvsm_jax.batch import Batch
from lvsm_jax.common.config import DataConfig, EvalConfig, section
from lvsm_jax.common.table import format_table
from lvsm_jax.evaluation.scoring import COPY_NEAREST, baseline_images, render_views
from lvsm_jax.parallel.mesh import MeshConfig, make_mesh, simulate_cpu_devices
from lvsm_jax.worlds.config import WorldsConfig
from lvsm_jax.worlds.held_out import HeldOutWorlds, open_worlds

GROUPS = ("all", "moving", "still")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("exports", nargs="+", type=pathlib.Path)
    add("--worlds", type=int, default=64, metavar="N", help="first held-out worlds (default: 64)")
    add("--first", type=int, default=0, metavar="N", help="number of the first of them")
    add("--inputs", type=int, nargs="+", default=[2, 4, 8], metavar="N", help="inputs of each")
    add("--output", type=pathlib.Path, metavar="FILE.json", help="also write the numbers there")
    given = parser.parse_args()
    simulate_cpu_devices(1, MeshConfig(), 8)
    models = {str(export): lvsm_jax.load(export) for export in given.exports}
    config = time_arms.get_config()
    config.eval.worlds = given.first + given.worlds
    sections = ("data", DataConfig), ("worlds", WorldsConfig), ("eval", EvalConfig)
    worlds = open_worlds(*(section(config, name, of) for name, of in sections))
    worlds = worlds.some(range(given.first, given.first + given.worlds))
    with jax.set_mesh(make_mesh()):
        scores = score(models, worlds, given.inputs)
    rows = [
        [name, count, *(f"{scores[name][count][group]:.2f}" for group in GROUPS)]
        for name in scores
        for count in scores[name]
    ]
    print(format_table(["model", "inputs", *GROUPS], rows))
    if given.output:
        given.output.write_text(json.dumps(scores, indent=1) + "\n")


def score(
    models: dict[str, lvsm_jax.ViewSynthesisModel], worlds: HeldOutWorlds, counts: list[int]
) -> dict[str, dict[int, dict[str, float]]]:
    """PSNR in dB by model, number of inputs and `GROUPS`; with that of copying the nearest."""
    sums = defaultdict(functools.partial(np.zeros, (len(GROUPS), 2)))
    for batches in worlds.with_inputs(counts):
        for count, batch in zip(counts, batches, strict=True):
            renders = {
                name: np.asarray(render_views(model, batch.inputs, batch.targets.cameras))
                for name, model in models.items()
            }
            renders[COPY_NEAREST] = baseline_images(batch.inputs, batch.targets)[COPY_NEAREST] / 255
            for name, render in renders.items():
                sums[name, count] += errors(render, batch)
    psnr = {name: {} for name, _ in sums}
    for (name, count), found in sums.items():
        of_groups = [-10 * math.log10(error / number) for error, number in found]
        psnr[name][count] = dict(zip(GROUPS, of_groups, strict=True))
    return psnr


def errors(render: np.ndarray, batch: Batch) -> np.ndarray:
    """Of each of `GROUPS` the sum of squared errors, `[3, 2]` with the number of pixels."""
    error = np.square(np.clip(render, 0, 1) - batch.targets.images / np.float32(255)).mean(-1)
    moving = batch.targets.moving & batch.valid[:, None, None, None]
    still = ~batch.targets.moving & batch.valid[:, None, None, None]
    return np.array([[error[of].sum(), of.sum()] for of in (moving | still, moving, still)])


if __name__ == "__main__":
    main()
