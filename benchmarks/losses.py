"""What each loss adds to a training step, in time and memory.

    python -m benchmarks.losses --config=configs/quickstart.py --batch=4
    python -m benchmarks.losses --config=configs/re10k_256_repa.py --batch=8 --output=losses.json

Model, images and REPA are those of the config; the losses' networks have their full size. Weights
are random: speed does not depend on them. Each row is a whole optimizer step on one device, median
of --repeats; in the last row the perceptual loss has not started and REPA has stopped. FLOPs are
counted from the sizes; what is recomputed counts nothing. With --count nothing is measured.
"""

import argparse
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from tqdm import tqdm

from benchmarks import common
from benchmarks.common import Report
from lvsm_jax.common.command_line import add_config_option, parse_with_config, program
from lvsm_jax.cost.flops import Macs, forward_macs, teacher_macs, training_flops, vgg_macs
from lvsm_jax.frozen import vgg
from lvsm_jax.frozen.dino import TEACHERS
from lvsm_jax.frozen.perceptual import PLAN
from lvsm_jax.parallel.mesh import make_mesh
from lvsm_jax.training.frozen_networks import Frozen, abstract_frozen
from lvsm_jax.training.losses import LossConfig
from lvsm_jax.training.train_state import TrainingConfig, new_state, train_step


@program
def main(arguments: list[str]) -> None:
    """Prints a table and writes JSON."""
    options, config = parse_with_config(_parser(), arguments)
    common.report_benchmark(options, functools.partial(measure, config), table)


def measure(config: ml_collections.ConfigDict, options: argparse.Namespace) -> Report:
    """A row for each set of losses; only counted with --count."""
    training = dataclasses.replace(TrainingConfig.of(config), grad_accumulation=1)
    views = {"views": config.data.num_inputs, "targets": config.data.num_targets}
    size = config.data.image_height
    batch = common.random_batch(options.batch, **views, size=size)
    networks = {} if options.count else random_networks(training)
    rows = []
    for name, losses in tqdm(variants(training).items(), "measuring"):
        row = {"name": name, "flops": options.batch * step_flops(losses, **views, size=size)}
        if not options.count:
            # Step 1: where a term starts later or stops at it.
            state = dataclasses.replace(new_state(losses, 0), step=jnp.int32(1))
            frozen = Frozen(**{term: network for term, network in networks.items() if term in name})
            step = functools.partial(train_step, losses)
            row |= common.measure_call(step, (state, batch, frozen), row["flops"], options.repeats)
        rows.append(row)
    return {**common.describe_run(options), "config": config.to_dict(), "rows": rows}


def variants(training: TrainingConfig) -> dict[str, TrainingConfig]:
    """The losses to measure; a name holds those of `Frozen`'s fields that they need."""
    off = dataclasses.replace(training.repa, weight=0.0, stop_step=0)
    on = dataclasses.replace(off, weight=0.5)
    later = LossConfig(perceptual=0.5, perceptual_start=2)
    losses = {
        "mse": (LossConfig(), off),
        "mse + perceptual": (LossConfig(perceptual=0.5), off),
        "mse + lpips": (LossConfig(lpips=0.5), off),
        "mse + REPA (teacher)": (LossConfig(), on),
        "mse + perceptual + REPA (teacher)": (LossConfig(perceptual=0.5), on),
        "the same, not due (perceptual, teacher)": (later, dataclasses.replace(on, stop_step=1)),
    }
    return {
        name: dataclasses.replace(training, loss=loss, repa=repa)
        for name, (loss, repa) in losses.items()
    }


def random_networks(training: TrainingConfig) -> dict[str, Any]:
    """Every frozen network in full size, as `load_frozen` would hold it."""
    rng = np.random.default_rng(0)

    def random(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        return jnp.asarray(0.05 * rng.standard_normal(leaf.shape, np.float32), leaf.dtype)

    loss = LossConfig(perceptual=0.5, lpips=0.5)
    repa = dataclasses.replace(training.repa, weight=0.5, stop_step=0)
    shapes = abstract_frozen(loss, repa, dtype=training.model.dtype, mesh=make_mesh())
    return vars(jax.tree.map(random, shapes))


def step_flops(training: TrainingConfig, *, views: int, targets: int, size: int) -> int:
    """FLOPs of one scene's part of a step, of the terms that are due at step 1."""
    image, model, repa = {"height": size, "width": size}, training.model, training.repa
    total = training_flops(forward_macs(model, views=views, targets=targets, **image))
    loss = training.loss
    for weight, start, plan in (
        (loss.perceptual, loss.perceptual_start, PLAN),
        (loss.lpips, loss.lpips_start, vgg.VGG16),
    ):
        if weight and start <= 1:
            # Forward for target and render, backward for the render's pixels alone.
            total += 3 * targets * vgg_macs(plan, **image).flops
    if repa.weight and repa.stop_step != 1:
        teacher = TEACHERS[repa.teacher]
        for pairs, seen in ((repa.encoder_pairs, views), (repa.decoder_pairs, targets)):
            if not pairs:
                continue
            height, width = teacher.input_size(size, size)
            blocks = max(block for _, block in pairs)
            macs = teacher_macs(teacher, height=height, width=width, blocks=blocks)
            total += seen * macs.flops
            projector = repa.hidden * (model.width + repa.hidden + teacher.width)
            tokens = seen * (size // model.patch_size) ** 2
            total += training_flops(Macs(len(pairs) * tokens * projector))
    return total


def table(report: Report) -> str:
    """A row for each set of losses, with what it takes more than MSE alone."""
    first, *_ = rows = report["rows"]
    header, lines = ["loss", "TFLOP", "more"], []
    if "seconds" in first:
        header += ["ms", "more", "temporary, MB"]
    for row in rows:
        more = row["flops"] / first["flops"] - 1
        line = [row["name"], f"{row['flops'] / 1e12:.3f}", f"{more:.1%}"]
        if "seconds" in row:
            memory, more = row["temporary_bytes"], row["seconds"] / first["seconds"] - 1
            line += [f"{row['seconds'] * 1e3:.1f}", f"{more:.1%}"]
            line.append(memory and f"{memory / 1e6:.0f}")
        lines.append(line)
    return f"{report['hardware']}, jax {report['jax']}\n\n{common.markdown_table(header, lines)}"


def _parser() -> argparse.ArgumentParser:
    parser = common.benchmark_parser("benchmarks.losses", __doc__)
    add_config_option(parser, required=False)
    parser.set_defaults(config="configs/quickstart.py")
    add = parser.add_argument
    add("--batch", type=int, default=4, help="scenes (4)")
    add("--repeats", type=int, default=3, help="runs of which the median counts (3)")
    add("--count", action="store_true", help="count FLOPs, and measure nothing")
    return parser


if __name__ == "__main__":
    main()
