"""What a training loop keeps beside its state: the time, and whether it was asked to stop."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from absl import logging


class Clock:
    """Time a step takes, and the share of it spent waiting for data."""

    def __init__(self):
        self._start = self._lap_start = time.monotonic()
        self._waited, self._stopped, self._steps, self._replaced = 0.0, 0.0, 0, 0

    @property
    def elapsed(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self._start

    @contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """Counts the time inside as waiting."""
        start = time.monotonic()
        yield
        self._waited += time.monotonic() - start

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Leaves the time inside out: it is no part of a step."""
        start = time.monotonic()
        yield
        self._stopped += time.monotonic() - start

    def count_step(self, replaced: int) -> None:
        """Counts a step, and the samples that were replaced in its batch."""
        self._steps += 1
        self._replaced += replaced

    def lap(self) -> dict[str, float]:
        """The means since the last lap."""
        now = time.monotonic()
        elapsed = now - self._lap_start - self._stopped
        timing = {
            "step_seconds": elapsed / self._steps,
            "data_wait_share": self._waited / elapsed,
            "replaced_samples": self._replaced,
        }
        self._lap_start, self._waited, self._stopped, self._steps = now, 0.0, 0.0, 0
        return timing


class Programs:
    """Counts the programs of a training step: each shape of a batch's inputs compiles one."""

    def __init__(self):
        self._shapes: set[tuple[int, ...]] = set()

    def __len__(self) -> int:
        return len(self._shapes)

    @contextmanager
    def called(self, shape: tuple[int, ...], clock: Clock) -> Iterator[None]:
        """Tells when the call inside is a shape's first, and leaves its time out of the steps'."""
        if shape in self._shapes:
            yield
            return
        self._shapes.add(shape)
        start = time.monotonic()
        with clock.stopped():
            yield
        _, views, height, width, _ = shape
        logging.info(
            "program %d, for %d × %d×%d pixels of inputs, compiled in %.0f s",
            *(len(self), views, width, height, time.monotonic() - start),
        )


class StopSignals:
    """Whether SIGTERM or SIGINT asked the run to stop; it does so a step later."""

    requested = False

    def __call__(self, number: int, frame: Any) -> None:
        """The signal handler."""
        logging.info("%s: stopping after the next step", signal.Signals(number).name)
        self.requested = True
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a second Ctrl-C stops at once


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
