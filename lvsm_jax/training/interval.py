"""Means and times of the steps that one row of metrics covers: those since the row before."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

# A row has these as they are after its last step.
NO_MEANS = ("learning_rate", "skipped_steps", "skipped_in_a_row")

Sums = dict[str, Any]


@jax.jit
def add_step(sums: Sums | None, metrics: Mapping[str, Array], replaced: Int[Array, "b"]) -> Sums:
    """Adds a step's metrics to the sums of an interval, on the device; None begins one."""
    # Of a step that was skipped only the replaced samples count: its loss may be NaN.
    taken = metrics["skipped_in_a_row"] == 0
    step = {name: jnp.where(taken, x, 0) for name, x in metrics.items() if name not in NO_MEANS}
    step |= {"steps": taken.astype(jnp.int32), "replaced_samples": replaced.sum()}
    return step if sums is None else jax.tree.map(jnp.add, sums, step)


def means(sums: Sums) -> dict[str, Any]:
    """The means over the steps of an interval that were taken, NaN if none was."""
    sums = jax.device_get(sums)
    steps, replaced = int(sums.pop("steps")), float(sums.pop("replaced_samples"))
    count = np.float32(steps or np.nan)
    return {name: value / count for name, value in sums.items()} | {"replaced_samples": replaced}


def to_json(sums: Sums | None) -> dict[str, Any]:
    """Sums as JSON keeps them exactly, for a checkpoint inside an interval."""
    return {name: np.asarray(x).tolist() for name, x in jax.device_get(sums or {}).items()}


def from_json(values: Mapping[str, Any]) -> Sums | None:
    """The sums that `to_json` wrote."""
    sums = {name: np.asarray(value) for name, value in values.items()}
    kinds = {"i": np.int32, "f": np.float32}
    return {name: x.astype(kinds[x.dtype.kind]) for name, x in sums.items()} or None


class Clock:
    """Seconds of the steps between two rows, without what is done beside them."""

    def __init__(self, step: int):
        self._restart(step)

    def _restart(self, step: int) -> None:
        self._step, self._start = step, time.monotonic()
        self._waited = self._aside = 0.0

    @contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """Counts the time inside as waiting for data."""
        start = time.monotonic()
        yield
        self._waited += time.monotonic() - start

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Leaves the time inside out, as of compiling or saving; no step may be computed then."""
        start = time.monotonic()
        yield
        self._aside += time.monotonic() - start

    def lap(self, step: int) -> dict[str, float]:
        """Seconds a step and the share of them spent waiting for data; called when `step` ends."""
        seconds = time.monotonic() - self._start - self._aside
        per_step, share = seconds / (step - self._step), self._waited / seconds
        self._restart(step)
        return {"step_seconds": per_step, "data_wait_share": share}
