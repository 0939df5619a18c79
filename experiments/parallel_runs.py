"""Trains several runs at a time, each by train.py in a process of its own."""

import dataclasses
import fcntl
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence

from tqdm import tqdm

from experiments.runs import last_step, read_curve
from lvsm_jax.parallel.mesh import cpu_cores


@dataclasses.dataclass(frozen=True)
class Run:
    """A run of an arm."""

    arm: str
    seed: int
    steps: int  # that it is to have in the end
    workdir: pathlib.Path
    command: Sequence[str] = dataclasses.field(compare=False)  # trains it, or goes on with it

    @property
    def name(self) -> str:
        """As people read it, such as `plucker/seed_0`."""
        return f"{self.workdir.parent.name}/{self.workdir.name}"

    @property
    def export(self) -> pathlib.Path:
        """Its weights, once it has been at its end."""
        return self.workdir / "export"

    @property
    def begun(self) -> bool:
        """Whether there is something of it."""
        return (self.workdir / "config.json").exists()

    @property
    def done(self) -> bool:
        """Whether it is at its end."""
        return self.export.exists() and last_step(self.workdir) >= self.steps


def threads_each(at_once: int) -> int:
    """Threads that compute for one of `at_once` runs: its share of the cores."""
    return max(1, cpu_cores() // at_once)


def train_all(runs: Sequence[Run], compiled: pathlib.Path, at_once: int) -> list[str]:
    """Trains the runs that are not done, in their order, `at_once` at a time.

    What a run prints is in a text file beside its directory. Runs of different seeds share the
    directory of compiled programs. Stopped, it stops them all.

    Returns:
        Names of those that did not get to their end.
    """
    waiting = [run for run in runs if not run.done]
    running: dict[Run, subprocess.Popen] = {}
    failed = []
    environment = {
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": str(compiled),
        "NPROC": str(threads_each(at_once)),  # XLA's threads
    }
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        total, done = sum(run.steps for run in runs), _steps(runs)
        with tqdm(
            total=total, initial=done, desc="all runs", unit="step", smoothing=0, mininterval=5
        ) as bar:
            while waiting or running:
                while waiting and len(running) < at_once:
                    running[waiting[0]] = _start(waiting[0], environment)
                    waiting.pop(0)
                time.sleep(1)
                for run in [run for run, process in running.items() if process.poll() is not None]:
                    del running[run]
                    if not run.done:
                        failed.append(run.name)
                        bar.write(f"{run.name} failed, see {_log(run)}", file=sys.stderr)
                _show(bar, runs, running)
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on from there")
    finally:
        _stop(running.values())
        signal.signal(signal.SIGTERM, before)
    return failed


def _log(run: Run) -> pathlib.Path:
    return run.workdir.with_suffix(".txt")


def _start(run: Run, environment: dict[str, str]) -> subprocess.Popen:
    run.workdir.parent.mkdir(parents=True, exist_ok=True)
    with _log(run).open("a") as log:
        try:  # The lock is held until the process that inherits the file has ended.
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.exit(f"error: {run.name} is being trained by another process")
        # In a session of its own Ctrl-C does not reach it; `_stop` tells it, once.
        return subprocess.Popen(
            run.command, stdout=log, stderr=log, env=environment, start_new_session=True
        )


def _stop(processes: Iterable[subprocess.Popen]) -> None:
    """Asks all to save their state and end, and waits; a second Ctrl-C ends them at once."""
    for process in processes:
        process.terminate()
    try:
        for process in processes:
            process.wait()
    except KeyboardInterrupt:
        for process in processes:
            process.kill()
            process.wait()


def _show(bar: tqdm, runs: Sequence[Run], running: Iterable[Run]) -> None:
    """Steps done of all runs, and where those are that are running now."""
    places = []
    for run in running:
        curve = read_curve(run.workdir)
        score = f" {curve[-1][1]:.2f} dB" if curve else ""
        places.append(f"{run.name} {last_step(run.workdir)}/{run.steps}{score}")
    bar.set_postfix_str(", ".join(places), refresh=False)
    bar.update(_steps(runs) - bar.n)


def _steps(runs: Sequence[Run]) -> int:
    return sum(min(last_step(run.workdir), run.steps) for run in runs)
