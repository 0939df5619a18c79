"""The four models learn the same worlds for the same time, and are scored by number of inputs.

    python -m experiments.equal_time --output=equal_time.json     # 40 minutes of one core
    python -m experiments.equal_time --seconds=60 --architectures EfficientLVSM GSLRM

Worlds are rendered first, at --size, for all models alike (--keep=FILE has them for the next time).
Each model then trains on them for --seconds of its process's CPU time, without compiling, at a
constant learning rate; averaged weights are scored. Models have 128 channels and a quarter of the
published layers; Efficient-LVSM has no head that copies, and GS-LRM is that of
configs/gs_lrm_64.py. All see pictures alone: no depth. Scores are PSNR on held-out worlds, 3
targets each, beside copying the nearest input.

Restrict the process to a core (taskset -c 0), so that CPU time is the model's work and no waiting.
"""

import argparse
import dataclasses
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from etils import epath
from tqdm import tqdm

from benchmarks import common
from benchmarks.common import NAMES, Report, markdown_table
from configs import quickstart
from experiments.runs import render_worlds
from lvsm_jax.batch import Batch
from lvsm_jax.common.command_line import path, program
from lvsm_jax.common.config import DataConfig, EvalConfig
from lvsm_jax.common.files import atomic_write
from lvsm_jax.evaluation.metrics import psnr
from lvsm_jax.evaluation.scoring import COPY_NEAREST, Evaluation, evaluate
from lvsm_jax.models.architectures import CONFIGS
from lvsm_jax.models.cameras import Cameras
from lvsm_jax.parallel.mesh import MeshConfig, make_mesh
from lvsm_jax.training.frozen_networks import NO_NETWORKS
from lvsm_jax.training.train_state import TrainingConfig, TrainState, compiled_step, init_state
from lvsm_jax.worlds.config import WorldsConfig
from lvsm_jax.worlds.generate import Worlds
from lvsm_jax.worlds.held_out import open_worlds
from lvsm_jax.worlds.sampling import Draw
from lvsm_jax.worlds.stream import Block, draw_batch, num_inputs

_VIEWS = 12  # of a world
_WARMUP, _EMA = 40, 0.98  # steps, and the decay of averaged weights
_LAST = 50  # steps over which the report has means
# As configs/worlds_64.py.
_WORLDS = {"boxes": 20, "ellipsoids": 6, "cylinders": 6}
_FRAME = "input_views"


@program
def main(arguments: list[str]) -> None:
    """Prints a table; writes JSON."""
    options = _parser().parse_args(arguments)
    common.report_benchmark(options, measure, tables)


def measure(options: argparse.Namespace) -> Report:
    """Trains and scores each model; the JSON is written anew after each."""
    report = {**common.describe_run(options), "models": {}}
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    with jax.set_mesh(mesh):
        worlds = make_or_read(options)
        held_out = held_out_worlds(options)
        for name in options.architectures:
            training = training_config(name, options)
            state, about = train(training, worlds, options, mesh)
            scores, baseline = {}, {}
            for count, batches in held_out.items():
                found = evaluate(
                    state.best_weights, batches, metrics={"psnr": psnr}, progress=False
                )
                found.check_finite()
                scores[count] = found.mean("psnr")
                baseline[count] = found.mean("psnr", COPY_NEAREST)
            report["models"][name] = {**about, "psnr": scores}
            report["copy_nearest"] = baseline
            common.write_report(options.output, report)
    return report


def score(state: TrainState, batches: "HeldOut") -> Evaluation:
    """PSNR of the averaged weights; UserError where a render is not finite."""
    found = evaluate(state.best_weights, batches, metrics={"psnr": psnr}, progress=False)
    found.check_finite()
    return found


