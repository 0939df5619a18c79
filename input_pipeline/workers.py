"""Worker processes that end when their parent is gone, and writing a dataset's shards in them.

The writing can be stopped at any moment: a job writes a shard and then a note of the result, which
both appear whole or not at all. The same command does all jobs without a note from their beginning.
"""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from typing import Any, TypeVar

import tqdm

from lvsm_jax.common.errors import UserError

Job = TypeVar("Job")  # hashable, with a `size` in units of the progress
Result = TypeVar("Result")

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_AGAIN = "the same command goes on from here"
_task: Callable[[Any], Any] | None = None  # of the pool that this worker process belongs to


class WorkerError(UserError):
    """A worker process was killed, or could not start."""


def worker_pool(
    workers: int, *, on_interrupt: signal.Handlers, task: Callable[[Any], Any] | None = None
) -> futures.ProcessPoolExecutor:
    """So many worker processes; `task` is what `run_task` calls in them, sent once to each.

    They are spawned, not forked, since the caller may have threads, JAX's for one; they import the
    program's main module and what they are told to call. SIGINT and SIGTERM end them at once with
    SIG_DFL for `on_interrupt`; SIG_IGN leaves it to the parent.
    """
    spawn = multiprocessing.get_context("spawn")
    pool = futures.ProcessPoolExecutor(workers, spawn, _start, (on_interrupt, task))
    # They inherit that signals are blocked, until `_start` has said what these do.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        for _ in range(workers):
            pool.submit(os.getpid)  # each spawns one, as none is idle yet
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return pool


def run_task(argument: Any) -> Any:
    """In a worker process, its pool's task of the argument."""
    return _task(argument)


def _start(on_interrupt: signal.Handlers, task: Callable[[Any], Any] | None) -> None:
    global _task
    _task = task
    for number in _SIGNALS:
        signal.signal(number, on_interrupt)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


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
    done = total - sum(job.size for job in left)
    looks = {"desc": label, "unit": unit, "unit_scale": unit == "B", "mininterval": 0.5}
    with tqdm.tqdm(total=total, initial=done, **looks) as progress:
        for job, result in _written(left, write, min(workers, len(left))):
            results[job] = result
            progress.update(job.size)
    return results


def _written(
    jobs: Sequence[Job], write: Callable[[Job], Result], workers: int
) -> Iterator[tuple[Job, Result]]:
    others = set(multiprocessing.active_children())
    pool = worker_pool(workers, on_interrupt=signal.SIG_DFL) if workers > 1 else None
    own = set(multiprocessing.active_children()) - others
    try:
        if pool is None:
            yield from ((job, write(job)) for job in jobs)
        else:
            pending = {pool.submit(write, job): job for job in jobs}
            for future in futures.as_completed(pending):
                yield pending[future], future.result()
    except BaseException as error:
        broken = isinstance(error, futures.process.BrokenProcessPool)
        # Ctrl-C goes to the workers too, whose end may be seen before it is here.
        by_interrupt = broken and any(worker.exitcode == -signal.SIGINT for worker in own)
        if pool is not None:
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in own:
                worker.terminate()
        if broken and not by_interrupt:
            raise WorkerError(f"a worker process was killed (out of memory?); {_AGAIN}") from error
        if by_interrupt or isinstance(error, KeyboardInterrupt):
            print(f"\ninterrupted; {_AGAIN}", file=sys.stderr)
        if by_interrupt:
            raise KeyboardInterrupt from error
        raise
    finally:
        if pool is not None:
            pool.shutdown()
