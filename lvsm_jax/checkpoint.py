"""What is kept of a model: exports of its weights, and checkpoints of a training run.

An export is a directory with `config.json` (architecture, sizes, and what it was trained on) and
`weights/`, an Orbax checkpoint with one array for each name of `lvsm_jax.tree.named_leaves`.
"""

import dataclasses
import json
import math
import os
import uuid
from collections.abc import Mapping
from typing import Any

import jax
from etils import epath
from orbax.checkpoint import v1 as ocp

from lvsm_jax.architectures import abstract_model, architecture_of, config_class
from lvsm_jax.model import ModelConfig, ViewSynthesisModel, check_options
from lvsm_jax.train_state import TrainState
from lvsm_jax.tree import from_named, named_leaves


def save(
    model: ViewSynthesisModel,
    path: epath.PathLike,
    *,
    about: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> None:
    """Writes an export that `load` reads; under `path` it is complete or not there at all.

    Args:
        model: the weights.
        path: directory to make.
        about: what else `config.json` should say, such as the training step; JSON values.
        overwrite: replace an export that is there.

    Raises:
        FileExistsError: something is there already, or something that is no export.
    """
    path = _absolute(path)
    check_free(path, overwrite)
    # Ends in no name that a reader would take for an export, should the process die here.
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}.tmp"
    temporary.mkdir(parents=True)
    try:
        _write(model, temporary, about or {})
        _replace(path, temporary)
    except BaseException:
        if temporary.exists():
            temporary.rmtree()
        raise


def check_free(path: epath.PathLike, overwrite: bool) -> None:
    """Raises FileExistsError unless `save` may make an export at `path`."""
    path = epath.Path(path)
    if not path.exists():
        return
    if not overwrite:
        raise FileExistsError(
            f"{path} exists; choose another path, or ask to overwrite it (--overwrite)"
        )
    if not path.is_dir() or {part.name for part in path.iterdir()} != {"config.json", "weights"}:
        raise FileExistsError(f"{path} exists and is no export: it is not overwritten")


def _write(model: ViewSynthesisModel, directory: epath.Path, about: Mapping[str, Any]) -> None:
    ocp.save(directory / "weights", named_leaves(model))
    description = {
        "architecture": architecture_of(model.config),
        "model": dataclasses.asdict(model.config),
        **about,
    }
    (directory / "config.json").write_text(json.dumps(description, indent=2) + "\n")


def _replace(path: epath.Path, temporary: epath.Path) -> None:
    if not path.exists():
        temporary.rename(path)
        return
    old = temporary.with_suffix(".old")  # there is a moment without an export, but no loss
    path.rename(old)
    temporary.rename(path)
    old.rmtree()


def describe(path: epath.PathLike) -> dict[str, Any]:
    """The `config.json` of an export.

    Raises:
        FileNotFoundError: no export there.
        ValueError: a `config.json` of something else.
    """
    path = epath.Path(path)
    for part in ("config.json", "weights"):
        if not (path / part).exists():
            hint = f"; there is one at {path / 'export'}" if (path / "export").exists() else ""
            raise FileNotFoundError(f"{path} is no export: {path / part} is missing{hint}")
    try:
        description = json.loads((path / "config.json").read_text())
    except ValueError as error:
        raise ValueError(f"{path / 'config.json'}: {error}") from error
    if not isinstance(description, dict) or not {"architecture", "model"} <= description.keys():
        raise ValueError(f"{path / 'config.json'} does not say which architecture and model it is")
    return description


def model_config(path: epath.PathLike, **options: Any) -> ModelConfig:
    """The configuration of an export's model, with other options of how to compute.

    Raises:
        FileNotFoundError: no export there.
        ValueError: an architecture or a field that this version does not know, or an option that
            the weights depend on.
    """
    description = describe(path)
    try:
        cls = config_class(description["architecture"])
        config = cls(**description["model"])
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}/config.json: {error}") from error
    check_options(cls, options)
    return dataclasses.replace(config, **options)


def load(path: epath.PathLike, **options: Any) -> ViewSynthesisModel:
    """The model of an export.

    Args:
        path: directory that `save` wrote.
        **options: fields of the model's configuration to change, of those that say how to
            compute: `dtype`, `attention`, `remat`, `targets_at_once`, `cache_dtype`.

    Raises:
        FileNotFoundError: no export there.
        ValueError: an architecture that this version does not know, or weights that do not fit.
    """
    template = abstract_model(model_config(path, **options))
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), template
    )
    return from_named(template, ocp.load(_absolute(path) / "weights", named_leaves(abstract)))


class Checkpoints:
    """The checkpoints of a run: written in the background, whole or not at all.

    Args:
        directory: where they are.
        keep_last: how many of the newest stay; None for a reader, who deletes nothing.
        keep_best: how many of those with the highest `psnr` stay besides.
    """

    def __init__(self, directory: epath.PathLike, *, keep_last: int | None, keep_best: int = 0):
        keep = [ocp.training.preservation_policies.LatestN(keep_last)]
        if keep_best:
            best = ocp.training.preservation_policies.BestN(
                get_metric_fn=lambda metrics: metrics["psnr"],
                n=keep_best,
                keep_checkpoints_without_metrics=False,
            )
            keep.append(best)
        self._checkpointer = ocp.training.Checkpointer(
            _absolute(directory),
            preservation_policy=ocp.training.preservation_policies.AnyPreservationPolicy(keep),
            cleanup_tmp_directories=keep_last is not None,
        )

    @property
    def latest_step(self) -> int | None:
        """Steps done in the newest checkpoint, or None."""
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

    @property
    def steps(self) -> list[int]:
        """Steps of all checkpoints that are there."""
        return [checkpoint.step for checkpoint in self._checkpointer.checkpoints]

    def save(self, step: int, state: TrainState, psnr: float | None = None) -> None:
        """Starts to save; `state` may be donated as soon as this returns."""
        if step == self.latest_step:
            return
        # Orbax would rank NaN, and might keep it as the best.
        metrics = {"psnr": psnr} if psnr is not None and math.isfinite(psnr) else None
        self._checkpointer.save_async(step, named_leaves(state), force=True, metrics=metrics)

    def restore(self, abstract_state: TrainState, step: int | None = None) -> TrainState:
        """The state of a step (default: the newest), with the shardings of `abstract_state`."""
        step = self.latest_step if step is None else step
        return from_named(
            abstract_state, self._checkpointer.load(step, named_leaves(abstract_state))
        )

    def close(self) -> None:
        """Waits until all is written."""
        self._checkpointer.close()


def _absolute(path: epath.PathLike) -> epath.Path:
    """Orbax takes no relative paths."""
    path = epath.Path(path)
    return path if "://" in os.fspath(path) else path.resolve()
