"""The evaluation of an export, from its files to the page: what `lvsm eval` runs."""

import csv
import dataclasses
import functools
import io
import json
import os
import time
from collections.abc import Iterable
from typing import Any

import jax
import ml_collections
from absl import logging
from etils import epath

import lvsm_jax
from input_pipeline.loading import EvalSet, evaluation_index, open_eval_set
from lvsm_jax.batch import shard_batch
from lvsm_jax.common.config import DataConfig, EvalConfig, section
from lvsm_jax.common.files import write_text
from lvsm_jax.evaluation.report import choose_scenes, render_page
from lvsm_jax.evaluation.scoring import METRICS, evaluate, render_scenes
from lvsm_jax.frozen.lpips import find_weights, load_lpips
from lvsm_jax.parallel import processes
from lvsm_jax.parallel.mesh import MeshConfig, check_batch, data_shard, make_mesh, replicate
from lvsm_jax.weights.exports import describe, model_config


def evaluate_export(
    config: ml_collections.ConfigDict,
    checkpoint: epath.PathLike,
    output: epath.PathLike,
    *,
    overwrite: bool = False,
    command: str = "",
) -> dict[str, Any]:
    """Evaluates an export, writes the three files, and returns what summary.json holds.

    All of several processes call it; the main one writes.

    Raises:
        FileExistsError: an evaluation is in `output` already.
        FileNotFoundError: no export, dataset or LPIPS weights.
        UserError: the config, the dataset, its index and the model do not go together, `output`
            cannot be written, or a render is not finite.
    """
    # All that can be wrong is looked at before anything is computed.
    checkpoint, output = epath.Path(checkpoint), epath.Path(output)
    with processes.error_of_any():
        settings = section(config, "eval", EvalConfig)
        if (output / "summary.json").exists() and not overwrite:
            raise FileExistsError(f"{output} holds an evaluation; --overwrite replaces it")
        processes.check_writable("--output", output)
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
        index, count = data_shard(mesh)
        eval_set = open_eval_set(data, settings, process_index=index, process_count=count)

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
        evaluation.check_finite()
        shown = choose_scenes(evaluation)
        some = subset(eval_set, [scene for scenes in shown.values() for scene in scenes])
        pictures = render_scenes(model, some, put=put)

    summary = {
        **dict.fromkeys(("psnr", "ssim", "lpips")),  # null, unless measured
        **evaluation.summary(),
        "lpips_skipped": None if weights else "eval.lpips is False",
        **circumstances(settings, eval_set),
        "command": command,
        "config": config.to_dict(),
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


def circumstances(settings: EvalConfig, eval_set: EvalSet) -> dict[str, Any]:
    """On what data, and how, the model was evaluated, for summary.json."""
    dataset = os.fspath(eval_set.config.path)
    return {
        "num_skipped_null": eval_set.num_skipped_null,
        "num_missing": eval_set.num_missing,
        "num_inputs": settings.num_inputs,
        "camera_normalization": settings.camera_normalization,
        "crop_share": settings.crop_share,
        "crop_place": settings.crop_place,
        "dataset": dataset,
        "split": settings.split,
        "index": os.fspath(evaluation_index(settings, dataset)),
    }


def subset(eval_set: EvalSet, positions: list[int]) -> EvalSet:
    """Some of the scenes, in batches of the same size."""
    views = tuple(eval_set.views[i] for i in positions)
    return dataclasses.replace(eval_set, rows=eval_set.rows[positions], views=views)


def to_csv(rows: Iterable[dict[str, Any]]) -> str:
    """A table with a header line."""
    rows, text = list(rows), io.StringIO()
    writer = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
