"""Checkpoints of a training run: the whole state, with a checksum of each array.

All processes take part in writing; each reads its part alone, and all agree whether it is good.
"""

import contextlib
import json
import math
import operator
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from etils import epath
from orbax.checkpoint import v1 as ocp

from lvsm_jax.common.errors import UserError
from lvsm_jax.common.files import disk_errors_in_a_line
from lvsm_jax.common.tree import from_named, named_leaves
from lvsm_jax.parallel import processes
from lvsm_jax.training.train_state import TrainState
from lvsm_jax.weights.exports import absolute, checksums, read_arrays

_CHECKSUMS = "checksums"


class CheckpointError(UserError):
    """A checkpoint that cannot be used."""


class Checkpoints:
    """The checkpoints of a run: written in the background, whole or not at all.

    Of the newest `keep_last` stay (None for a reader, who deletes nothing), and of those with the
    highest PSNR `keep_best` besides. What a process that died left half written is removed by the
    next one that writes.
    """

    def __init__(self, directory: epath.PathLike, *, keep_last: int | None, keep_best: int = 0):
        policies = ocp.training.preservation_policies
        keep = [policies.LatestN(keep_last)]
        if keep_best:
            options = {"get_metric_fn": operator.itemgetter("psnr"), "n": keep_best}
            keep.append(policies.BestN(**options, keep_checkpoints_without_metrics=False))
        self._directory = absolute(directory)
        if keep_last is not None and processes.is_main():
            for unfinished in self._directory.glob("*.orbax-checkpoint-tmp*"):
                logging.warning("%s was never finished, and is removed", unfinished)
        self._checkpointer = ocp.training.Checkpointer(
            self._directory,
            preservation_policy=policies.AnyPreservationPolicy(keep),
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

    def save(
        self,
        step: int,
        state: TrainState,
        psnr: float | None = None,
        extra: dict[str, Any] | None = None,
    ) -> None:
        """Starts to save; `state` may be donated as soon as this returns. All processes call it.

        A step that is saved already stays. `extra` are small JSON values to keep beside the state.
        CheckpointError if the disk does not take this checkpoint, or the one before.
        """
        if step == self.latest_step:
            return
        leaves = named_leaves(state)
        leaves[_CHECKSUMS] = checksums(leaves)
        # Orbax would rank NaN, and might keep it as the best.
        metrics = {"psnr": psnr} if psnr is not None and math.isfinite(psnr) else None
        with self._disk_errors_in_a_line():
            self._checkpointer.save_async(
                step, leaves, force=True, metrics=metrics, custom_metadata=extra
            )

    def extra(self, step: int) -> dict[str, Any]:
        """What was saved beside the state of a step; nothing where there is no such checkpoint."""
        if step not in self.steps:
            return {}
        return self._checkpointer.metadata(step).custom_metadata or {}

    def restore(self, abstract_state: TrainState, step: int) -> TrainState:
        """The state of a step, with the shardings of `abstract_state`, wherever it was saved.

        CheckpointError on all processes, if one cannot read its part or an array is not what was
        saved; names the checkpoint and what is wrong with it.
        """
        path, leaves = self._directory / str(step), named_leaves(abstract_state)
        sharding = abstract_state.step.sharding
        leaves[_CHECKSUMS] = jax.ShapeDtypeStruct((len(leaves),), jnp.uint32, sharding=sharding)
        try:
            with processes.error_of_any():
                loaded = read_arrays(path, leaves)
        except Exception as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise CheckpointError(f"checkpoint {path} cannot be read: {reason}") from error
        expected = np.asarray(loaded.pop(_CHECKSUMS))
        changed = np.flatnonzero(np.asarray(checksums(loaded)) != expected)
        if len(changed):
            raise CheckpointError(
                f"checkpoint {path} is corrupt: {len(changed)} of {len(loaded)} arrays are not "
                f"what was saved, such as {sorted(loaded)[changed[0]]}"
            )
        return from_named(abstract_state, loaded)

    def restore_newest(self, abstract_state: TrainState) -> tuple[int, TrainState] | None:
        """Step and state of the newest checkpoint that is good, or None where there is none at all.

        Newer ones are named in the log and renamed to `unreadable_<step>`: the run can save that
        step again. CheckpointError if there are some and none is good; they stay.
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
        """Waits until all is written, or raises CheckpointError if the disk does not take it."""
        with self._disk_errors_in_a_line():
            self._checkpointer.close()

    @contextlib.contextmanager
    def _disk_errors_in_a_line(self) -> Iterator[None]:
        try:
            with disk_errors_in_a_line(f"a checkpoint in {self._directory}"):
                yield
        except UserError as error:
            raise CheckpointError(str(error)) from error
