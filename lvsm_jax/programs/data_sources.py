"""Where batches come from: a dataset, worlds made on the device, or both in turn."""

import contextlib
import functools
import itertools
import math
import os
from collections.abc import Iterator

from jax.sharding import Mesh

from input_pipeline import loading
from lvsm_jax.batch import Batch, shard_batch
from lvsm_jax.common.config import DataConfig, EvalConfig
from lvsm_jax.common.errors import UserError
from lvsm_jax.parallel import processes
from lvsm_jax.parallel.mesh import data_shard
from lvsm_jax.training.settings import Settings
from lvsm_jax.worlds.config import WorldsConfig
from lvsm_jax.worlds.held_out import HeldOutWorlds, open_worlds
from lvsm_jax.worlds.stream import world_batches


@contextlib.contextmanager
def training_batches(settings: Settings, mesh: Mesh, start_step: int) -> Iterator[Iterator[Batch]]:
    """The batches of a run from a step on, on the devices of the mesh; leaving stops the loading.

    Each source counts its own steps: the dataset's batches come in the order of a run without
    worlds. UserError where data and config do not go together.
    """
    run, data = settings.run, settings.data
    of_worlds = steps_on_worlds(data.worlds_share, start_step)
    same = {"batch_size": run.batch_size, "seed": run.seed}
    with contextlib.ExitStack() as stack:
        worlds = dataset = iter(())
        with processes.error_of_any():
            if data.worlds_share > 0:
                start = {"start_step": of_worlds, "mesh": mesh}
                loss = settings.training.loss
                start["with_depth"] = loss.points > 0 or loss.depth > 0
                worlds = world_batches(data, settings.worlds, **same, **start)
            if data.worlds_share < 1:
                _check_path(data, "data.worlds_share=1 trains on worlds alone")
                index, count = data_shard(mesh)
                share = {"process_index": index, "process_count": count}
                start = {"start_step": start_step - of_worlds}
                loaded = loading.train_batches(data, **same, **start, **share)
                stack.enter_context(contextlib.closing(loaded))
                dataset = map(functools.partial(shard_batch, mesh), loaded)
        yield (
            next(worlds if is_on_worlds(data.worlds_share, step) else dataset)
            for step in itertools.count(start_step)
        )


def steps_on_worlds(share: float, step: int) -> int:
    """How many of the steps before this one have worlds: they are spread evenly."""
    return math.floor(share * step)


def is_on_worlds(share: float, step: int) -> bool:
    """Whether a step's batch is worlds."""
    return steps_on_worlds(share, step + 1) > steps_on_worlds(share, step)


def open_evaluation(
    data: DataConfig,
    worlds: WorldsConfig,
    evaluation: EvalConfig,
    mesh: Mesh,
    max_scenes: int | None = None,
) -> loading.EvalSet | HeldOutWorlds:
    """The held-out worlds of an evaluation, or the clips of the dataset's index.

    At most `max_scenes`, if `evaluation` does not ask for fewer. UserError where dataset, index and
    config do not go together.
    """
    index, count = data_shard(mesh)
    if evaluation.worlds:
        return open_worlds(data, worlds, evaluation, max_scenes)
    _check_path(data, "eval.worlds=64 evaluates on so many worlds instead")
    share = {"process_index": index, "process_count": count}
    return loading.open_eval_set(data, evaluation, max_scenes=max_scenes, **share)


def _check_path(data: DataConfig, otherwise: str) -> None:
    if not os.fspath(data.path):
        raise UserError(
            f"data.path is empty: expected a dataset's directory (--config.{otherwise})"
        )
