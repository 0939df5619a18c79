"""What each loss adds to a training step, in time and memory.

    python -m benchmarks.losses --config=configs/quickstart.py --batch=4
    python -m benchmarks.losses --config=configs/re10k_256_repa.py --batch=8 --output=losses.json

The model, its images and REPA are those of the config; the losses' networks have their full size
and, like the model, random weights: speed does not depend on them. Each row is a whole optimizer
step on one device, median of --repeats; in the last row the perceptual loss has not started and
REPA has stopped. FLOPs are counted from the sizes; what is recomputed counts nothing. With --count
nothing is measured.
"""

import argparse
import dataclasses
import functools
import json
import math
import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from benchmarks.common import hardware, measured, random_batch
from lvsm_jax.common.command_line import read_config_file
from lvsm_jax.common.files import write_text
from lvsm_jax.cost.flops import Macs, forward_macs, teacher_macs, training_flops, vgg_macs
from lvsm_jax.frozen import vgg
from lvsm_jax.frozen.dino import TEACHERS
from lvsm_jax.frozen.perceptual import PLAN
from lvsm_jax.parallel.mesh import make_mesh
from lvsm_jax.training.frozen_networks import Frozen, abstract_frozen
from lvsm_jax.training.losses import LossConfig
from lvsm_jax.training.train_state import TrainingConfig, new_state, train_step


def main(arguments: list[str] | None = None) -> None:
    """Prints a table and writes JSON."""
    given = _parser().parse_args(arguments)
    try:
        config = read_config_file(given.config, given.overrides)
        training = dataclasses.replace(TrainingConfig.of(config), grad_accumulation=1)
    except ValueError as error:
        sys.exit(f"error: {error}")
    views = {"views": config.data.num_inputs, "targets": config.data.num_targets}
    size = config.data.image_height
    counts = {
        name: given.batch * step_flops(losses, **views, size=size)
        for name, losses in variants(training).items()
    }
    if given.count:
        print(_table({"rows": [{"name": name, "flops": n} for name, n in counts.items()]}))
        return
    batch = random_batch(given.batch, **views, size=size)
    networks, rows = random_networks(training), []
    for name, losses in tqdm(variants(training).items(), desc="measuring"):
        # Step 1: where a term starts later or stops at it.
        state = dataclasses.replace(new_state(losses, 0), step=jnp.int32(1))
        frozen = Frozen(**{term: network for term, network in networks.items() if term in name})
        step = functools.partial(train_step, losses)
        args = state, batch, frozen
        rows.append({"name": name, **measured(step, args, counts[name], given.repeats)})
    report = {
        "hardware": hardware(),
        "jax": jax.__version__,
        "options": vars(given) | {"output": ""},
    }
    report["rows"] = rows
    print(f"{report['hardware']}, jax {report['jax']}\n{_table(report)}")
    if given.output:
        write_text(given.output, json.dumps(report, indent=2) + "\n")


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
    loss = LossConfig(perceptual=0.5, lpips=0.5)
    repa = dataclasses.replace(training.repa, weight=0.5, stop_step=0)
    shapes = abstract_frozen(loss, repa, dtype=training.model.dtype, mesh=make_mesh())
    networks = jax.tree.map(
        lambda leaf: jnp.asarray(0.05 * rng.standard_normal(leaf.shape, np.float32), leaf.dtype),
        shapes,
    )
    return {field.name: getattr(networks, field.name) for field in dataclasses.fields(Frozen)}


def step_flops(training: TrainingConfig, *, views: int, targets: int, size: int) -> int:
    """FLOPs of one scene's part of a step, of the terms that are due at step 1."""
    image, model, repa = {"height": size, "width": size}, training.model, training.repa
    total = training_flops(forward_macs(model, views=views, targets=targets, **image))
    for term, plan in (("perceptual", PLAN), ("lpips", vgg.VGG16)):
        if getattr(training.loss, term) and training.loss.start(term) <= 1:
            # Forward for target and render, backward for the render's pixels alone.
            total += 3 * targets * vgg_macs(plan, **image).flops
    if repa.weight and repa.stop_step != 1:
        teacher = TEACHERS[repa.teacher]
        for pairs, seen in ((repa.encoder_pairs, views), (repa.decoder_pairs, targets)):
            if not pairs:
                continue
            sides = dict(zip(("height", "width"), teacher.input_size(size, size), strict=True))
            blocks = max(block for _, block in pairs)
            total += seen * teacher_macs(teacher, **sides, blocks=blocks).flops
            projector = repa.hidden * (model.width + repa.hidden + teacher.width)
            tokens = seen * (size // model.patch_size) ** 2
            total += training_flops(Macs(len(pairs) * tokens * projector))
    return total


def _table(report: dict[str, Any]) -> str:
    rows = report["rows"]
    columns = [("TFLOP", "flops", 1e12)]
    if is_measured := "seconds" in rows[0]:
        columns += [("ms", "seconds", 1e-3)]
    title = "".join(f"{unit:>12}{'more':>9}" for unit, *_ in columns)
    lines = [f"{'':42}{title}" + is_measured * f"{'temp MB':>10}"]
    for row in rows:
        values = "".join(
            f"{row[key] / unit:12.3f}{row[key] / rows[0][key] - 1:9.1%}" for _, key, unit in columns
        )
        memory = (row.get("temporary_bytes") or math.nan) / 1e6
        lines.append(f"{row['name']:42}{values}" + is_measured * f"{memory:10.0f}")
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.losses",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", default="configs/quickstart.py", help="(configs/quickstart.py)")
    parser.add_argument("--batch", type=int, default=4, help="scenes (4)")
    parser.add_argument(
        "--repeats", type=int, default=3, help="runs of which the median counts (3)"
    )
    parser.add_argument("--count", action="store_true", help="count FLOPs, and measure nothing")
    parser.add_argument("--output", type=pathlib.Path, help="JSON file to write")
    parser.add_argument("overrides", nargs="*", help="after `--`: --config.SECTION.FIELD=VALUE")
    return parser


if __name__ == "__main__":
    main()
