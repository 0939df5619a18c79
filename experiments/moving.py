"""A model with a time channel against one without, on worlds where bodies slide.

    python -m experiments.moving --output=moving.json
    python -m experiments.moving --baseline 0.02 0.05      # cameras that hardly move

Both are the arms of experiments/configs/time_arms.py, here with a head that copies, which learns
most in few steps, and with as many inputs in each step as in the scores. Worlds are rendered first,
and all arms and seeds train on the same ones, in the same order, for --steps. Scores are PSNR on
held-out worlds, three targets each, each at a time of its own, beside copying the nearest input:
over all pixels, over those that show what moves, and over the others. Errors are pooled over the
pixels of all targets.
"""

import argparse
import math
import time
from collections.abc import Iterator

import jax
import ml_collections
import numpy as np
from tqdm import tqdm

from benchmarks import common
from benchmarks.common import Report, markdown_table
from experiments.configs import time_arms
from experiments.runs import render_worlds
from lvsm_jax.batch import Batch
from lvsm_jax.common.command_line import program
from lvsm_jax.common.config import DataConfig, EvalConfig, section
from lvsm_jax.evaluation.scoring import COPY_NEAREST, baseline_images, render_views
from lvsm_jax.parallel.mesh import MeshConfig, make_mesh
from lvsm_jax.training.frozen_networks import NO_NETWORKS
from lvsm_jax.training.train_state import TrainingConfig, compiled_step, init_state
from lvsm_jax.worlds.config import WorldsConfig
from lvsm_jax.worlds.generate import Worlds
from lvsm_jax.worlds.held_out import open_worlds
from lvsm_jax.worlds.sampling import Draw
from lvsm_jax.worlds.stream import Block, draw_batch

ARMS = ("timed", "untimed")
GROUPS = ("all", "moving", "still")
_AT_ONCE = 16  # worlds that are scored together


@program
def main(arguments: list[str]) -> None:
    """Prints a table; writes JSON."""
    common.report_benchmark(_parser().parse_args(arguments), measure, table)


def measure(options: argparse.Namespace) -> Report:
    """Trains and scores each arm with each seed; the JSON is written anew after each."""
    report = {**common.describe_run(options), "runs": []}
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    configs = {arm: arm_config(arm, options) for arm in ARMS}
    with jax.set_mesh(mesh):
        worlds = make_worlds(configs["timed"], options.worlds)
        held_out = held_out_worlds(configs["timed"])
        report["copy_nearest"] = score(
            (baseline_images(batch.inputs, batch.targets)[COPY_NEAREST] / 255, batch)
            for batch in held_out
        )
        trained = {arm: Training(config, worlds, mesh) for arm, config in configs.items()}
        for seed in range(options.seeds):
            for arm, training in trained.items():
                start = time.process_time()
                model = training.run(seed)
                seconds = time.process_time() - start
                renders = (
                    (np.asarray(render_views(model, batch.inputs, batch.targets.cameras)), batch)
                    for batch in held_out
                )
                report["runs"].append(
                    {"arm": arm, "seed": seed, "cpu_seconds": seconds, "psnr": score(renders)}
                )
                common.write_report(options.output, report)
    return report


def arm_config(arm: str, options: argparse.Namespace) -> ml_collections.ConfigDict:
    """The config of an arm, as the options change it."""
    config = time_arms.get_config(arm)
    config.model.update(num_layers=options.layers, copy_head=True)
    config.worlds.baseline = tuple(options.baseline)
    config.data.update(num_inputs=options.inputs, input_counts=(), num_targets=options.targets)
    config.run.num_steps = options.steps
    config.eval.update(
        worlds=options.held_out, num_inputs=options.inputs, batch_size=_AT_ONCE, world_views=12
    )
    return config


def make_worlds(config: ml_collections.ConfigDict, number: int) -> Worlds:
    """So many worlds to train on, on the host."""
    data, worlds = section(config, "data", DataConfig), section(config, "worlds", WorldsConfig)
    block = Block(worlds, data.num_views, data.image_height, data.image_height, with_depth=True)
    return render_worlds(block, number)


