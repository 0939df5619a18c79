"""Trains a view synthesis model.

    python train.py --config=configs/quickstart.py --workdir=runs/quickstart
    python train.py --config=configs/re10k_256.py --workdir=runs/re10k \
        --config.data.path=data/re10k --config.run.batch_size=64

Any field of the config can be set with --config.SECTION.FIELD=VALUE; configs/base.py says where
each is explained. Killed or stopped at any moment, the same command goes on from the last
checkpoint, to the same weights. On several hosts each runs this command (docs/pods.md). The
working directory holds:

    config.json   the resolved config         checkpoints/  of the whole state
    metrics.csv   one row each log_every      images/       input | target | render
    log.txt       what was printed            tensorboard/  all of it for TensorBoard
    export/       the weights at the end, for lvsm_jax.load and eval.py
"""

import functools
import sys
from collections.abc import Mapping
from contextlib import closing
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from absl import app, flags, logging
from etils import epath
from jax.sharding import Mesh
from ml_collections import config_flags

import lvsm_jax
from input_pipeline.loading import EvalSet, open_eval_set, train_batches
from input_pipeline.storage import DatasetError
from lvsm_jax.batch import Batch, shard_batch
from lvsm_jax.common.command_line import parse_flags
from lvsm_jax.common.config import RunConfig
from lvsm_jax.evaluation.metrics import psnr
from lvsm_jax.evaluation.scoring import evaluate
from lvsm_jax.parallel import processes
from lvsm_jax.parallel.mesh import make_mesh, reader, simulate_cpu_devices
from lvsm_jax.training.checkpoints import CheckpointError, Checkpoints
from lvsm_jax.training.diagnostics import rows, token_statistics
from lvsm_jax.training.frozen_networks import FrozenWeightsError, load_frozen
from lvsm_jax.training.loop import Clock, Programs, StopSignals, stop_signals
from lvsm_jax.training.run_log import RunLog, log_to_file
from lvsm_jax.training.settings import Settings, check_start, record_config, starting_weights
from lvsm_jax.training.train_state import (
    TrainState,
    abstract_state,
    compiled_step,
    init_state,
    to_unit,
)

_CONFIG = config_flags.DEFINE_config_file("config", None, "Config file, see configs/.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run; made or resumed.")


def train(config: ml_collections.ConfigDict, workdir: epath.PathLike) -> None:
    """Runs or resumes a training run to its end, then exports the weights."""
    settings, workdir = Settings.of(config), epath.Path(workdir)
    run = settings.run
    mesh = make_mesh(settings.mesh)
    process_index, process_count = reader(mesh)
    eval_set = None
    if run.eval_every:
        with processes.error_of_any():
            eval_set = open_eval_set(
                settings.data,
                settings.evaluation,
                max_scenes=run.eval_scenes,
                process_index=process_index,
                process_count=process_count,
            )
    checkpoints = Checkpoints(
        workdir / "checkpoints", keep_last=run.keep_last, keep_best=run.keep_best
    )
    with (
        jax.set_mesh(mesh),
        closing(checkpoints),
        stop_signals() as stop,
        processes.ending_at_once(),
    ):
        restored = checkpoints.restore_newest(abstract_state(settings.training, mesh))
        start = restored[0] if restored else 0
        log = RunLog(workdir, run.num_steps, start, is_main=processes.is_main())
        with closing(log):
            logging.info("on %s", processes.describe())
            if restored:
                logging.info("resuming from step %d", start)
                state = restored[1]
            else:
                state = init_state(settings.training, mesh, run.seed, starting_weights(settings))
                log.start(config.to_dict(), state.model)
            del restored  # it would hold a second state
            record_config(config, workdir)
            state = train_steps(settings, mesh, state, start, checkpoints, log, eval_set, stop)
        step = int(state.step)
        if step < run.num_steps:
            logging.info("stopped at step %d; the same command goes on from there", step)
            return
        about = {"step": step, "config": config.to_dict()}
        lvsm_jax.save(state.best_weights, workdir / "export", about=about, overwrite=True)
        logging.info("exported the weights to %s", workdir / "export")


