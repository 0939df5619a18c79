"""Batches that are loaded ahead of their use, by threads or by worker processes without JAX."""

import atexit
import collections
import os
import signal
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent import futures
from typing import Any

import grain
import jax
import numpy as np

from input_pipeline.workers import WorkerError, run_task, worker_pool
from lvsm_jax.batch import Batch, to_batch
from lvsm_jax.common.config import DataConfig

_MAX_THREADS = 16  # beyond this, threads of one Python process mostly wait for each other


def prefetched_batches(
    samples: Sequence[Any] | grain.MapDataset,
    load: Callable[[Any], dict[str, Any]],
    rows: int,
    config: DataConfig,
    start_step: int = 0,
) -> Iterator[Batch]:
    """Batches of `rows` consecutive samples, from batch `start_step` on; WorkerError on the way.

    `load` gives the nested dict of arrays of a sample (see `to_batch`), which is a few picklable
    bytes; worker processes import its module, which must not import JAX. Samples left over at the
    end are dropped. Closing the iterator (or dropping it) stops the workers.
    """
    steps = range(start_step, len(samples) // rows)
    drawn = ([samples[step * rows + row] for row in range(rows)] for step in steps)
    batches = _batches(drawn, load, config)
    # A program may end without closing: then it is done while Python is still whole.
    atexit.register(_close_if_alive, weakref.ref(batches))
    return batches


def _batches(
    samples: Iterable[list[Any]], load: Callable[[Any], dict[str, Any]], config: DataConfig
) -> Iterator[Batch]:
    ahead = config.prefetch * max(config.num_workers, 1)
    if config.num_workers:
        # When the whole process group is interrupted the parent can finish its step and save.
        pool = worker_pool(config.num_workers, on_interrupt=signal.SIG_IGN, task=load)
        task = run_task
    else:
        threads = min(os.cpu_count() or 1, _MAX_THREADS)
        pool, task = futures.ThreadPoolExecutor(threads), load
    stacking = futures.ThreadPoolExecutor(1)  # while the batch before is in use
    waiting: collections.deque[futures.Future[Batch]] = collections.deque()
    try:
        for batch in samples:
            parts = [pool.submit(task, sample) for sample in batch]
            waiting.append(stacking.submit(_stacked, parts))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except futures.process.BrokenProcessPool as error:
        raise WorkerError(
            "a worker process that loads data was killed (out of memory?) or could not start: "
            "lower data.num_workers or data.prefetch; scripts must guard what they run by "
            'if __name__ == "__main__"'
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)
        stacking.shutdown(cancel_futures=True)


def _close_if_alive(batches: weakref.ref) -> None:
    if (alive := batches()) is not None:
        alive.close()


def _stacked(parts: list[futures.Future[dict[str, Any]]]) -> Batch:
    samples = [part.result() for part in parts]
    return to_batch(jax.tree.map(lambda *leaves: np.stack(leaves), *samples))
