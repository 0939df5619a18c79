"""Scores a model on held-out views, beside two baselines, and shows what it renders.

    python eval.py --config=configs/quickstart.py --checkpoint=runs/quickstart/export
    python eval.py --config=configs/re10k_256.py --checkpoint=runs/re10k_256/export \
        --config.eval.num_inputs=4 --output=results/four_inputs

`--checkpoint` is an export, as train.py leaves it. The protocol is RealEstate10K's published one:
the targets of an evaluation index, PSNR, SSIM and LPIPS in float32, every image counted. Of the
config are used `data`, `eval`, `mesh`, `processes`, and of `model` how to compute: `dtype`,
`attention` and `targets_at_once`. The output directory holds

    index.html      table, distribution, best, median and worst scenes
    summary.json    the means, with and without targets that are input views
    per_image.csv   one row for each target
"""

import csv
import dataclasses
import functools
import io
import json
import os
import shlex
import sys
import time
from collections.abc import Iterable
from typing import Any

import jax
import ml_collections
import numpy as np
from absl import app, flags, logging
from etils import epath
from ml_collections import config_flags

import lvsm_jax
from input_pipeline.loading import EvalSet, evaluation_index, open_eval_set
from lvsm_jax.batch import shard_batch
from lvsm_jax.common.command_line import parse_flags
from lvsm_jax.common.config import DataConfig, EvalConfig, RunConfig, section
from lvsm_jax.common.files import write_text
from lvsm_jax.evaluation.report import choose_scenes, render_page
from lvsm_jax.evaluation.scoring import METRICS, MODEL, Evaluation, evaluate, render_scenes
from lvsm_jax.frozen.lpips import find_weights, load_lpips
from lvsm_jax.parallel import processes
from lvsm_jax.parallel.mesh import (
    MeshConfig,
    check_batch,
    data_shard,
    make_mesh,
    replicate,
    simulate_cpu_devices,
)
from lvsm_jax.parallel.processes import ProcessesConfig
from lvsm_jax.weights.exports import describe, model_config

_CONFIG = config_flags.DEFINE_config_file("config", None, "Config file, see configs/.")
_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Directory of an export.")
_OUTPUT = flags.DEFINE_string("output", None, "Where to write; default: CHECKPOINT_evaluation.")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace an evaluation that is there.")


