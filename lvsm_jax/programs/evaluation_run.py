"""The evaluation of an export, from its files to the page: what `lvsm eval` runs."""

import dataclasses
import functools
import json
import math
import os
import time
from typing import Any, NamedTuple

import jax
import ml_collections
from absl import logging
from etils import epath
from jax.sharding import Mesh

import lvsm_jax
from input_pipeline.alpha import stated_background
from input_pipeline.loading import EvalSet, evaluation_index
from lvsm_jax.batch import shard_batch
from lvsm_jax.common.colours import colour_of
from lvsm_jax.common.config import DataConfig, EvalConfig, section
from lvsm_jax.common.errors import UserError
from lvsm_jax.common.files import clear_unfinished, write_text
from lvsm_jax.evaluation import report, scoring
from lvsm_jax.frozen.lpips import find_weights, load_lpips
from lvsm_jax.models.base import ViewSynthesisModel
from lvsm_jax.parallel import processes
from lvsm_jax.parallel.mesh import MeshConfig, check_batch, make_mesh, replicate
from lvsm_jax.programs.data_sources import open_evaluation
from lvsm_jax.training.run_log import csv_text
from lvsm_jax.weights.exports import describe, model_config
from lvsm_jax.weights.shipped import SHIPPED, introduce, training_data
from lvsm_jax.worlds.config import WorldsConfig
from lvsm_jax.worlds.held_out import HeldOutWorlds, about_worlds


class _Export(NamedTuple):
    """An export that the evaluation can show its data."""

    path: epath.Path
    about: dict[str, Any]  # its config.json
    patch_size: int
    options: dict[str, Any]  # how to compute
    trained_with: dict[str, Any]  # other pictures than those that it is shown

    def load(self, mesh: Mesh) -> ViewSynthesisModel:
        return replicate(mesh, lvsm_jax.load(self.path, for_rendering=True, **self.options))

    def summary(self) -> dict[str, Any]:
        """What summary.json says about it."""
        return {
            "checkpoint": os.fspath(self.path),
            "weights": introduce(self.about, unnamed=os.fspath(self.path)),
            **{name: self.about.get(name) for name in ("step", "architecture")},
            "trained_with": self.trained_with,
            "model": self.about["model"] | self.options,
        }


def evaluate_export(
    config: ml_collections.ConfigDict,
    checkpoint: epath.PathLike,
    output: epath.PathLike,
    *,
    beside: epath.PathLike | None = None,
    overwrite: bool = False,
    command: str = "",
) -> dict[str, Any]:
    """Evaluates an export, writes the three files, and returns what summary.json holds.

    So it does a second export, `beside`, on the same targets. OSError for an evaluation that is in
    `output` already, no export, dataset or LPIPS weights; UserError if config, dataset, index and
    models do not go together, `output` cannot be written, or a render is not finite.
    """
    output = epath.Path(output)
    opened = prepare(config, checkpoint, output / "summary.json", beside, overwrite=overwrite)
    eval_set, start = opened.eval_set, time.monotonic()
    with jax.set_mesh(opened.mesh), processes.ending_at_once():
        model, metrics, how = opened.load()
        progress = processes.is_main()
        evaluation = scoring.evaluate(model, eval_set, metrics=metrics, progress=progress, **how)
        evaluation.check_finite()
        shown = report.choose_scenes(evaluation)
        some = eval_set.some([scene for scenes in shown.values() for scene in scenes])
        pictures = scoring.render_scenes(model, some, **how)
    scores = evaluation.summary()
    if opened.beside:
        scores["beside"] |= opened.about_beside()
    summary = {
        **dict.fromkeys(("psnr", "ssim", "lpips")),  # null, unless measured
        **scores,
        **opened.about(),
        "command": command,
        "config": config.to_dict(),
        "seconds": round(time.monotonic() - start, 1),
    }
    if processes.is_main():
        page = report.render_page(evaluation, summary, pictures, shown)
        _write(output, summary, page, list(evaluation.rows()))
    return summary


class Opened(NamedTuple):
    """All that an evaluation needs, looked at before anything is computed."""

    settings: EvalConfig
    mesh: Mesh
    weights: epath.Path | None  # of LPIPS
    export: _Export
    beside: _Export | None
    eval_set: EvalSet | HeldOutWorlds

    def load(self) -> tuple[ViewSynthesisModel, scoring.Metrics, dict[str, Any]]:
        """The model, the metrics, and what else `scoring.evaluate` and `render_scenes` take."""
        lpips = {"lpips": replicate(self.mesh, load_lpips(self.weights))} if self.weights else {}
        second = self.beside and self.beside.load(self.mesh)
        how = {"beside": second, "put": functools.partial(shard_batch, self.mesh)}
        return self.export.load(self.mesh), {**scoring.METRICS, **lpips}, how

    def about(self) -> dict[str, Any]:
        """What a summary says of the data, how it was shown, and to which model."""
        return {
            "lpips_skipped": None if self.weights else "eval.lpips is False",
            **_evaluated_on(self.settings, self.eval_set),
            **self.export.summary(),
            "device": f"{self.mesh.size} × {self.mesh.devices.flat[0].device_kind}",
        }

    def about_beside(self) -> dict[str, Any]:
        """What a summary says of the export beside, and how a table calls it."""
        path = self.beside.path
        label = "shipped weights" if path == SHIPPED else os.fspath(path)
        return {"label": label, **self.beside.summary()}


