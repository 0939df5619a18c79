"""Writes the shards of a dataset, several at a time, so that it can be stopped at any moment.

A job writes a shard and then a note of the result; both appear whole or not at all. A job with a
note is finished. The same command does all others again from their beginning.
"""

import multiprocessing
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from typing import TypeVar

import tqdm
from etils import epath

from input_pipeline.workers import WorkerError, worker_pool

Job = TypeVar("Job")  # hashable, with a `size` in units of the progress
Result = TypeVar("Result")

_AGAIN = "the same command goes on from here"


def run_jobs(
    results: Mapping[Job, Result | None],
    write: Callable[[Job], Result],
    *,
    workers: int,
    label: str,
    unit: str,
) -> dict[Job, Result]:
    """The results of all jobs, after writing those that are None yet; shows progress on stderr.

    `write` does a job in one of `workers` processes (with 1 in this one) and must be picklable.
    Ctrl-C or an error in one job ends all of them at once; WorkerError where a worker was killed.
    """
    results = dict(results)
    left = [job for job, result in results.items() if result is None]
    total = sum(job.size for job in results)
    done, scale = total - sum(job.size for job in left), unit == "B"
    with tqdm.tqdm(
        total=total, initial=done, desc=label, unit=unit, unit_scale=scale, mininterval=0.5
    ) as progress:
        for job, result in _written(left, write, min(workers, len(left))):
            results[job] = result
            progress.update(job.size)
    return results


def _written(
    jobs: Sequence[Job], write: Callable[[Job], Result], workers: int
) -> Iterator[tuple[Job, Result]]:
    others = set(multiprocessing.active_children())
    pool = worker_pool(workers, on_interrupt=signal.SIG_DFL) if workers > 1 else None
    try:
        if pool is None:
            yield from ((job, write(job)) for job in jobs)
        else:
            pending = {pool.submit(write, job): job for job in jobs}
            for future in futures.as_completed(pending):
                yield pending[future], future.result()
    except BaseException as error:
        if pool is not None:
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in set(multiprocessing.active_children()) - others:
                worker.terminate()
        if isinstance(error, futures.process.BrokenProcessPool):
            raise WorkerError(f"a worker process was killed (out of memory?); {_AGAIN}") from error
        if isinstance(error, KeyboardInterrupt):
            print(f"\ninterrupted; {_AGAIN}", file=sys.stderr)
        raise
    finally:
        if pool is not None:
            pool.shutdown()


def remove_unfinished(folder: epath.Path) -> None:
    """Removes the files that a killed run was writing."""
    for path in folder.glob(".*.tmp"):
        path.unlink()
