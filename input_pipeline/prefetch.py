"""From a grain dataset of samples to batches prepared ahead, in worker processes or threads."""

import atexit
import os
import signal
import weakref
from collections.abc import Iterator
from typing import Any

import grain
import numpy as np
from absl import flags

from input_pipeline.workers import end_with_parent

_MAX_THREADS = 16  # beyond this, threads of one Python process mostly wait for each other


def prefetched_batches(
    samples: grain.MapDataset,
    rows: int,
    *,
    num_workers: int,
    prefetch: int,
    start_step: int = 0,
) -> Iterator[dict[str, Any]]:
    """Batches of `rows` consecutive samples, from batch `start_step` on.

    Args:
        samples: gives nested dicts of arrays, the same for the same index in any process.
        rows: samples of a batch; left-over samples at the end are dropped.
        num_workers: processes that make batches in turns, or 0 for threads of this process.
        prefetch: batches kept ready, for each worker process.
        start_step: batches to skip, at no cost.

    Closing the iterator (or dropping it) stops the workers.
    """
    if num_workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # grain reads absl flags, in programs without them too
        options = grain.MultiprocessingOptions(
            num_workers,
            per_worker_buffer_size=(prefetch + 1) // 2,  # in the worker and here again
        )
        dataset = (
            samples.batch(rows, drop_remainder=True)[start_step:]
            .to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=1))
            .mp_prefetch(options, _start_worker)
            .map(_out_of_shared_memory)
        )
    else:
        # Threads share the samples of a batch, so that the first comes early and few are in
        # memory at a time.
        threads = min(os.cpu_count() or 1, _MAX_THREADS)
        options = grain.ReadOptions(threads, prefetch_buffer_size=max(prefetch * rows, threads))
        dataset = (
            samples[start_step * rows :].to_iter_dataset(options).batch(rows, drop_remainder=True)
        )
    # One more thread copies or stacks the next batch while the last is in use.
    batches = _closed_at_end(
        grain.experimental.ThreadPrefetchIterDataset(dataset, prefetch_buffer_size=1)
    )
    # A program may end without closing: then it is done while Python is still whole.
    atexit.register(_close_if_alive, weakref.ref(batches))
    return batches


def _out_of_shared_memory(arrays: dict[str, Any]) -> dict[str, Any]:
    """Copies of arrays that a worker shares, for those are lost, noisily, when the program ends."""
    return {
        name: _out_of_shared_memory(value) if isinstance(value, dict) else np.array(value)
        for name, value in arrays.items()
    }


def _closed_at_end(dataset: grain.IterDataset) -> Iterator[dict[str, Any]]:
    iterator = iter(dataset)
    try:
        yield from iterator
    finally:
        iterator.close()


def _close_if_alive(batches: weakref.ref) -> None:
    if (alive := batches()) is not None:
        alive.close()


def _start_worker(worker_index: int, worker_count: int) -> None:
    """Ties a worker process to its parent, which alone decides when it ends.

    When a whole process group is interrupted or terminated the parent can finish its step and
    save; when the parent is killed no worker is left behind.
    """
    del worker_index, worker_count
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    end_with_parent()