def run(
    config: ml_collections.ConfigDict,
    checkpoint: epath.PathLike,
    output: epath.PathLike,
    *,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Evaluates an export, writes the three files, and returns what summary.json holds.

    All of several processes call it; the main one writes.

    Raises:
        FileExistsError: an evaluation is in `output` already.
        FileNotFoundError: no export, dataset or LPIPS weights.
        ValueError: the config, the dataset, its index and the model do not go together.
        FloatingPointError: a render is not finite.
    """
    # All that can be wrong is looked at before anything is computed.
    checkpoint, output = epath.Path(checkpoint), epath.Path(output)
    with processes.error_of_any():
        settings = section(config, "eval", EvalConfig)
        if (output / "summary.json").exists() and not overwrite:
            raise FileExistsError(f"{output} holds an evaluation; --overwrite replaces it")
        weights = find_weights(settings.lpips_weights) if settings.lpips else None
        about = describe(checkpoint)
        data = section(config, "data", DataConfig)
        trained_with = other_pictures(about, data)
        for field, value in trained_with.items():
            logging.warning(
                "the model was trained with data.%s=%s, not %s", field, value, getattr(data, field)
            )
        exported = model_config(checkpoint)
        data = dataclasses.replace(data, patch_size=exported.patch_size)
        mesh = make_mesh(section(config, "mesh", MeshConfig))
        check_batch(mesh, "section eval", settings.batch_size, settings.num_inputs)
        exported.check_spread(mesh.shape["view"])
        process_index, process_count = data_shard(mesh)
        eval_set = open_eval_set(
            data, settings, process_index=process_index, process_count=process_count
        )

    start = time.monotonic()
    with jax.set_mesh(mesh), processes.ending_at_once():
        fields = exported.options.keys() & {"dtype", "attention", "targets_at_once"}
        options = {field: config.model[field] for field in sorted(fields) if field in config.model}
        model = replicate(mesh, lvsm_jax.load(checkpoint, **options))
        metrics = dict(METRICS)
        if weights:
            metrics["lpips"] = replicate(mesh, load_lpips(weights))
        put = functools.partial(shard_batch, mesh)
        evaluation = evaluate(
            model, eval_set, metrics=metrics, put=put, progress=processes.is_main()
        )
        check_finite(evaluation)
        shown = choose_scenes(evaluation)
        some = subset(eval_set, [scene for scenes in shown.values() for scene in scenes])
        pictures = render_scenes(model, some, put=put)

    summary = {
        **dict.fromkeys(("psnr", "ssim", "lpips")),  # null, unless measured
        **evaluation.summary(),
        "lpips_skipped": None if weights else "eval.lpips is False",
        **circumstances(config, settings, eval_set),
        "checkpoint": os.fspath(checkpoint),
        "step": about.get("step"),
        "architecture": about["architecture"],
        "trained_with": trained_with,
        "model": about["model"] | options,
        "device": f"{mesh.size} × {mesh.devices.flat[0].device_kind}",
        "seconds": round(time.monotonic() - start, 1),
    }
    if processes.is_main():
        output.mkdir(parents=True, exist_ok=True)
        (output / "summary.json").unlink(missing_ok=True)
        write_text(output / "index.html", render_page(evaluation, summary, pictures, shown))
        write_text(output / "per_image.csv", to_csv(evaluation.rows()))
        # The last one: where it is, so is the rest.
        write_text(output / "summary.json", json.dumps(summary, indent=2, allow_nan=False) + "\n")
    return summary


def other_pictures(about: dict[str, Any], data: DataConfig) -> dict[str, Any]:
    """What the model was trained with, where `data` makes other images than those."""
    trained = about.get("config", {}).get("data", {})
    fields = [field for field in ("image_height", "square_crop") if field in trained]
    return {field: trained[field] for field in fields if trained[field] != getattr(data, field)}


def circumstances(
    config: ml_collections.ConfigDict, settings: EvalConfig, eval_set: EvalSet
) -> dict[str, Any]:
    """On what data, and how, the model was evaluated, for summary.json."""
    return {
        "num_skipped_null": eval_set.num_skipped_null,
        "num_missing": eval_set.num_missing,
        "num_inputs": settings.num_inputs,
        "camera_normalization": settings.camera_normalization,
        "crop_share": settings.crop_share,
        "crop_place": settings.crop_place,
        "dataset": os.fspath(eval_set.config.path),
        "split": settings.split,
        "index": os.fspath(evaluation_index(settings, config.data.path)),
        "command": "python " + shlex.join(sys.argv),
        "config": config.to_dict(),
    }


def subset(eval_set: EvalSet, positions: list[int]) -> EvalSet:
    """Some of the scenes, in batches of the same size."""
    views = tuple(eval_set.views[i] for i in positions)
    return dataclasses.replace(eval_set, rows=eval_set.rows[positions], views=views)


def check_finite(evaluation: Evaluation) -> None:
    """Raises FloatingPointError, naming the first target, if a render holds NaN."""
    bad = np.argwhere(np.isnan(evaluation.scores[MODEL]["psnr"]))
    if len(bad):
        scene, target = bad[0]
        raise FloatingPointError(
            f"{len(bad)} of {evaluation.frames.size} renders are not finite; the first is frame "
            f"{evaluation.frames[scene, target]} of scene {evaluation.scenes[scene]}"
        )


def to_csv(rows: Iterable[dict[str, Any]]) -> str:
    """A table with a header line."""
    rows, text = list(rows), io.StringIO()
    writer = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def table(summary: dict[str, Any]) -> str:
    """The means, for a terminal."""
    methods = {"model": summary} | summary["baselines"]
    metrics = [metric for metric in ("psnr", "ssim", "lpips") if summary[metric] is not None]

    def lines(title: str, scores: dict[str, dict[str, float | None]]) -> list[str]:
        rows = ["", f"{title:<42}" + "".join(f"{metric.upper():>9}" for metric in metrics)]
        for method, means in scores.items():
            values = (f"{means[m]:.{2 if m == 'psnr' else 3}f}" for m in metrics)
            rows.append(f"  {method.replace('_', ' '):<40}" + "".join(f"{v:>9}" for v in values))
        return rows

    text = lines(f"{summary['num_images']:,} targets", methods)
    context = summary["num_context_targets"]
    if 0 < context < summary["num_images"]:
        others = {method: means["without_context_targets"] for method, means in methods.items()}
        text += lines(f"without the {context:,} that are input views", others)
    return "\n".join(text)


def main(argv: list[str]) -> None:
    """Reads the flags, and evaluates."""
    if len(argv) > 1:
        raise app.UsageError(
            f"unexpected arguments {argv[1:]}; fields are --config.SECTION.FIELD=…"
        )
    logging.set_verbosity(logging.WARNING)
    cpu_devices = section(_CONFIG.value, "run", RunConfig).cpu_devices
    mesh = section(_CONFIG.value, "mesh", MeshConfig)
    batch_size = section(_CONFIG.value, "eval", EvalConfig).batch_size
    output = _OUTPUT.value or f"{_CHECKPOINT.value.rstrip('/')}_evaluation"
    try:
        count = processes.start(section(_CONFIG.value, "processes", ProcessesConfig))
        simulate_cpu_devices(cpu_devices, mesh, batch_size, processes=count)
        processes.check_same_config(_CONFIG.value.to_dict())
        summary = run(_CONFIG.value, _CHECKPOINT.value, output, overwrite=_OVERWRITE.value)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    if not processes.is_main():
        return
    print(table(summary))
    print(f"\nPictures and all: {output}/index.html")


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "checkpoint"])
    app.run(main, flags_parser=parse_flags)
