"""Worker processes end with the program, however that ends, and not before."""

import multiprocessing
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from input_pipeline.loading import train_batches
from input_pipeline.workers import WorkerError
from tests.helpers import tiny_dataset

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny")
    tiny_dataset.write_six_clips(path)
    return path


PROGRAM = """
import sys
if __name__ == "__main__":
    from input_pipeline.loading import train_batches
    from lvsm_jax.common.config import DataConfig
    config = DataConfig(sys.argv[1], image_height=16, num_views=5, num_targets=3, num_workers=2)
    batches = train_batches(config, batch_size=2, seed=0)
    for _ in range(3):
        next(batches)
    print("ready", flush=True)
    if sys.argv[2] == "wait":
        sys.stdin.read()
"""


def start_program(tmp_path, dataset, then: str) -> subprocess.Popen:
    """A program without absl flags in a process group of its own."""
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen(
        [sys.executable, str(script), str(dataset), then],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def processes_of_session(session: int) -> list[int]:
    found = subprocess.run(
        ["ps", "-o", "pid=", "-s", str(session)], capture_output=True, text=True, check=False
    )
    return [int(pid) for pid in found.stdout.split()]


def gone_after(session: int, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while processes_of_session(session):
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


def test_a_program_that_drops_its_batches_ends_and_leaves_no_workers(tmp_path, tiny):
    program = start_program(tmp_path, tiny, "end")
    assert program.stdout.readline() == "ready\n"
    assert program.wait(timeout=30) == 0
    assert program.stderr.read() == ""
    assert gone_after(program.pid, 10)


def test_a_killed_worker_is_told(tiny):
    before = set(multiprocessing.active_children())
    batches = train_batches(tiny_dataset.config_of(tiny, num_workers=1), batch_size=2, seed=0)
    next(batches)
    for worker in set(multiprocessing.active_children()) - before:
        worker.kill()
    with pytest.raises(WorkerError, match=r"was killed .* lower data\.num_workers"):
        for _ in batches:
            pass


def test_workers_outlive_a_signal_to_the_group_but_not_a_killed_parent(tmp_path, tiny):
    program = start_program(tmp_path, tiny, "wait")
    assert program.stdout.readline() == "ready\n"
    workers = [pid for pid in processes_of_session(program.pid) if pid != program.pid]
    assert len(workers) >= 2
    for worker in workers:
        libraries = pathlib.Path(f"/proc/{worker}/maps").read_text()
        assert "jaxlib" not in libraries and "tensorflow" not in libraries
    for worker in workers:
        os.kill(worker, signal.SIGINT)
    time.sleep(0.3)
    assert len(processes_of_session(program.pid)) == len(workers) + 1
    program.kill()
    program.wait()
    assert gone_after(program.pid, 10)
