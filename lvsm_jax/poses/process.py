"""Runs pycolmap in a process of its own, and follows it.

It prints to stderr from C++, may end its process, and cannot be stopped otherwise.
"""

import contextlib
import dataclasses
import importlib.metadata
import json
import os
import pathlib
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from lvsm_jax.common.errors import UserError

LOG = "colmap.log"  # in the folder where the worker works
MATCHES = "matches.npz"  # in the same, where it was to match

_AGAIN = 1.0  # seconds after which the last message is told again
_PYCOLMAP = 4  # the first with global mapping
_INSTALL = "pip install 'lvsm_jax[poses]'"


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far the work is."""

    stage: str  # what is done, in words, such as "features"
    done: int
    total: int  # photographs or pairs; 0 where it is not known
    seconds_left: float | None  # of this stage; None where it is not known


Told = Callable[[Progress], None]


class PosesRefused(UserError):
    """Poses that were not found, or are not believed; the message says what to do."""

    def __init__(self, message: str, left_out: dict[str, str] | None = None):
        super().__init__(message)
        self.left_out = left_out or {}  # photographs that did not join, with why


def check_installed() -> None:
    """Raises UserError, with what to type, unless pycolmap is there, and new enough."""
    try:
        version = importlib.metadata.version("pycolmap")
    except importlib.metadata.PackageNotFoundError:
        raise UserError(f"finding poses needs pycolmap: {_INSTALL}") from None
    if int(version.partition(".")[0]) < _PYCOLMAP:
        raise UserError(f"finding poses needs pycolmap {_PYCOLMAP}, this is {version}: {_INSTALL}")


def run_worker(
    job: dict[str, Any], work: pathlib.Path, kept: pathlib.Path, progress: Told | None
) -> dict[str, Any]:
    """Runs the worker on a job, in the folder `work`; what it found.

    PosesRefused and UserError as the worker raises them; UserError also where it breaks down: then
    what it printed is `kept`.
    """
    package = pathlib.Path(__file__).parents[2]
    paths = os.pathsep.join([os.fspath(package), *filter(None, [os.environ.get("PYTHONPATH")])])
    stage = "start"
    with open(work / LOG, "wb") as log:
        worker = subprocess.Popen(
            # -P: modules of the working directory must not stand in for others.
            [sys.executable, "-P", "-m", "lvsm_jax.poses.worker", os.fspath(work)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=os.environ | {"PYTHONPATH": paths},
            start_new_session=True,  # Ctrl-C is for this process, which ends that one
        )
        try:
            with worker.stdin as pipe:
                pipe.write(json.dumps(job).encode())
            for message in _messages(worker):
                if "found" in message:
                    return message["found"]
                if "error" in message:
                    raise UserError(message["error"])
                if "refused" in message:
                    raise PosesRefused(message["refused"], message["left_out"])
                stage = message["stage"]
                if progress:
                    progress(Progress(**message))
            worker.wait()  # it said nothing of what it found
        finally:
            worker.kill()
            worker.wait()
            worker.stdout.close()
    shutil.copyfile(work / LOG, kept)
    how = _how_it_ended(worker.returncode)
    raise UserError(f"COLMAP broke down at {stage} ({how}); what it printed is in {kept}")


def _messages(worker: subprocess.Popen) -> Iterator[dict[str, Any]]:
    """What the worker tells, with the seconds that a stage still takes.

    While it tells nothing, its last message comes again each second: who is told may want to stop.
    """
    stage, started, message = None, 0.0, {}
    lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def read() -> None:
        with contextlib.suppress(ValueError):  # it is closed when nobody listens any more
            for line in worker.stdout:
                lines.put(line)
        lines.put(b"")

    threading.Thread(target=read, name="poses", daemon=True).start()
    while True:
        try:
            line = lines.get(timeout=_AGAIN)
        except queue.Empty:
            if message:
                yield dict(message)
            continue
        if not line:
            return
        message = json.loads(line)
        if "stage" in message:
            if message["stage"] != stage:
                stage, started = message["stage"], time.monotonic()
            done, total = message["done"], message["total"]
            rate = (time.monotonic() - started) / done if done else None
            message["seconds_left"] = rate * (total - done) if rate and total else None
        yield message


def _how_it_ended(code: int) -> str:
    try:
        return signal.Signals(-code).name if code < 0 else f"status {code}"
    except ValueError:
        return f"status {code}"
