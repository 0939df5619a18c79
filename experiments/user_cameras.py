"""PSNR by focal length and principal point: how models do with cameras they were not trained on.

    python -m experiments.user_cameras runs/*/export --config=configs/re10k_256.py
    python -m experiments.user_cameras runs/plain/export runs/varied/export \
        --config=configs/quickstart.py --config.eval.num_inputs=4 --output=user_cameras.json

The test set of the config is evaluated on windows of its frames (`eval.crop_share` and
`eval.crop_place`), the same for all models: in the middle, where focal lengths are --factors times
as long, and in the upper left and lower right corners, where the principal point is off the middle
besides. At factor 1 of square frames the three are one. Focal length fx and principal point cx, cy
are means over all targets, in heights of the image.

Some windows are harder than others for any method: a model compares with other models, and with a
copy of the nearest input view, in its own row.
"""

import argparse
import dataclasses
import functools
import itertools
from collections.abc import Iterator
from typing import Any

import ml_collections
import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from benchmarks.common import Report, describe_run, markdown_table, report_benchmark
from experiments.exports import exports_parser, load_models
from input_pipeline.loading import EvalSet, open_eval_set
from lvsm_jax.batch import Batch
from lvsm_jax.common.command_line import parse_with_config, program
from lvsm_jax.common.config import EvalConfig, section
from lvsm_jax.common.errors import UserError
from lvsm_jax.evaluation.metrics import psnr
from lvsm_jax.evaluation.scoring import COPY_NEAREST, evaluate
from lvsm_jax.models.base import ViewSynthesisModel

FACTORS = (1.0, 1.25, 1.5, 2.0)
PLACES = {"middle": (0.5, 0.5), "upper left": (0.0, 0.0), "lower right": (1.0, 1.0)}


@program
def main(arguments: list[str]) -> None:
    """Prints a table, and writes JSON."""
    options, config = parse_with_config(_parser(), arguments)
    report_benchmark(options, functools.partial(measure, config), table)


def measure(config: ml_collections.ConfigDict, options: argparse.Namespace) -> Report:
    """Every export on every window.

    Returns:
        Among others `rows` with `factor`, `place`, `fxfycxcy` (over the image's height), the PSNR
        of the baseline in `copy_nearest`, and in `psnr` those of the exports in their order.
    """
    exports, settings = options.exports, section(config, "eval", EvalConfig)
    pairs = itertools.product(options.factors, PLACES)
    rows = [{"factor": factor, "place": place, "psnr": []} for factor, place in pairs]
    windows = [window(settings, row["factor"], row["place"]) for row in rows]
    with tqdm(total=len(exports) * len(rows), desc="windows") as progress:
        for _, model, data in load_models(exports, config):
            for row, one in zip(rows, windows, strict=True):
                eval_set = _NotingSet(**vars(open_eval_set(data, one)))
                _add_scores(row, model, eval_set)
                progress.update()
    return {
        **describe_run(options),
        "config": config.to_dict(),
        "exports": exports,
        "num_scenes": eval_set.num_scenes,
        "num_images": sum(len(views.targets) for views in eval_set.views),
        "rows": rows,
    }


def window(settings: EvalConfig, factor: float, place: str) -> EvalConfig:
    """The evaluation where focal lengths are `factor` times as long."""
    if not 1 <= factor < float("inf"):
        raise UserError(f"--factors has {factor}, expected at least 1: frames end at their border")
    return dataclasses.replace(settings, crop_share=1 / factor, crop_place=PLACES[place])


def _add_scores(row: dict[str, Any], model: ViewSynthesisModel, eval_set: "_NotingSet") -> None:
    """Adds a model's PSNR to a row; with the first model also what is of the window alone."""
    first = not row["psnr"]
    evaluation = evaluate(model, eval_set, metrics={"psnr": psnr}, baselines=first, progress=False)
    row["psnr"].append(evaluation.mean("psnr"))
    if first:
        row["copy_nearest"] = evaluation.mean("psnr", COPY_NEAREST)
        row["fxfycxcy"] = np.concatenate(eval_set.seen).mean(0).tolist()


@dataclasses.dataclass(frozen=True)
class _NotingSet(EvalSet):
    """Notes the intrinsics of the targets that it gives, over the height of the images."""

    seen: list[Float[np.ndarray, "n 4"]] = dataclasses.field(default_factory=list)

    def __iter__(self) -> Iterator[Batch]:
        for batch in super().__iter__():
            height = batch.targets.images.shape[2]
            counted = batch.valid[:, None] & (batch.targets.frame >= 0)
            self.seen.append(batch.targets.cameras.fxfycxcy[counted] / height)
            yield batch


def table(report: Report) -> str:
    """A row for each window."""
    header = ["window", "focal length ×", "fx", "cx", "cy", "copy nearest, dB"]
    rows = []
    for row in report["rows"]:
        fx, _, cx, cy = row["fxfycxcy"]
        numbers = [f"{row['factor']:g}", *(f"{x:.2f}" for x in (fx, cx, cy, row["copy_nearest"]))]
        rows.append([row["place"], *numbers, *(f"{score:.2f}" for score in row["psnr"])])
    text = markdown_table(header + [f"{export}, dB" for export in report["exports"]], rows)
    return f"{text}\n\nPSNR of {report['num_images']} targets of {report['num_scenes']} scenes."


def _parser() -> argparse.ArgumentParser:
    parser = exports_parser("user_cameras", __doc__)
    parser.add_argument(
        "--factors", type=float, nargs="+", default=FACTORS, help="on focal lengths (1 1.25 1.5 2)"
    )
    return parser


if __name__ == "__main__":
    main()
