"""The processes of a run, one a host: they meet, agree on values, and end together.

One process is the same code: it waits for nobody and agrees with itself.
"""

import dataclasses
import json
import os
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from lvsm_jax.common import files
from lvsm_jax.common.checks import check_at_least
from lvsm_jax.common.errors import UserError

_LONGEST_TEXT = 2000  # bytes that a process can tell the others at a time
_NOT_FOUND = "the processes did not find each other"
_MARGIN_SECONDS = 60  # after the start's limit, in which the error is told before JAX aborts
_SHARED_DISK_SECONDS = 30  # after which a file that one host made must be seen by the others


@dataclasses.dataclass(frozen=True)
class ProcessesConfig:
    """Coordinator address and timeouts of `jax.distributed`.

    Nothing needs to be set under SLURM (`srun`), Open MPI 4, on Cloud TPU and on GKE.

    Attributes:
        coordinator: HOST:PORT where all reach process 0, which listens on this address alone;
            empty: as the launcher says, and it listens on all.
        num_processes: how many there are; 0: as the launcher says; 1: this one in any case.
        process_id: which of them this is, from 0; -1: as the launcher says.
        start_seconds: how long to wait for all processes to come.
        heartbeat_seconds: a process silent for so long counts as dead, and all end with an error.
        end_seconds: how long a process that is done waits for the others to be done.
    """

    coordinator: str = ""
    num_processes: int = 0
    process_id: int = -1
    start_seconds: int = 300
    heartbeat_seconds: int = 100
    end_seconds: int = 300

    def __post_init__(self):
        check_at_least("processes", self, start_seconds=1, heartbeat_seconds=1, end_seconds=1)
        if self.num_processes > 0 and self.process_id >= self.num_processes:
            raise UserError(
                f"processes.process_id is {self.process_id}, expected less than "
                f"processes.num_processes {self.num_processes}"
            )


class OtherProcessError(UserError):
    """Something went wrong on another process."""


@dataclasses.dataclass(frozen=True)
class Launcher:
    """What started this process among others; JAX finds out what is None.

    Of `count` processes this is number `index`, and `local_index` of those on its host; None where
    it is the only one there. `method` is JAX's name of the launcher.
    """

    name: str
    method: str | None
    count: int | None
    index: int | None
    local_index: int | None


def recognise(environment: Mapping[str, str], platforms: str | None) -> Launcher | None:
    """The launcher of several processes that the environment tells of, or None.

    `platforms` is `jax.config.jax_platforms`, in which JAX writes `tpu` on a TPU's host.
    """

    def number(variable: str) -> int:
        return int(environment.get(variable, 1))

    # Of a step of srun, for inside sbatch and salloc the number of tasks is that of the future.
    count = number("SLURM_STEP_NUM_TASKS")
    if count > 1 and "SLURM_STEP_NODELIST" in environment:
        alone = count == number("SLURM_STEP_NUM_NODES")
        local = None if alone else int(environment["SLURM_LOCALID"])
        return Launcher("SLURM", "slurm", count, int(environment["SLURM_PROCID"]), local)
    count = number("OMPI_COMM_WORLD_SIZE")
    if count > 1:
        alone = number("OMPI_COMM_WORLD_LOCAL_SIZE") == 1
        local = None if alone else int(environment["OMPI_COMM_WORLD_LOCAL_RANK"])
        return Launcher("Open MPI", "ompi", count, int(environment["OMPI_COMM_WORLD_RANK"]), local)
    if "tpu" in (platforms or "").split(","):
        return Launcher("Cloud TPU", None, None, None, None)
    return None


def start(config: ProcessesConfig) -> int:
    """Joins the other processes, before JAX is first used; alone it does nothing.

    Returns how many there are, as far as it is known by then: on Cloud TPU it says 1. UserError if
    it is not known who the others are, or they do not all come in time.
    """
    launcher = who(config)
    if launcher is None:
        return 1
    # The loop asks the processes itself whether to stop, and handles SIGTERM.
    jax.config.update("jax_enable_preemption_service", False)
    where = config.coordinator or f"the host that {launcher.name} names"
    logging.info("meeting the other processes at %s, for %d s", where, config.start_seconds)
    try:
        with _giving_up(f"not all came to {where} within {config.start_seconds} s", config):
            jax.distributed.initialize(
                config.coordinator or None,
                launcher.count,
                launcher.index,
                local_device_ids=_local_devices(launcher, os.environ),
                cluster_detection_method=launcher.method,
                initialization_timeout=config.start_seconds + _MARGIN_SECONDS,
                heartbeat_timeout_seconds=config.heartbeat_seconds,
                shutdown_timeout_seconds=config.end_seconds,
                coordinator_bind_address=_bind_address(config.coordinator, os.environ),
            )
    except ValueError:
        if launcher.name == "Cloud TPU" and not config.coordinator:
            return 1  # the one host of a machine whose metadata names no others
        raise
    except RuntimeError as error:
        raise UserError(f"{_NOT_FOUND}: {error}") from error
    return launcher.count or 1


def _bind_address(coordinator: str, environment: Mapping[str, str]) -> str | None:
    """Where process 0 listens; None lets JAX choose, which takes every address of the host."""
    return None if "JAX_COORDINATOR_BIND_ADDRESS" in environment else coordinator or None


