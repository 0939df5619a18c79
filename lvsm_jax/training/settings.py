"""Checks of a training run's config: whether the run may start, or resume another."""

import dataclasses
import json
from typing import Any

import ml_collections
from absl import logging
from etils import epath

from lvsm_jax.common.config import DataConfig, EvalConfig, RunConfig, flat, section
from lvsm_jax.common.errors import UserError
from lvsm_jax.common.files import read_json, write_text
from lvsm_jax.models.architectures import architecture_of
from lvsm_jax.parallel import processes
from lvsm_jax.parallel.mesh import MeshConfig, check_batch, make_mesh
from lvsm_jax.parallel.processes import ProcessesConfig
from lvsm_jax.training.frozen_networks import find_frozen
from lvsm_jax.training.train_state import TrainingConfig, check_weights_fit
from lvsm_jax.weights.exports import model_config
from lvsm_jax.worlds.config import WorldsConfig


@dataclasses.dataclass(frozen=True)
class Settings:
    """The whole config, checked."""

    run: RunConfig
    processes: ProcessesConfig
    mesh: MeshConfig
    data: DataConfig
    evaluation: EvalConfig
    worlds: WorldsConfig
    training: TrainingConfig
    init_from: str

    @property
    def batch_sizes(self) -> tuple[int, int]:
        """Scenes of a microbatch, in training and in evaluation."""
        return self.run.batch_size // self.run.grad_accumulation, self.evaluation.batch_size

    @classmethod
    def of(cls, config: ml_collections.ConfigDict) -> "Settings":
        """Reads a config, or raises UserError naming a field."""
        data = section(config, "data", DataConfig)
        data.check_training()
        return cls(
            run=section(config, "run", RunConfig),
            processes=section(config, "processes", ProcessesConfig),
            mesh=section(config, "mesh", MeshConfig),
            data=data,
            evaluation=section(config, "eval", EvalConfig),
            # Runs that were begun before there was such a section go on.
            worlds=section(config, "worlds", WorldsConfig)
            if "worlds" in config
            else WorldsConfig(),
            training=TrainingConfig.of(config),
            init_from=config.init_from,
        )


def check_start(settings: Settings, workdir: epath.PathLike) -> None:
    """Raises UserError or FileNotFoundError for what cannot start, before anything is made."""
    run, evaluation, mesh = settings.run, settings.evaluation, make_mesh(settings.mesh)
    settings.training.model.check_spread(settings.mesh.view)
    _check_times(settings)
    name = f"run.batch_size {run.batch_size} / run.grad_accumulation {run.grad_accumulation}"
    for inputs in settings.data.possible_inputs:
        check_batch(mesh, name, settings.batch_sizes[0], inputs)
    if run.eval_every:
        check_batch(mesh, "section eval", evaluation.batch_size, evaluation.num_inputs)
    find_frozen(settings.training.loss, settings.training.repa)
    workdir = epath.Path(workdir)
    if (workdir / "config.json").exists():
        _check_resumable(settings, workdir)
    begun = any((workdir / "checkpoints").glob("[0-9]*"))
    if settings.init_from and not begun:
        check_weights_fit(model_config(settings.init_from), settings.training.model)


def _check_times(settings: Settings) -> None:
    """Raises UserError where a model takes times that its batches will not have."""
    if not settings.training.model.time_channel:
        return
    for field, fits, expected in (
        ("worlds.moving_share", settings.worlds.moving_share > 0, "above 0"),
        ("data.worlds_share", settings.data.worlds_share == 1, "1"),
        ("eval.worlds", settings.evaluation.worlds or not settings.run.eval_every, "above 0"),
    ):
        if not fits:
            raise UserError(
                f"model.time_channel takes times, which only worlds that move have: {field} has "
                f"to be {expected}"
            )


def _check_resumable(settings: Settings, workdir: epath.Path) -> None:
    """Raises UserError where a run was begun with other arrays than this config makes."""
    recorded = recorded_config(workdir)
    try:
        old = TrainingConfig.of(recorded)
    except UserError as error:
        raise UserError(f"{workdir}/config.json, perhaps of another version: {error}") from error
    before = _structure(old, recorded.get("init_from"))
    after = _structure(settings.training, settings.init_from)
    decays = before["optimizer.ema_decay"], after["optimizer.ema_decay"]
    if bool(decays[0]) == bool(decays[1]):  # its value may change
        before["optimizer.ema_decay"] = decays[1]
    for name in after | before:
        was, now = before.get(name, "nothing"), after.get(name, "nothing")
        if was != now:
            raise UserError(
                f"{workdir} was begun with {name} {was} and cannot go on with {now}; use another "
                "--workdir"
            )


def recorded_config(workdir: epath.PathLike) -> ml_collections.ConfigDict:
    """The config that a run was begun with; UserError where its file is damaged."""
    file = epath.Path(workdir) / "config.json"
    content = read_json(file)
    if other := [
        name for name, value in content.items() if not isinstance(name, str) or "." in name
    ]:
        raise UserError(f"{file} has the section {other[0]!r}, which no config has")
    return ml_collections.ConfigDict(content)


def _structure(training: TrainingConfig, init_from: str | None) -> dict[str, Any]:
    """What decides which arrays a run trains."""
    sections = {
        "model": training.model.structure,
        "repa": training.repa.structure,
        "optimizer": {"ema_decay": training.optimizer.ema_decay},
    }
    start = {"architecture": architecture_of(training.model), "init_from": init_from}
    return start | flat(sections)


def record_config(config: ml_collections.ConfigDict, workdir: epath.PathLike) -> None:
    """Saves the resolved config; tells what a resumed run changes, and keeps the old file."""
    if not processes.is_main():
        return
    workdir = epath.Path(workdir)
    file, new = workdir / "config.json", json.loads(json.dumps(config.to_dict()))
    if file.exists():
        old = read_json(file)
        if old == new:
            return
        before, after = flat(old), flat(new)
        for name in sorted(before.keys() | after.keys()):
            was, now = before.get(name), after.get(name)
            if was != now:
                logging.warning("resuming with %s = %r, was %r", name, now, was)
        number = len(list(workdir.glob("config.*.json")))
        file.rename(workdir / f"config.{number}.json")
    write_text(file, json.dumps(new, indent=2) + "\n")
