"""The training loop: steps, and at some of them a row of metrics, pictures, a checkpoint."""

import functools
import itertools
import signal
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh

from lvsm_jax.batch import Batch, first_scene, readable_batch, shard_batch
from lvsm_jax.common.config import RunConfig
from lvsm_jax.common.errors import UserError
from lvsm_jax.evaluation.metrics import psnr
from lvsm_jax.evaluation.scoring import EvalSet, evaluate, render_views
from lvsm_jax.parallel import processes
from lvsm_jax.training import diagnostics, train_state
from lvsm_jax.training.checkpoints import Checkpoints
from lvsm_jax.training.frozen_networks import Frozen
from lvsm_jax.training.interval import NO_MEANS, Clock, Sums, add_step, from_json, means, to_json
from lvsm_jax.training.run_log import RunLog, say
from lvsm_jax.training.train_state import Metrics, TrainingConfig, TrainState


class StopSignals:
    """Inside `with`, SIGTERM and SIGINT set `requested`: stop after the next step."""

    requested = False

    def __enter__(self) -> "StopSignals":
        numbers = signal.SIGTERM, signal.SIGINT
        self._before = {number: signal.signal(number, self._handle) for number in numbers}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: Any) -> None:
        self.requested = True
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a second Ctrl-C stops at once
        say(f"{signal.Signals(number).name}: stopping after the next step")


class LateMetrics:
    """Metrics of a step, fetched one step late: the device computes while the host waits.

    They have `stop` beside those of `train_step`: whether any process was asked to stop.
    """

    def __init__(self, run: RunConfig, log: RunLog, clock: Clock):
        self._run, self._log, self._clock = run, log, clock
        self._pending: tuple[int, Metrics, Sums | None, int] | None = None
        self.stop = False

    def dispatched(self, step: int, metrics: Metrics, sums: Sums | None, programs: int) -> None:
        """Fetches the step before; keeps this one, with its interval's sums if a row is due."""
        self.fetch()
        self._log.advance()
        self._pending = step, metrics, sums, programs

    def fetch(self) -> None:
        """Waits until the step is done, and writes its row if one is due."""
        if self._pending is None:
            return
        (step, metrics, sums, programs), self._pending = self._pending, None
        names = ("stop", "loss", "grad_norm", *NO_MEANS)
        last = jax.device_get({name: metrics[name] for name in names})
        self.stop |= bool(last["stop"])
        if sums is not None:
            row = {name: value for name, value in means(sums).items() if np.ndim(value) == 0}
            row |= {name: last[name] for name in NO_MEANS}
            self._log.row(step, row | self._clock.lap(step) | {"programs": programs})
            if row.get("overflow"):
                logging.warning(
                    "up to step %d the rasteriser had no room for %.2g of its pairs: renders lack "
                    "the farthest Gaussians; raise --config.model.pairs_per_gaussian",
                    *(step, row["overflow"]),
                )
        if last["skipped_in_a_row"] >= self._run.max_skipped_in_a_row:
            raise UserError(
                f"{last['skipped_in_a_row']} steps in a row up to step {step} were skipped, as "
                f"their gradients were not finite or too long (norm {last['grad_norm']:.3g}, loss "
                f"{last['loss']:.3g}): lower --config.optimizer.learning_rate or look at the data"
            )


def due(step: int, every: int) -> bool:
    """Whether something that is done every so many steps (0: never) comes after this one."""
    return every > 0 and step % every == 0


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

    `batches` are those from the state's step on, on the devices. A checkpoint inside an interval
    has its sums beside the state. UserError after too many skipped steps in a row, or where
    an evaluation's renders are not finite.
    """
    step = int(state.step)
    if step >= run.num_steps:
        return state
    sums = from_json(checkpoints.extra(step))
    step_function, programs = train_state.compiled_step(training, mesh), {}
    batches = itertools.chain([next(batches)], batches)  # workers start: no step waits for that
    clock = Clock(step)
    late = LateMetrics(run, log, clock)
    while step < run.num_steps and not late.stop:
        with clock.waiting_for_data():
            batch = next(batches)
        # Batches of worlds may have depth, which those of a dataset have not.
        shape = *batch.inputs.images.shape, batch.inputs.depth is None
        if shape not in programs:
            late.fetch()
            with clock.aside():
                programs[shape] = _compile(step_function, len(programs), state, batch, frozen)
        state, metrics = programs[shape](state, batch, frozen)
        sums = add_step(sums, metrics, batch.replaced)
        metrics["stop"] = processes.any_process(mesh, stop.requested)
        step += 1
        last = step == run.num_steps
        layers, picture = due(step, run.layers_every), due(step, run.image_every)
        scored = eval_set is not None and (last or due(step, run.eval_every))
        # With an evaluation or layers comes a row, so that it is whole.
        row = last or scored or layers or due(step, run.log_every)
        checkpoint = last or scored or due(step, run.checkpoint_every)
        late.dispatched(step, metrics, sums if row else None, len(programs))
        if checkpoint or layers or picture:
            late.fetch()  # first: killed in between, a resumed run would not write the row
            with clock.aside():
                score = _evaluate(log, step, state, eval_set, mesh) if scored else None
                if layers:
                    log.scalars(step, _by_layer(state, batch, means(sums)))
                if picture:
                    log.picture(step, "train", _picture(state, batch))
                if checkpoint:  # before the next batch is drawn: what is scored is saved
                    checkpoints.save(step, state, score, None if row else to_json(sums))
        if row:
            sums = None
    late.fetch()
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


def _evaluate(log: RunLog, step: int, state: TrainState, eval_set: EvalSet, mesh: Mesh) -> float:
    """PSNR on the quick evaluation's scenes, which is logged."""
    put = functools.partial(shard_batch, mesh)
    quick = {"metrics": {"psnr": psnr}, "baselines": False, "progress": False}
    evaluation = evaluate(state.best_weights, eval_set, put=put, **quick)
    evaluation.check_finite()  # before such weights are saved, and go on
    score = evaluation.mean("psnr")
    log.scalars(step, {"eval/psnr": score})
    say(f"step {step}: PSNR {score:.2f} dB on held-out scenes")
    return score


def _picture(state: TrainState, batch: Batch) -> np.ndarray:
    """The inputs of the batch's first scene, then target and render of its first target."""
    first = first_scene(batch)
    targets = jax.tree.map(lambda x: x[:, :1], first.targets)
    render = render_views(state.best_weights, first.inputs, targets.cameras)
    render = (processes.gather(render)[0, 0] * 255).round().astype(np.uint8)
    return np.concatenate([*first.inputs.images[0], targets.images[0, 0], render], axis=1)


def _by_layer(state: TrainState, batch: Batch, means: Mapping[str, Any]) -> dict[str, float]:
    """Diagnostics of each layer: gradients of the interval, tokens of the batch's first scene."""
    first = readable_batch(state.model, first_scene(batch))
    images, cameras = first.inputs.images, (first.inputs.cameras, first.targets.cameras)
    values = diagnostics.token_statistics(state.model, train_state.to_unit(images), *cameras)
    if "attention_entropy" in values:  # by the number of views, which may differ between steps
        entropy = values.pop("attention_entropy")
        values[f"attention_entropy/{images.shape[1]}_views"] = entropy
    norms = {name: jnp.asarray(value) for name, value in means.items() if np.ndim(value)}
    return diagnostics.rows(norms | values)
