"""The training loop: steps, and at some of them a row of metrics, pictures, a checkpoint."""

import functools
import itertools
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh

from lvsm_jax.batch import Batch, shard_batch
from lvsm_jax.common.config import RunConfig
from lvsm_jax.common.errors import UserError
from lvsm_jax.evaluation.metrics import psnr
from lvsm_jax.evaluation.scoring import EvalSet, evaluate, render_views
from lvsm_jax.parallel import processes
from lvsm_jax.training import diagnostics
from lvsm_jax.training.checkpoints import Checkpoints
from lvsm_jax.training.frozen_networks import Frozen
from lvsm_jax.training.interval import Clock, Sums, add_step, from_json, means, to_json
from lvsm_jax.training.run_log import RunLog, say
from lvsm_jax.training.train_state import (
    Metrics,
    TrainingConfig,
    TrainState,
    compiled_step,
    to_unit,
)


class StopSignals:
    """Handler of SIGTERM and SIGINT: `requested` asks the loop to stop after the next step."""

    requested = False

    def __call__(self, number: int, frame: Any) -> None:
        """The signal handler."""
        self.requested = True
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a second Ctrl-C stops at once
        say(f"{signal.Signals(number).name}: stopping after the next step")


@contextmanager
def stop_signals() -> Iterator[StopSignals]:
    """Handles SIGTERM and SIGINT inside the block."""
    handler = StopSignals()
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(number, handler) for number in numbers]
    try:
        yield handler
    finally:
        for number, old in zip(numbers, before, strict=True):
            signal.signal(number, old)


class Due(NamedTuple):
    """What comes after a step; with an evaluation or layers comes a row, so that it is whole."""

    row: bool
    evaluation: bool
    layers: bool
    picture: bool
    checkpoint: bool


def what_is_due(run: RunConfig, step: int, *, evaluates: bool) -> Due:
    """What comes after the step of this number, from 1."""

    def due(every: int) -> bool:
        return every > 0 and step % every == 0

    last = step == run.num_steps
    evaluation = evaluates and (last or due(run.eval_every))
    return Due(
        row=last or evaluation or due(run.layers_every) or due(run.log_every),
        evaluation=evaluation,
        layers=due(run.layers_every),
        picture=due(run.image_every),
        checkpoint=last or evaluation or due(run.checkpoint_every),
    )


class Done(NamedTuple):
    """A step that was dispatched, with the sums of its row's interval if a row is due.

    Its metrics have `stop` beside those of `train_step`: whether any process was asked to stop.
    """

    step: int
    metrics: Metrics
    sums: Sums | None


def train_steps(
    run: RunConfig,
    training: TrainingConfig,
    mesh: Mesh,
    state: TrainState,
    frozen: Frozen,
    batches: Iterator[Batch],
    *,
    checkpoints: Checkpoints,
    log: RunLog,
    eval_set: EvalSet | None,
    stop: StopSignals,
) -> TrainState:
    """Trains to the last step, or until a process is asked to stop; the last state is saved.

    `batches` are those of this process from the state's step on. A checkpoint inside an interval
    has its sums beside the state.

    Raises:
        UserError: too many steps in a row were skipped.
    """
    step = int(state.step)
    if step >= run.num_steps:
        return state
    sums = from_json(checkpoints.extra(step))
    step_function, programs = compiled_step(training, mesh), {}
    batches = itertools.chain([next(batches)], batches)  # workers start: no step waits for that
    clock, pending, stopping = Clock(step), None, False

    def fetch(done: Done | None) -> bool:
        return done is not None and _fetch(run, log, clock, len(programs), done)

    while step < run.num_steps and not stopping:
        with clock.waiting_for_data():
            batch = next(batches)
        shape, sharded = batch.inputs.images.shape, shard_batch(mesh, batch)
        if shape not in programs:
            stopping, pending = stopping | fetch(pending), None
            with clock.aside():
                programs[shape] = _compile(step_function, len(programs), state, sharded, frozen)
        state, metrics = programs[shape](state, sharded, frozen)
        sums = add_step(sums, metrics, sharded.replaced)
        metrics["stop"] = processes.any_process(mesh, stop.requested)
        step += 1
        log.advance()
        # Metrics are fetched one step late: the device computes while the host waits.
        stopping |= fetch(pending)
        due = what_is_due(run, step, evaluates=eval_set is not None)
        pending = Done(step, metrics, sums if due.row else None)
        if due.checkpoint or due.layers or due.picture:
            # The step's row comes first: killed in between, a resumed run would not write it.
            stopping, pending = stopping | fetch(pending), None
            with clock.aside():
                score = _quick_evaluation(state, eval_set, mesh) if due.evaluation else None
                _tell(log, due, step, state, batch, sums, score)
                if due.checkpoint:  # before the next batch is drawn: what is scored is saved
                    checkpoints.save(step, state, score, None if due.row else to_json(sums))
        if due.row:
            sums = None
    fetch(pending)
    checkpoints.save(step, state, extra=to_json(sums))
    return state


