"""Worker processes of this package."""

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
    """Worker processes that end when their parent is gone, however that ended.

    They are spawned, not forked, since the caller may have threads, JAX's for one; they import the
    program's main module and what they are told to call.

    Args:
        workers: number of processes.
        on_interrupt: what SIGINT and SIGTERM do to them: SIG_IGN leaves it to the parent, SIG_DFL
            ends them at once.
        task: what `run_task` calls in them; large arguments of it are sent once.
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
