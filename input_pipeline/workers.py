"""Worker processes that end when their parent is gone, however that ended."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent import futures
from typing import Any

from lvsm_jax.common.errors import UserError


class WorkerError(UserError):
    """A worker process was killed, or could not start."""


_SIGNALS = (signal.SIGINT, signal.SIGTERM)

_task: Callable[[Any], Any] | None = None  # of the pool that this worker process belongs to


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