@contextmanager
def _giving_up(reason: str, config: ProcessesConfig) -> Iterator[None]:
    """Ends this process in a line, should the block outlast `processes.start_seconds`.

    By itself JAX aborts then, with its stack. It is in C++ until that, where no exception gets.
    """

    def give_up() -> None:
        logging.flush()
        sys.stdout.flush()
        print(f"error: {_NOT_FOUND}: {reason} (processes.start_seconds)", file=sys.stderr)
        sys.stderr.flush()
        os._exit(1)

    timer = threading.Timer(config.start_seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def who(config: ProcessesConfig) -> Launcher | None:
    """Which of several processes this is; None if alone, or UserError if too little is said."""
    count, index = config.num_processes, config.process_id
    if count == 1:
        return None
    launcher = recognise(os.environ, jax.config.jax_platforms)
    if launcher is None:
        if not (config.coordinator or count):
            return None
        if not (config.coordinator and count and index >= 0):
            raise UserError(
                "no launcher is recognised: set all of processes.coordinator, "
                "processes.num_processes and processes.process_id"
            )
        return Launcher("the config", None, count, index, None)
    nameless = launcher.method == "ompi" and "OMPI_MCA_orte_hnp_uri" not in os.environ
    if nameless and not config.coordinator:
        raise UserError("Open MPI 5 names no host: set processes.coordinator to HOST:PORT")
    index = index if index >= 0 else launcher.index
    return dataclasses.replace(launcher, count=count or launcher.count, index=index)


def _local_devices(launcher: Launcher | None, environment: Mapping[str, str]) -> list[int] | None:
    """The GPUs of this process by their number on the host; `[]` for all that it sees.

    JAX alone would take one for each process of SLURM and Open MPI, be it alone on its host or
    shown that one only.
    """
    if "JAX_LOCAL_DEVICE_IDS" in environment:
        return None  # JAX reads it
    sees_one = "," not in environment.get("CUDA_VISIBLE_DEVICES", ",")
    if launcher is None or launcher.local_index is None or sees_one:
        return []
    return [launcher.local_index]


def is_main() -> bool:
    """Whether this is the process that writes logs, pictures and reports."""
    return jax.process_index() == 0


def describe() -> str:
    """Processes and devices in a line, for the log."""
    text = f"{jax.device_count()} × {jax.devices()[0].device_kind}"
    if jax.process_count() > 1:
        text = f"{jax.process_count()} processes, {text}, {jax.local_device_count()} of them here"
    return text


def gather(tree: Any) -> Any:
    """Arrays that are spread over devices, as NumPy arrays on every process."""
    return multihost_utils.process_allgather(tree, tiled=True)


def of_main(tree: Any) -> Any:
    """The NumPy arrays that the main process has, on every process."""
    return multihost_utils.broadcast_one_to_all(tree)


def gather_texts(text: str) -> list[str]:
    """Gathers a text of each process, in their order; all must call it. Long texts are cut."""
    if jax.process_count() == 1:
        return [text]
    data = text.encode()[:_LONGEST_TEXT].ljust(_LONGEST_TEXT, b"\0")
    rows = gather(np.frombuffer(data, np.uint8)[None])
    return [bytes(row).rstrip(b"\0").decode(errors="ignore") for row in rows]


def any_process(mesh: Mesh, flag: bool) -> Any:
    """Whether any process says so, computed in the background: a loop reads it a step later."""
    if jax.process_count() == 1:
        return flag
    flags = np.full(len(mesh.local_devices), flag, np.int32)
    sharding = NamedSharding(mesh, P(mesh.axis_names))
    return _largest(jax.make_array_from_process_local_data(sharding, flags))


_largest = jax.jit(jnp.max)


@contextmanager
def error_of_any() -> Iterator[None]:
    """Raises on all processes what the block raises on some, as OtherProcessError on the others."""
    try:
        yield
    except Exception as error:
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        gather_texts(f"{kind}{error}")
        raise
    for index, text in enumerate(gather_texts("")):
        if text:
            raise OtherProcessError(f"process {index}: {text}")


@contextmanager
def ending_at_once() -> Iterator[None]:
    """Among several processes, an error in the block ends this one without a farewell.

    One that leaves in order waits for the others, and these for it in the middle of a step; one
    that is gone is missed, and all end.
    """
    try:
        yield
    except BaseException as error:
        if jax.process_count() == 1:
            raise
        told = isinstance(error, UserError | OSError)
        reason = f": {error}" if told else ", and ends at once"
        logging.error("process %d fails%s", jax.process_index(), reason, exc_info=not told)
        logging.flush()
        sys.stdout.flush()
        os._exit(1)


def check_same_config(config: Mapping[str, Any]) -> None:
    """Raises UserError unless all processes have the same config; who they are may differ."""
    mine = {name: values for name, values in config.items() if name != "processes"}
    text = json.dumps(mine, sort_keys=True, default=str)
    digest = uuid.uuid5(uuid.NAMESPACE_OID, text).hex
    with error_of_any():
        if digest != gather_texts(digest)[0]:
            raise UserError("the config is another than that of process 0")


def check_writable(flag: str, directory: epath.PathLike) -> None:
    """As that of `common.files`, of the process that writes; the others have nothing to check."""
    if is_main():
        files.check_writable(flag, directory)


def check_shared(directory: epath.PathLike) -> None:
    """Makes a directory, and raises UserError unless all processes see the same one."""
    directory = epath.Path(directory)
    if is_main():
        directory.mkdir(parents=True, exist_ok=True)
    if jax.process_count() == 1:
        return
    file = directory / f".seen_by_all.{gather_texts(uuid.uuid4().hex)[0]}"
    with error_of_any():
        if is_main():
            file.touch()
    try:
        with error_of_any():
            # Disks that are shared over a network show new files with a delay.
            give_up = time.monotonic() + _SHARED_DISK_SECONDS
            while not file.exists() and time.monotonic() <= give_up:
                time.sleep(0.2)
            if not file.exists():
                raise UserError(
                    f"{directory} is not the directory that process 0 has under this name: all "
                    "processes need the same one, on a shared disk or in a bucket"
                )
    finally:
        if is_main():
            file.unlink(missing_ok=True)