def prepare(
    config: ml_collections.ConfigDict,
    checkpoint: epath.PathLike,
    result: epath.Path,
    beside: epath.PathLike | None,
    *,
    overwrite: bool,
) -> Opened:
    """Opens what is evaluated; `result` is the file that is there once it is done.

    Raises what `evaluate_export` says.
    """
    with processes.error_of_any():
        settings = section(config, "eval", EvalConfig)
        if result.exists() and not overwrite:
            raise FileExistsError(f"{result.parent} holds an evaluation; --overwrite replaces it")
        processes.check_writable("--output", result.parent)
        weights = find_weights(settings.lpips_weights) if settings.lpips else None
        mesh = make_mesh(section(config, "mesh", MeshConfig))
        check_batch(mesh, "section eval", settings.batch_size, settings.num_inputs)
        data = section(config, "data", DataConfig)
        export = _open_export(checkpoint, config, data, mesh)
        other = None if beside is None else _open_export(beside, config, data, mesh)
        # Wide pictures, whose width is known as they are read, are to suit both.
        patches = [opened.patch_size for opened in (export, other) if opened]
        data = dataclasses.replace(data, patch_size=math.lcm(*patches))
        settings = _with_background(settings, data, export, other)
        worlds = section(config, "worlds", WorldsConfig) if "worlds" in config else WorldsConfig()
        eval_set = open_evaluation(data, worlds, settings, mesh)
    return Opened(settings, mesh, weights, export, other, eval_set)


def _open_export(
    path: epath.PathLike, config: ml_collections.ConfigDict, data: DataConfig, mesh: Mesh
) -> _Export:
    """Reads what an export is; UserError, naming it, where it cannot be shown `data` on `mesh`."""
    path = epath.Path(path)
    about, exported = describe(path), model_config(path)
    try:
        dataclasses.replace(data, patch_size=exported.patch_size)
        exported.check_spread(mesh.shape["view"])
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    chosen = {"dtype", "attention", "targets_at_once", "tile_size", "pairs_per_gaussian"}
    fields = exported.options.keys() & chosen
    options = {field: config.model[field] for field in sorted(fields) if field in config.model}
    trained_with = _other_pictures(path, about, data)
    return _Export(path, about, exported.patch_size, options, trained_with)


def _with_background(
    settings: EvalConfig, data: DataConfig, export: _Export, beside: _Export | None
) -> EvalConfig:
    """The settings with the background that a model was trained on, where none is asked for.

    A warning names each model that was trained on another.
    """
    trained = {
        one.path: training_data(one.about).get("background") for one in (export, beside) if one
    }
    asked = settings.background or data.background or trained[export.path] or ""
    if settings.worlds or not os.fspath(data.path):
        return settings
    used = stated_background(data.path, asked)
    for path, background in trained.items():
        if used and background and colour_of(background) != colour_of(used):
            told = "%s was trained on the background %s, and is evaluated on %s"
            logging.warning(told, path, background, used)
    return dataclasses.replace(settings, background=asked)


def _other_pictures(path: epath.Path, about: dict[str, Any], data: DataConfig) -> dict[str, Any]:
    """What a model was trained with, where `data` makes other images than those."""
    trained = about.get("config", {}).get("data", {})
    ours = {field: getattr(data, field) for field in ("image_height", "square_crop")}
    others = {
        field: trained[field] for field in ours if trained.get(field, ours[field]) != ours[field]
    }
    for field, value in others.items():
        told = "%s was trained with data.%s=%s, not %s"
        logging.warning(told, path, field, value, ours[field])
    return others


def _evaluated_on(settings: EvalConfig, eval_set: EvalSet | HeldOutWorlds) -> dict[str, Any]:
    """The data, and how it was shown to the model."""
    if isinstance(eval_set, HeldOutWorlds):
        how = ("num_inputs", "camera_normalization")
        return {
            **{field: getattr(settings, field) for field in how},
            "dataset": "worlds",
            "worlds": about_worlds(eval_set, settings),
        }
    how = ("num_inputs", "camera_normalization", "crop_share", "crop_place")
    dataset = os.fspath(eval_set.config.path)
    return {
        "num_skipped_null": eval_set.num_skipped_null,
        "num_missing": eval_set.num_missing,
        **{field: getattr(settings, field) for field in how},
        "dataset": dataset,
        "worlds": None,
        "split": settings.split,
        "index": os.fspath(evaluation_index(settings, dataset)),
        "background": stated_background(dataset, eval_set.config.background),
    }


def _write(output: epath.Path, summary: dict[str, Any], page: str, rows: list[dict]) -> None:
    output.mkdir(parents=True, exist_ok=True)
    clear_unfinished(output)
    (output / "summary.json").unlink(missing_ok=True)
    write_text(output / "index.html", page)
    write_text(output / "per_image.csv", csv_text(rows[0], rows))
    # The last one: where it is, so is the rest.
    write_text(output / "summary.json", json.dumps(summary, indent=2, allow_nan=False) + "\n")
