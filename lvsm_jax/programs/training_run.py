"""A training run from its config to the export: what `lvsm train` runs."""

import contextlib
import platform

import flax
import jax
import ml_collections
from absl import logging
from etils import epath

import lvsm_jax
from input_pipeline.alpha import stated_background
from lvsm_jax.common.config import DataConfig, section
from lvsm_jax.parallel import processes
from lvsm_jax.parallel.mesh import make_mesh
from lvsm_jax.programs.data_sources import open_evaluation, training_batches
from lvsm_jax.training.checkpoints import Checkpoints
from lvsm_jax.training.frozen_networks import load_frozen
from lvsm_jax.training.loop import StopSignals, train_steps
from lvsm_jax.training.run_log import RunLog, say
from lvsm_jax.training.settings import Settings, record_config
from lvsm_jax.training.train_state import abstract_state, init_state


def train(config: ml_collections.ConfigDict, workdir: epath.PathLike) -> None:
    """Runs or resumes a training run to its end, then exports the weights."""
    _state_background(config)
    settings, workdir = Settings.of(config), epath.Path(workdir)
    run, training, mesh = settings.run, settings.training, make_mesh(settings.mesh)
    versions = f"Python {platform.python_version()}, jax {jax.__version__}, flax {flax.__version__}"
    logging.info("%s, on %s", versions, processes.describe())
    eval_set = None
    with processes.error_of_any():
        if run.eval_every:
            sections = settings.data, settings.worlds, settings.evaluation
            eval_set = open_evaluation(*sections, mesh, run.eval_scenes)
        frozen = load_frozen(training.loss, training.repa, dtype=training.model.dtype, mesh=mesh)
    keep = {"keep_last": run.keep_last, "keep_best": run.keep_best}
    checkpoints = Checkpoints(workdir / "checkpoints", **keep)
    with (
        jax.set_mesh(mesh),
        contextlib.closing(checkpoints),
        StopSignals() as stop,
        processes.ending_at_once(),
    ):
        restored = checkpoints.restore_newest(abstract_state(training, mesh))
        start, state = restored or (0, None)
        del restored  # it would hold a second state
        with contextlib.closing(RunLog(workdir, run.num_steps, start)) as log:
            if state is None:
                given, options = settings.init_from, training.model.options
                weights = lvsm_jax.load(given, **options) if given else None
                state = init_state(training, mesh, run.seed, weights)
                log.start(config.to_dict(), state.model)
            else:
                say(f"resuming from step {start}")
            record_config(config, workdir)
            with training_batches(settings, mesh, start) as batches:
                state = train_steps(
                    *(run, training, mesh, state, frozen, batches),
                    checkpoints=checkpoints,
                    log=log,
                    eval_set=eval_set,
                    stop=stop,
                )
        step = int(state.step)
        if step < run.num_steps:
            say(f"stopped at step {step}; the same command goes on from there")
            return
        about = {"step": step, "config": config.to_dict()}
        lvsm_jax.save(state.best_weights, workdir / "export", about=about, overwrite=True)
        say(f"exported the weights to {workdir / 'export'}")


def _state_background(config: ml_collections.ConfigDict) -> None:
    """Writes what the dataset says of its background into the config, which exports then know."""
    data = section(config, "data", DataConfig)
    if data.worlds_share < 1:
        with processes.error_of_any():
            stated = stated_background(data.path, data.background)
        if stated:
            with config.data.unlocked():
                config.data.background = stated
