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
    return futures.ProcessPoolExecutor(workers, spawn, _start, (on_interrupt, task))


def run_task(argument: Any) -> Any:
    """In a worker process, its pool's task of the argument."""
    return _task(argument)


def _start(on_interrupt: signal.Handlers, task: Callable[[Any], Any] | None) -> None:
    global _task
    _task = task
    signal.signal(signal.SIGINT, on_interrupt)
    signal.signal(signal.SIGTERM, on_interrupt)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)