def training_config(architecture: str, options: argparse.Namespace) -> TrainingConfig:
    """The quickstart's model of this kind, without a head that copies."""
    config = quickstart.get_config(architecture)
    if architecture == "EfficientLVSM":
        config.model.copy_head = False
    if "num_latents" in config.model:  # as many for each token of an input at any size
        config.model.num_latents = max(1, config.model.num_latents * options.size**2 // 64**2)
    config.model.patch_size = options.patch
    config.optimizer.update(schedule="constant", warmup_steps=_WARMUP, ema_decay=_EMA)
    return TrainingConfig.of(config)


def data_config(options: argparse.Namespace) -> DataConfig:
    """Which views of the worlds a step has."""
    return DataConfig(
        path="",
        worlds_share=1.0,
        image_height=options.size,
        patch_size=options.patch,
        num_views=_VIEWS,
        input_counts=tuple(options.train_inputs),
        num_targets=options.targets,
        camera_normalization=_FRAME,
    )


def make_or_read(options: argparse.Namespace) -> Worlds:
    """All worlds of the training, on the host: rendered, or those that --keep has."""
    if options.keep and epath.Path(options.keep).exists():
        with np.load(options.keep) as kept:
            arrays = {name: kept[name] for name in kept.files}
    else:
        block = Block(WorldsConfig(**_WORLDS), _VIEWS, options.size, options.size, with_depth=True)
        images, c2w, fxfycxcy, depth = jax.tree.leaves(render_worlds(block, options.worlds))
        arrays = {"images": images, "c2w": c2w, "fxfycxcy": fxfycxcy, "depth": depth}
        if options.keep:
            with atomic_write(options.keep) as local, open(local, "wb") as file:
                np.savez(file, **arrays)
    cameras = Cameras(arrays["c2w"], arrays["fxfycxcy"])
    return Worlds(arrays["images"], cameras, arrays["depth"])


def draw_steps(
    worlds: Worlds, options: argparse.Namespace, mesh: jax.sharding.Mesh
) -> Iterator[Batch]:
    """Batches without end: other worlds, inputs and targets at each step, the same for all."""
    data, rng, step = data_config(options), np.random.default_rng(0), 0
    weights = WorldsConfig().input_weights
    while True:
        scenes = rng.choice(len(worlds.images), options.batch, replace=False).astype(np.int32)
        draw = Draw.of(data, weights, num_inputs(data, 0, step))
        some = jax.tree.map(lambda x, scenes=scenes: x[scenes], worlds)
        yield draw_batch(draw, mesh, some, scenes, np.uint32(0), np.int32(step))
        step += 1


def train(
    training: TrainingConfig, worlds: Worlds, options: argparse.Namespace, mesh: jax.sharding.Mesh
) -> tuple[TrainState, dict[str, Any]]:
    """The state after `--seconds` of CPU time, and what its training was like."""
    state, spent, rows = init_state(training, mesh, 0), 0.0, []
    step, programs = compiled_step(training, mesh), {}
    batches = draw_steps(worlds, options, mesh)
    with tqdm(total=options.seconds, unit="s", mininterval=30) as progress:
        while spent < options.seconds:
            batch = next(batches)
            views = batch.inputs.images.shape[1]
            if views not in programs:
                programs[views] = step.lower(state, batch, NO_NETWORKS).compile()
            start = time.process_time()
            state, metrics = programs[views](state, batch, NO_NETWORKS)
            jax.block_until_ready(metrics)
            took = time.process_time() - start
            spent += took
            progress.update(took)
            rows.append(jax.device_get({k: x for k, x in metrics.items() if not x.ndim}))
    last = rows[-_LAST:]
    return state, {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.model)),
        "steps": len(rows),
        "cpu_seconds": spent,
        "last_steps": {name: float(np.mean([row[name] for row in last])) for name in last[0]},
    }


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """Held-out worlds with so many inputs, kept for all models; an `EvalSet`."""

    scenes: Any
    rows: np.ndarray
    num_scenes: int
    batches: tuple[Batch, ...]

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.batches)


def held_out_worlds(options: argparse.Namespace) -> dict[int, HeldOut]:
    """`--held-out` worlds by their number of inputs."""
    evaluation = EvalConfig(
        batch_size=8,
        num_inputs=max(options.inputs),
        camera_normalization=_FRAME,
        worlds=options.held_out,
    )
    worlds = open_worlds(data_config(options), WorldsConfig(**_WORLDS), evaluation)
    of_count = zip(*worlds.with_inputs(options.inputs), strict=True)
    about = worlds.scenes, worlds.rows, worlds.num_scenes
    return {
        count: HeldOut(*about, batches)
        for count, batches in zip(options.inputs, of_count, strict=True)
    }


def tables(report: Report) -> str:
    """A row a model: its size, its steps, and PSNR by number of inputs."""
    options = report["options"]
    title = (
        f"{report['hardware']}, {options['size']}×{options['size']} px, batch {options['batch']}, "
        f"{options['targets']} targets, {options['seconds']:g} s of CPU time each; PSNR in dB on "
        f"{options['held_out']} held-out worlds; jax {report['jax']}"
    )
    counts = list(report["copy_nearest"])
    lines = [
        [
            NAMES[name], f"{row['parameters'] / 1e6:.2f} M", row["steps"],
            f"{1e3 * row['cpu_seconds'] / row['steps']:.0f}",
            *(f"{score:.2f}" for score in row["psnr"].values()),
        ]
        for name, row in report["models"].items()
    ]  # fmt: skip
    baseline = [f"{score:.2f}" for score in report["copy_nearest"].values()]
    lines.append(["copy of the nearest input", None, None, None, *baseline])
    header = ["model", "parameters", "steps", "ms a step", *(f"{n} inputs" for n in counts)]
    return f"{title}\n\n{markdown_table(header, lines, text=1)}"


def _parser() -> argparse.ArgumentParser:
    parser = common.benchmark_parser("experiments.equal_time", __doc__)
    add = parser.add_argument
    add("--architectures", nargs="+", default=list(CONFIGS), choices=list(CONFIGS), metavar="NAME",
        help=f"of {', '.join(CONFIGS)} (all)")  # fmt: skip
    add("--seconds", type=float, default=300.0, help="of CPU time that each model trains (300)")
    add("--size", type=int, default=48, help="height and width in pixels (48)")
    add("--patch", type=int, default=8, help="side of a patch in pixels (8)")
    add("--worlds", type=int, default=800, help="to train on (800)")
    add("--held-out", type=int, default=64, help="worlds to score on (64)")
    add("--batch", type=int, default=8, help="worlds of a step (8)")
    add("--train-inputs", type=int, nargs="+", default=[2, 4],
        help="input views, of which each step has one number (2 4)")  # fmt: skip
    add("--inputs", type=int, nargs="+", default=[1, 2, 4, 8], help="in scores (1 2 4 8)")
    add("--targets", type=int, default=2, help="target views of a step (2)")
    add("--keep", type=path, metavar="FILE", help=".npz of the worlds: read, or written if missing")
    return parser


if __name__ == "__main__":
    main()