def train_steps(
    settings: Settings,
    mesh: Mesh,
    state: TrainState,
    start: int,
    checkpoints: Checkpoints,
    log: RunLog,
    eval_set: EvalSet | None,
    stop: StopSignals,
) -> TrainState:
    """The training loop; ends at the last step or, with a checkpoint, when asked to stop."""
    run, training = settings.run, settings.training
    step_function = compiled_step(training, mesh)
    process_index, process_count = reader(mesh)
    with processes.error_of_any():
        frozen = load_frozen(training.loss, training.repa, dtype=training.model.dtype, mesh=mesh)
        batches = train_batches(
            settings.data,
            batch_size=run.batch_size,
            seed=run.seed,
            start_step=start,
            process_index=process_index,
            process_count=process_count,
        )
    step, clock, programs = start, Clock(), Programs()
    previous, stopping = None, False
    with closing(batches):
        while step < run.num_steps and not stopping:
            with clock.waiting_for_data():
                batch = next(batches)
            with programs.called(batch.inputs.images.shape, clock):
                state, metrics = step_function(state, shard_batch(mesh, batch), frozen)
            metrics["stop"] = processes.any_process(mesh, stop.requested)
            step += 1
            clock.count_step(replaced=int(np.sum(batch.replaced)))
            # Metrics are fetched one step late: the device computes while the host waits.
            if previous is not None:
                stopping = fetch(run, log, *previous)
            elif step == start + 1:
                jax.block_until_ready(metrics)
                logging.info("first step done %.0f s after the loop began", clock.elapsed)
                clock = Clock()  # of steps that do not compile
                clock.count_step(replaced=int(np.sum(batch.replaced)))
            last = step == run.num_steps
            timing = None
            if due(step, run.log_every) or last:
                timing = clock.lap() | {"programs": len(programs)}
            previous = (step, metrics, timing)
            log.progress(step)
            # Evaluated and saved before the next batch is drawn; what is scored is saved too.
            with clock.stopped():
                score = None
                if eval_set is not None and (due(step, run.eval_every) or last):
                    score = quick_evaluation(state, eval_set, mesh)
                    log.scalars(step, {"eval/psnr": score})
                if due(step, run.layers_every):
                    log.scalars(step, by_layer(state, batch, metrics))
                if due(step, run.image_every):
                    log.picture(step, "train", picture(state, batch))
                if score is not None or due(step, run.checkpoint_every) or last:
                    # First the step's row: killed in between, a resumed run would not write it.
                    stopping |= fetch(run, log, *previous)
                    previous = None
                    checkpoints.save(step, state, score)
        if previous is not None:
            fetch(run, log, *previous)
            checkpoints.save(step, state)
    return state


def fetch(run: RunConfig, log: RunLog, step: int, metrics: dict, timing: dict | None) -> bool:
    """Waits for a step's metrics, and writes them where they are to be logged.

    Returns:
        Whether any process was asked to stop by then; all processes get the same answer.
    """
    metrics = jax.device_get(metrics)
    values = {name: float(value) for name, value in metrics.items() if np.ndim(value) == 0}
    stopping = bool(values.pop("stop"))
    if timing is not None:
        log.scalars(step, values | timing)
    if values["skipped_in_a_row"] >= run.max_skipped_in_a_row:
        raise RuntimeError(
            f"{values['skipped_in_a_row']:.0f} steps in a row up to step {step} were skipped, as "
            f"their gradients were not finite or too long (norm {values['grad_norm']:.3g}, loss "
            f"{values['loss']:.3g}): lower optimizer.learning_rate or look at the data"
        )
    return stopping


def quick_evaluation(state: TrainState, eval_set: EvalSet, mesh: Mesh) -> float:
    """PSNR on the quick evaluation's scenes."""
    put = functools.partial(shard_batch, mesh)
    result = evaluate(
        state.best_weights,
        eval_set,
        metrics={"psnr": psnr},
        baselines=False,
        put=put,
        progress=False,
    )
    return result.mean("psnr")


def picture(state: TrainState, batch: Batch) -> np.ndarray:
    """The inputs of the batch's first scene, then target and render of its first target."""
    first = processes.of_main(jax.tree.map(lambda x: x[:1], batch))
    targets = jax.tree.map(lambda x: x[:, :1], first.targets)
    render = first_render(state.best_weights, first.inputs, targets.cameras)
    render = (processes.gather(render)[0, 0] * 255).round().astype(np.uint8)
    return np.concatenate([*first.inputs.images[0], targets.images[0, 0], render], axis=1)


def by_layer(state: TrainState, batch: Batch, metrics: Mapping[str, Any]) -> dict[str, float]:
    """Norms and entropies of each layer: of the step's gradient, and in the batch's first scene."""
    first = processes.of_main(jax.tree.map(lambda x: x[:1], batch))
    inputs = first.inputs
    values = token_statistics(
        state.model, to_unit(inputs.images), inputs.cameras, first.targets.cameras
    )
    norms = {name: value for name, value in metrics.items() if np.ndim(value)}
    # By the number of views, which may differ from step to step.
    views = f"{inputs.images.shape[1]}_views"
    names = {name: f"{name}/{views}" if name == "attention_entropy" else name for name in values}
    return rows(norms | {names[name]: value for name, value in values.items()})


@jax.jit
def first_render(model: Any, inputs: Any, cameras: lvsm_jax.Cameras) -> jax.Array:
    """One scene, rendered on every device alike."""
    return model(to_unit(jnp.asarray(inputs.images)), inputs.cameras, cameras)


def due(step: int, every: int) -> bool:
    """Whether something done every so many steps (0: never) is due."""
    return every > 0 and step % every == 0


def main(argv: list[str]) -> None:
    """Reads the flags, and trains."""
    if len(argv) > 1:
        raise app.UsageError(
            f"unexpected arguments {argv[1:]}; fields are --config.SECTION.FIELD=…"
        )
    workdir = epath.Path(_WORKDIR.value)
    try:
        settings = Settings.of(_CONFIG.value)
        count = processes.start(settings.processes)
        devices = settings.run.cpu_devices
        simulate_cpu_devices(devices, settings.mesh, *settings.batch_sizes, processes=count)
        processes.check_same_config(_CONFIG.value.to_dict())
        with processes.error_of_any():
            check_start(settings, workdir)
        processes.check_shared(workdir)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    if processes.is_main():
        log_to_file(workdir / "log.txt")
    else:
        logging.set_verbosity(logging.WARNING)
    try:
        train(_CONFIG.value, workdir)
    except (
        DatasetError,
        FileNotFoundError,
        CheckpointError,
        FrozenWeightsError,
        processes.OtherProcessError,
    ) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main, flags_parser=parse_flags)
