"""What is kept of a model: exports of its weights, and checkpoints of a training run.

An export is a directory with `config.json` (architecture, sizes, and what it was trained on) and
`weights/`, an Orbax checkpoint with one array for each name of `lvsm_jax.common.tree.named_leaves`.

A checkpoint holds the whole state in the same way, and a checksum of each array. All processes take
part in writing; each reads its own part alone, and then all agree whether it is good.
"""

import dataclasses
import json
import math
import os
import uuid
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from etils import epath
from jaxtyping import Array, UInt32
from orbax.checkpoint import v1 as ocp

from lvsm_jax.common.tree import from_named, named_leaves
from lvsm_jax.models.architectures import abstract_model, architecture_of, config_class
from lvsm_jax.models.base import ModelConfig, ViewSynthesisModel, check_options
from lvsm_jax.parallel import processes
from lvsm_jax.training.train_state import TrainState

_CHECKSUMS = "checksums"


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
    path, main = _absolute(path), processes.is_main()
    # Ends in no name that a reader would take for an export, should the process die here.
    token = processes.gather_texts(uuid.uuid4().hex[:8])[0]
    temporary = path.parent / f".{path.name}.{token}.tmp"
    with processes.error_of_any():
        if main:
            check_free(path, overwrite)
            temporary.mkdir(parents=True)
    try:
        ocp.save(temporary / "weights", named_leaves(model))
        with processes.error_of_any():
            if main:
                _describe(model, temporary, about or {})
                _replace(path, temporary)
    except BaseException:
        if main and temporary.exists():
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


def _describe(model: ViewSynthesisModel, directory: epath.Path, about: Mapping[str, Any]) -> None:
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
    return from_named(template, _read_alone(_absolute(path) / "weights", named_leaves(abstract)))


def _read_alone(path: epath.Path, abstract: Mapping[str, Any]) -> dict[str, Any]:
    """The arrays of a directory that Orbax wrote, without waiting for other processes.

    Orbax would have all wait for each other at the end, for ever if one fails before.
    """
    me = ocp.multihost.process_index()
    context = ocp.Context()
    context.multiprocessing.primary_host = me
    context.multiprocessing.active_processes = {me}
    with context:
        return ocp.load(path, dict(abstract))


@jax.jit
def checksums(leaves: Mapping[str, Array]) -> UInt32[Array, " n"]:
    """The sum of each array's bits, in the order of names.

    Whole numbers add up to the same in any order, so it is the same on any mesh.
    """

    def of_one(leaf: Array) -> Array:
        bits = leaf.dtype.itemsize * 8
        return jax.lax.bitcast_convert_type(leaf, f"uint{bits}").astype(jnp.uint32).sum()

    return jnp.stack([of_one(leaves[name]) for name in sorted(leaves)])


class CheckpointError(ValueError):
    """A checkpoint that cannot be used."""


class Checkpoints:
    """The checkpoints of a run: written in the background, whole or not at all.

    Args:
        directory: where they are.
        keep_last: how many of the newest stay; None for a reader, who deletes nothing.
        keep_best: how many of those with the highest `psnr` stay besides.

    What a process that died left half written is removed by the next one that writes.
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
        self._directory = _absolute(directory)
        if keep_last is not None and processes.is_main():
            for unfinished in self._directory.glob("*.orbax-checkpoint-tmp*"):
                logging.warning("%s was never finished, and is removed", unfinished)
        self._checkpointer = ocp.training.Checkpointer(
            self._directory,
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
        """Starts to save; `state` may be donated as soon as this returns. All processes call it."""
        if step == self.latest_step:
            return
        leaves = named_leaves(state)
        # Orbax would rank NaN, and might keep it as the best.
        metrics = {"psnr": psnr} if psnr is not None and math.isfinite(psnr) else None
        leaves[_CHECKSUMS] = checksums(leaves)
        self._checkpointer.save_async(step, leaves, force=True, metrics=metrics)

    def restore(self, abstract_state: TrainState, step: int) -> TrainState:
        """The state of a step, with the shardings of `abstract_state`, wherever it was saved.

        Raises:
            CheckpointError: on all processes, if one cannot read its part or an array is not what
                was saved; names the checkpoint and what is wrong with it.
        """
        path, leaves = self._directory / str(step), named_leaves(abstract_state)
        saved_sums = jax.ShapeDtypeStruct(
            (len(leaves),), jnp.uint32, sharding=abstract_state.step.sharding
        )
        try:
            with processes.error_of_any():
                loaded = _read_alone(path, leaves | {_CHECKSUMS: saved_sums})
        except Exception as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise CheckpointError(f"checkpoint {path} cannot be read: {reason}") from error
        expected = np.asarray(loaded.pop(_CHECKSUMS))
        changed = np.flatnonzero(np.asarray(checksums(loaded)) != expected)
        if len(changed):
            names = [sorted(loaded)[i] for i in changed]
            raise CheckpointError(
                f"checkpoint {path} is corrupt: {len(names)} of {len(loaded)} arrays are not what "
                f"was saved, such as {names[0]}"
            )
        return from_named(abstract_state, loaded)

    def restore_newest(self, abstract_state: TrainState) -> tuple[int, TrainState] | None:
        """Step and state of the newest checkpoint that is good, or None where there is none at all.

        Newer ones are named in the log and renamed to `unreadable_<step>`: nothing is lost, and
        the run can save that step again.

        Raises:
            CheckpointError: there are checkpoints, and none is good; they are left as they are.
        """
        unreadable: list[int] = []
        # As the main process sees them, so that all try the same ones.
        for step in sorted(json.loads(processes.gather_texts(json.dumps(self.steps))[0]))[::-1]:
            try:
                state = self.restore(abstract_state, step)
            except CheckpointError as error:
                logging.error("%s", error)
                unreadable.append(step)
                continue
            self._set_aside(unreadable)
            return step, state
        if unreadable:
            raise CheckpointError(
                f"no checkpoint in {self._directory} can be used, tried steps {unreadable}; the "
                "log says why"
            )
        return None

    def _set_aside(self, steps: list[int]) -> None:
        if not steps:
            return
        with processes.error_of_any():
            for step in steps if processes.is_main() else ():
                free = self._directory / f"unreadable_{step}"
                while free.exists():
                    free = free.with_name(free.name + "_again")
                (self._directory / str(step)).rename(free)
                logging.error("renamed it to %s", free)
        self._checkpointer.reload()

    def close(self) -> None:
        """Waits until all is written."""
        self._checkpointer.close()


def _absolute(path: epath.PathLike) -> epath.Path:
    """Orbax takes no relative paths."""
    path = epath.Path(path)
    return path if "://" in os.fspath(path) else path.resolve()