def held_out_worlds(config: ml_collections.ConfigDict) -> list[Batch]:
    """The batches of an evaluation."""
    sections = ("data", DataConfig), ("worlds", WorldsConfig), ("eval", EvalConfig)
    return list(open_worlds(*(section(config, name, of) for name, of in sections)))


class Training:
    """An arm, compiled once for all seeds."""

    def __init__(self, config: ml_collections.ConfigDict, worlds: Worlds, mesh: jax.sharding.Mesh):
        self.config, self.worlds, self.mesh = TrainingConfig.of(config), worlds, mesh
        self.data, self.batch = section(config, "data", DataConfig), config.run.batch_size
        self.step = compiled_step(self.config, mesh)

    def run(self, seed: int) -> object:
        """The model after the last step."""
        state = init_state(self.config, self.mesh, seed)
        for batch in tqdm(self._batches(seed), total=self.config.num_steps, mininterval=30):
            state, _ = self.step(state, batch, NO_NETWORKS)
        return state.best_weights

    def _batches(self, seed: int) -> Iterator[Batch]:
        """The same for all arms: other worlds, inputs and targets at each step."""
        draw = Draw.of(self.data, WorldsConfig().input_weights, self.data.num_inputs)
        rng, shown = np.random.default_rng(seed), self.worlds
        for step in range(self.config.num_steps):
            scenes = rng.choice(len(shown.images), self.batch, replace=False).astype(np.int32)
            some = jax.tree.map(lambda x, scenes=scenes: x[scenes], shown)
            yield draw_batch(draw, self.mesh, some, scenes, np.uint32(seed), np.int32(step))


def score(rendered: Iterator[tuple[np.ndarray, Batch]]) -> dict[str, float]:
    """PSNR in dB of `GROUPS`, and the share of pixels that move."""
    sums = sum(errors(render, batch) for render, batch in rendered)
    psnr = [-10 * math.log10(error / number) for error, number in sums]
    return dict(zip(GROUPS, psnr, strict=True)) | {"share": float(sums[1, 1] / sums[0, 1])}


def errors(render: np.ndarray, batch: Batch) -> np.ndarray:
    """Of each of `GROUPS` the sum of squared errors and the number of pixels, `[3, 2]`."""
    error = np.square(np.clip(render, 0, 1) - batch.targets.images / np.float32(255)).mean(-1)
    counted = np.broadcast_to(batch.valid[:, None, None, None], error.shape)
    moving = batch.targets.moving
    groups = counted, counted & moving, counted & ~moving
    return np.array([[error[of].sum(dtype=np.float64), of.sum()] for of in groups])


def table(report: Report) -> str:
    """A row a run, by arm and seed."""
    options, copy = report["options"], report["copy_nearest"]
    title = (
        f"{report['hardware']}, {options['steps']} steps, {options['inputs']} inputs, paths of "
        f"{options['baseline']}; PSNR in dB on {options['held_out']} held-out worlds, "
        f"{100 * copy['share']:.0f} % of whose pixels move; jax {report['jax']}"
    )

    def row(name: str, psnr: dict[str, float]) -> list[str]:
        return [name, *(f"{psnr[group]:.2f}" for group in GROUPS)]

    rows = [row(f"{run['arm']}, seed {run['seed']}", run["psnr"]) for run in report["runs"]]
    rows.append(row("copy of the nearest input", copy))
    return f"{title}\n\n{markdown_table(['', *GROUPS], rows, text=1)}"


def _parser() -> argparse.ArgumentParser:
    parser = common.benchmark_parser("experiments.moving", __doc__)
    add = parser.add_argument
    add("--baseline", type=float, nargs=2, default=[0.35, 1.3], metavar="SHARE",
        help="least and greatest length of the cameras' paths (0.35 1.3)")  # fmt: skip
    add("--steps", type=int, default=300, help="of training (300)")
    add("--seeds", type=int, default=2, help="runs of each arm (2)")
    add("--worlds", type=int, default=512, help="to train on (512)")
    add("--held-out", type=int, default=96, help="worlds to score on (96)")
    add("--inputs", type=int, default=4, help="input views (4)")
    add("--targets", type=int, default=2, help="target views of a step (2)")
    add("--layers", type=int, default=2, help="of each stream (2)")
    return parser


if __name__ == "__main__":
    main()