def _compile(
    step_function: Any, number: int, state: TrainState, batch: Batch, frozen: Frozen
) -> jax.stages.Compiled:
    """The program of a step for batches of this shape."""
    start = time.monotonic()
    program = step_function.lower(state, batch, frozen).compile()
    _, views, height, width, _ = batch.inputs.images.shape
    logging.info(
        "program %d, for %d × %d×%d pixels of inputs, compiled in %.1f s",
        *(number + 1, views, width, height, time.monotonic() - start),
    )
    return program


def _fetch(run: RunConfig, log: RunLog, clock: Clock, programs: int, done: Done) -> bool:
    """Waits until a step is done, writes its row if one is due, and says whether to stop."""
    names = ("stop", "loss", "grad_norm", "learning_rate", "skipped_steps", "skipped_in_a_row")
    last = jax.device_get({name: done.metrics[name] for name in names})
    if done.sums is not None:
        row = {name: value for name, value in means(done.sums).items() if np.ndim(value) == 0}
        row |= {name: last[name] for name in ("learning_rate", "skipped_steps", "skipped_in_a_row")}
        log.row(done.step, row | clock.lap(done.step) | {"programs": programs})
    if last["skipped_in_a_row"] >= run.max_skipped_in_a_row:
        raise UserError(
            f"{last['skipped_in_a_row']} steps in a row up to step {done.step} were skipped, as "
            f"their gradients were not finite or too long (norm {last['grad_norm']:.3g}, loss "
            f"{last['loss']:.3g}): lower --config.optimizer.learning_rate or look at the data"
        )
    return bool(last["stop"])


def _tell(
    log: RunLog,
    due: Due,
    step: int,
    state: TrainState,
    batch: Batch,
    sums: Sums,
    score: float | None,
) -> None:
    """Logs the evaluation's score, the diagnostics of layers and a picture, where they are due."""
    if score is not None:
        log.scalars(step, {"eval/psnr": score})
        say(f"step {step}: PSNR {score:.2f} dB on held-out scenes")
    if due.layers:
        log.scalars(step, _by_layer(state, batch, means(sums)))
    if due.picture:
        log.picture(step, "train", _picture(state, batch))


def _quick_evaluation(state: TrainState, eval_set: EvalSet, mesh: Mesh) -> float:
    """PSNR on the quick evaluation's scenes."""
    put = functools.partial(shard_batch, mesh)
    quick = {"metrics": {"psnr": psnr}, "baselines": False, "progress": False}
    return evaluate(state.best_weights, eval_set, put=put, **quick).mean("psnr")


def _picture(state: TrainState, batch: Batch) -> np.ndarray:
    """The inputs of the batch's first scene, then target and render of its first target."""
    first = processes.of_main(jax.tree.map(lambda x: x[:1], batch))
    targets = jax.tree.map(lambda x: x[:, :1], first.targets)
    render = render_views(state.best_weights, first.inputs, targets.cameras)
    render = (processes.gather(render)[0, 0] * 255).round().astype(np.uint8)
    return np.concatenate([*first.inputs.images[0], targets.images[0, 0], render], axis=1)


def _by_layer(state: TrainState, batch: Batch, means: Mapping[str, Any]) -> dict[str, float]:
    """Diagnostics of each layer: gradients of the interval, tokens of the batch's first scene."""
    first = processes.of_main(jax.tree.map(lambda x: x[:1], batch))
    inputs = first.inputs
    values = diagnostics.token_statistics(
        state.model, to_unit(inputs.images), inputs.cameras, first.targets.cameras
    )
    norms = {name: jnp.asarray(value) for name, value in means.items() if np.ndim(value)}
    # By the number of views, which may differ from step to step.
    views = f"{inputs.images.shape[1]}_views"
    names = {name: f"{name}/{views}" if name == "attention_entropy" else name for name in values}
    return diagnostics.rows(norms | {names[name]: value for name, value in values.items()})
