"""Entropy of the decoder's cross-attention by number of input views.

    python -m experiments.attention_entropy runs/experiments/*/seed_0/export \
        --config=experiments/configs/arms.py --config.eval.index=runs/experiments/index.json

With more inputs a query has more tokens to choose from. If attention spreads over all of them, what
it reads goes towards an average, and renders gain nothing from another view. The table has for each
export and number of inputs the entropy in nats, as a mean over layers, heads and queries, and in
parentheses its share of the largest, the logarithm of the number of tokens, where all are looked at
alike. Scenes are those of the config's evaluation index, the first --scenes of them.
"""

import argparse
import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from tqdm import tqdm

from benchmarks.common import Report, describe_run, markdown_table, report_benchmark
from experiments.exports import exports_parser, load_models
from input_pipeline.loading import EvalSet, open_eval_set
from input_pipeline.view_index import COUNTS
from lvsm_jax.common.command_line import parse_with_config, program
from lvsm_jax.common.config import EvalConfig, section
from lvsm_jax.common.errors import UserError
from lvsm_jax.models.efficient_lvsm import EfficientLVSM
from lvsm_jax.training.diagnostics import token_statistics
from lvsm_jax.training.train_state import to_unit


@program
def main(arguments: list[str]) -> None:
    """Prints a table, and writes JSON."""
    options, config = parse_with_config(_parser(), arguments)
    report_benchmark(options, functools.partial(measure, config), table)


def measure(config: ml_collections.ConfigDict, options: argparse.Namespace) -> Report:
    """Every export with every number of inputs.

    Returns:
        Among others `rows`: for each export by number of inputs the `tokens` that a query may look
        at, and in `entropy` that of each layer in nats.
    """
    settings = section(config, "eval", EvalConfig)
    rows: list[dict[str, Any]] = []
    with tqdm(total=len(options.exports) * len(options.inputs), desc="entropies") as progress:
        for export, model, data in load_models(options.exports, config):
            if not isinstance(model, EfficientLVSM):
                raise UserError(f"{export} is of {type(model).__name__}, without cross-attention")
            row: dict[str, Any] = {"export": export, "inputs": {}}
            for count in options.inputs:
                wanted = dataclasses.replace(settings, num_inputs=count)
                eval_set = open_eval_set(data, wanted, max_scenes=options.scenes)
                row["inputs"][str(count)] = entropies(model, eval_set)
                progress.update()
            rows.append(row)
    found = {"config": config.to_dict(), "num_scenes": eval_set.num_scenes, "rows": rows}
    return {**describe_run(options), **found, "counts": options.inputs}


def entropies(model: EfficientLVSM, eval_set: EvalSet) -> dict[str, Any]:
    """Mean entropy of each layer in nats, and the number of tokens that it is over."""
    shares, weights = [], []
    for batch in eval_set:
        images = to_unit(jnp.asarray(batch.inputs.images[batch.valid]))
        cameras = (
            jax.tree.map(lambda x, valid=batch.valid: x[valid], views.cameras)
            for views in (batch.inputs, batch.targets)
        )
        shares.append(np.asarray(token_statistics(model, images, *cameras)["attention_entropy"]))
        weights.append(len(images))
        _, views, height, width, _ = images.shape
    tokens = views * (height * width // model.config.patch_size**2)
    mean = np.average(shares, axis=0, weights=weights)
    return {"tokens": tokens, "entropy": (mean * math.log(tokens)).tolist()}


def table(report: Report) -> str:
    """A row for each export."""
    rows = []
    for row in report["rows"]:
        cells = []
        for found in row["inputs"].values():
            nats = float(np.mean(found["entropy"]))
            cells.append(f"{nats:.2f} ({nats / math.log(found['tokens']):.0%})")
        rows.append([row["export"], *cells])
    header = ["export", *(f"{n} input{'' if n == 1 else 's'}" for n in report["counts"])]
    return f"{markdown_table(header, rows)}\n\nMeans over {report['num_scenes']} scenes."


def _parser() -> argparse.ArgumentParser:
    parser = exports_parser("attention_entropy", __doc__)
    parser.add_argument("--inputs", type=int, nargs="+", default=COUNTS, metavar="N",
                        help="numbers of inputs (1 2 4 8 16)")  # fmt: skip
    parser.add_argument("--scenes", type=int, default=32, help="how many to look at (32)")
    return parser


if __name__ == "__main__":
    main()
