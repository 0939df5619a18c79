"""Several real processes: the numbers of one, and what happens when one of them stops or dies."""

import csv
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

import lvsm_jax
from lvsm_jax.common.tree import named_leaves
from lvsm_jax.parallel import processes
from lvsm_jax.parallel.processes import Launcher, ProcessesConfig, _local_devices, recognise

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
SETTINGS = {
    "run.num_steps": 16,
    "run.batch_size": 12,
    "run.grad_accumulation": 2,
    "run.log_every": 1,
    "run.image_every": 8,
    "run.eval_every": 16,
    "run.eval_scenes": 3,
    "run.checkpoint_every": 2,
    "run.keep_last": 20,
    "run.cpu_devices": 1,
    "model.num_layers": 1,
    "model.remat": "none",
    "model.width": 24,
    "model.head_dim": 8,
    "model.copy_head": False,
    "data.image_height": 16,
    "eval.batch_size": 6,
    "eval.lpips": False,
    "optimizer.ema_decay": 0.9,
    "optimizer.warmup_steps": 0,
    "processes.heartbeat_seconds": 10,
    "processes.end_seconds": 20,
}


def start(program, arguments, count=1, **changes):
    """Starts the processes of a run; those of several find each other at a free port."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        coordinator = f"localhost:{free.getsockname()[1]}"
    running = []
    for index in range(count):
        settings = SETTINGS | {key.replace("__", "."): value for key, value in changes.items()}
        if count > 1:
            settings["processes.coordinator"] = coordinator
            settings["processes.num_processes"] = count
            settings["processes.process_id"] = index
        flags = [f"--config.{name}={value}" for name, value in settings.items()]
        command = [sys.executable, program, "--config=configs/quickstart.py", *arguments, *flags]
        running.append(
            subprocess.Popen(
                command,
                cwd=REPOSITORY,
                env=os.environ | {"JAX_PLATFORMS": "cpu"},
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
        )
    return running


def train(rooms, workdir, count=1, **changes):
    return start("train.py", [f"--workdir={workdir}"], count, data__path=rooms, **changes)


def end(running):
    """The exit status and output of each."""
    outputs = [process.communicate(timeout=200)[0] for process in running]
    return [process.returncode for process in running], outputs


def wait_until(condition, running):
    give_up = time.monotonic() + 200
    while not condition():
        assert all(process.poll() is None for process in running), end(running)
        assert time.monotonic() < give_up
        time.sleep(0.02)


def steps_in(workdir):
    return {
        int(path.name) for path in (workdir / "checkpoints").glob("[0-9]*") if path.name.isdigit()
    }


def table(workdir):
    rows = csv.DictReader((workdir / "metrics.csv").open())
    return {
        int(row["step"]): [float(row[name] or 0) for name in ("loss", "psnr", "eval/psnr")]
        for row in rows
    }


@pytest.fixture(scope="module")
def alone(rooms, tmp_path_factory):
    """What one process leaves that nobody disturbs."""
    workdir = tmp_path_factory.mktemp("alone")
    statuses, outputs = end(train(rooms, workdir, run__cpu_devices=2))
    assert statuses == [0], outputs
    return workdir


def damage(checkpoint):
    largest = max(checkpoint.rglob("d/*"), key=os.path.getsize)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)


@pytest.mark.slow
def test_killed_damaged_stopped_and_resumed_by_others_is_as_one(rooms, alone, tmp_path):
    workdir = tmp_path / "several"
    # Two processes; one of them is killed in the middle of a save.
    running = train(rooms, workdir, 2, mesh__fsdp=2)
    wait_until(lambda: 4 in steps_in(workdir), running)
    wait_until(lambda: any((workdir / "checkpoints").glob("*tmp*")), running)
    running[1].kill()
    killed = time.monotonic()
    statuses, outputs = end(running)
    assert statuses[0] != 0, outputs[0]
    assert time.monotonic() - killed < 60  # 10 s of silence, and what a busy machine takes
    assert not (workdir / "export").exists()

    # The newest that is complete is damaged, in a part that not all processes read: three go on
    # from the one before. SIGTERM to one of them ends all at the same step.
    damaged = max(steps_in(workdir))
    before = max(steps_in(workdir) - {damaged})
    damage(workdir / "checkpoints" / str(damaged))
    running = train(rooms, workdir, 3, mesh__fsdp=3)
    wait_until(lambda: max(steps_in(workdir)) > damaged, running)
    running[2].send_signal(signal.SIGTERM)
    statuses, outputs = end(running)
    assert statuses == [0, 0, 0], outputs
    assert f"checkpoints/{damaged} " in outputs[0]
    assert (workdir / "checkpoints" / f"unreadable_{damaged}").is_dir()
    assert f"resuming from step {before}" in outputs[0]
    assert "the same command goes on from there" in outputs[0]
    stopped = max(steps_in(workdir))
    assert damaged < stopped < 16

    # One process goes on to the end.
    statuses, outputs = end(train(rooms, workdir, run__cpu_devices=6, mesh__fsdp=3))
    assert statuses == [0], outputs
    assert f"resuming from step {stopped}" in outputs[0]

    ours, expected = table(workdir), table(alone)
    assert list(ours) == list(expected) == list(range(1, 17))
    np.testing.assert_allclose(list(ours.values()), list(expected.values()), rtol=1e-5)
    ours, expected = (named_leaves(lvsm_jax.load(path / "export")) for path in (workdir, alone))
    for name, array in ours.items():
        np.testing.assert_allclose(array, expected[name], atol=1e-5, err_msg=name)
    pictures = [sorted((path / "images").iterdir()) for path in (workdir, alone)]
    assert len(pictures[1]) == 2
    for path, other in zip(*pictures, strict=True):
        assert path.name == other.name
        ours, expected = (np.asarray(Image.open(file)).astype(int) for file in (path, other))
        np.testing.assert_allclose(ours, expected, atol=1)


@pytest.mark.slow
def test_two_processes_evaluate_as_one(rooms, alone, tmp_path):
    arguments = [f"--checkpoint={alone / 'export'}", f"--output={tmp_path}"]
    changes = {"data__path": rooms, "eval__max_scenes": 3}
    statuses, outputs = end(start("eval.py", arguments, 2, **changes))
    assert statuses == [0, 0], outputs
    assert "PSNR" in outputs[0]
    assert "PSNR" not in outputs[1]
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["psnr"] == pytest.approx(table(alone)[16][2], rel=1e-5)
    assert summary["device"] == "2 × cpu"
    rows = list(csv.DictReader((tmp_path / "per_image.csv").open()))
    index = json.loads((rooms / "evaluation_index.json").read_text())
    assert list(dict.fromkeys(row["scene"] for row in rows)) == list(index)[:3]
    assert (tmp_path / "index.html").exists()


TWO = """
import pathlib, sys
import jax, numpy as np
from lvsm_jax.parallel import processes
from lvsm_jax.parallel.mesh import make_mesh

index, directory = int(sys.argv[1]), pathlib.Path(sys.argv[2])
jax.config.update("jax_num_cpu_devices", 2)
assert processes.start(processes.ProcessesConfig(heartbeat_seconds=10, end_seconds=20)) == 2
assert processes.describe() == "2 processes, 4 × cpu, 2 of them here"
assert processes.is_main() == (index == 0)
assert processes.gather_texts(f"I am {index} ≥ 0") == ["I am 0 ≥ 0", "I am 1 ≥ 0"]
assert processes.of_main(np.arange(3) + index).tolist() == [0, 1, 2]
mesh = make_mesh()
for flags in (0, 0), (0, 1), (1, 0):
    assert bool(processes.any_process(mesh, bool(flags[index]))) == any(flags)


def refused(*arguments):
    try:
        arguments[0](*arguments[1:])
    except ValueError as error:
        return str(error)


processes.check_same_config({"run": {"seed": 1}, "processes": {"process_id": index}})
text = refused(processes.check_same_config, {"run": {"seed": index}})
assert "config is another than that of process 0" in text, text
assert index or text.startswith("process 1: the config is "), text
processes.check_shared(directory / "shared")
processes._SHARED_DISK_SECONDS = 1
text = refused(processes.check_shared, directory / str(index))
assert f"{directory}/1 is not the directory that process 0 has" in text, text
assert list((directory / "shared").iterdir()) == []

# An error on one process alone ends both, long before the 20 s of an orderly end.
with processes.ending_at_once():
    if index == 1:
        raise RuntimeError("mine alone")
    while True:
        processes.gather_texts("")
"""


def slurm_step(index):
    """What srun leaves in the environment of one of two tasks on this machine."""
    return {
        "SLURM_JOB_ID": str(os.getpid()),  # JAX makes a port number of it
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_STEP_NUM_NODES": "1",
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_NTASKS": "2",
        "SLURM_PROCID": str(index),
        "SLURM_LOCALID": str(index),
    }


def test_two_processes_agree_and_fail_together(tmp_path):
    running = [
        subprocess.Popen(
            [sys.executable, "-c", TWO, str(index), str(tmp_path)],
            cwd=REPOSITORY,
            env=os.environ | {"JAX_PLATFORMS": "cpu"} | slurm_step(index),
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for index in range(2)
    ]
    statuses, outputs = end(running)
    assert statuses[1] == 1, outputs[1]
    assert "process 1 fails" in outputs[1]
    assert "mine alone" in outputs[1]
    assert "AssertionError" not in outputs[0] + outputs[1], outputs
    assert statuses[0] not in (0, None), outputs[0]


SLURM = {
    "SLURM_JOB_ID": "1",
    "SLURM_STEP_NODELIST": "n[1-2]",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
}
OPEN_MPI = {
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "0",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}


@pytest.mark.parametrize(
    ("environment", "platforms", "launcher", "devices"),
    [
        ({}, None, None, []),
        ({}, "cpu", None, []),
        # In a batch script, outside srun, there are tasks to come but no step.
        ({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, None, None, []),
        (SLURM | {"SLURM_STEP_NUM_TASKS": "1"}, None, None, []),
        (SLURM | {"SLURM_STEP_NUM_TASKS": "4"}, "cuda", Launcher("SLURM", "slurm", 4, 3, 1), [1]),
        # One task a node takes all GPUs; a task that is shown one GPU takes that one.
        (SLURM | {"SLURM_STEP_NUM_TASKS": "2"}, None, Launcher("SLURM", "slurm", 2, 3, None), []),
        (
            SLURM | {"SLURM_STEP_NUM_TASKS": "4", "CUDA_VISIBLE_DEVICES": "0"},
            None,
            Launcher("SLURM", "slurm", 4, 3, 1),
            [],
        ),
        (OPEN_MPI, None, Launcher("Open MPI", "ompi", 4, 2, 0), [0]),
        (
            {"JAX_LOCAL_DEVICE_IDS": "2"} | OPEN_MPI,
            None,
            Launcher("Open MPI", "ompi", 4, 2, 0),
            None,
        ),
        ({}, "tpu,cpu", Launcher("Cloud TPU", None, None, None, None), []),
    ],
)
def test_launchers_are_recognised(environment, platforms, launcher, devices):
    assert recognise(environment, platforms) == launcher
    assert _local_devices(launcher, environment) == devices


@pytest.mark.parametrize(
    ("environment", "config", "expected"),
    [
        (SLURM | {"SLURM_STEP_NUM_TASKS": "4"}, {}, (None, 4, 3, "slurm")),
        (SLURM | {"SLURM_STEP_NUM_TASKS": "4"}, {"num_processes": 1}, None),
        (OPEN_MPI | {"OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:1"}, {}, (None, 4, 2, "ompi")),
        (OPEN_MPI, {"coordinator": "a:1"}, ("a:1", 4, 2, "ompi")),
        (OPEN_MPI, {}, "Open MPI 5 names no host"),
        ({}, {}, None),
        ({}, {"coordinator": "a:1"}, "no launcher is recognised: set all of"),
        ({}, {"num_processes": 2, "process_id": 1}, "no launcher is recognised: set all of"),
        (
            {},
            {"coordinator": "a:1", "num_processes": 2, "process_id": 1},
            ("a:1", 2, 1, None),
        ),
    ],
)
def test_what_jax_is_told(monkeypatch, environment, config, expected):
    told = []

    def initialize(coordinator, count, index, *, cluster_detection_method, **timeouts):
        assert timeouts["heartbeat_timeout_seconds"] == 100
        told.append((coordinator, count, index, cluster_detection_method))

    monkeypatch.setattr("os.environ", environment)
    monkeypatch.setattr("jax.distributed.initialize", initialize)
    if isinstance(expected, str):
        with pytest.raises(ValueError, match=expected):
            processes.start(ProcessesConfig(**config))
    else:
        count = processes.start(ProcessesConfig(**config))
        assert told == ([] if expected is None else [expected])
        assert count == (1 if expected is None else expected[1])


def test_wrong_numbers_of_processes():
    with pytest.raises(ValueError, match=r"process_id is 2, expected less than .* 2"):
        ProcessesConfig("a:1", 2, 2)
    with pytest.raises(ValueError, match=r"processes\.heartbeat_seconds is 0, expected at least 1"):
        ProcessesConfig(heartbeat_seconds=0)


@pytest.mark.slow
def test_processes_make_their_own_worlds():
    def digests(count, devices):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            coordinator = f"localhost:{free.getsockname()[1]}"
        program = [sys.executable, "tests/helpers/worlds_here.py", coordinator, str(count)]
        running = [
            subprocess.Popen(
                [*program, str(index), str(devices)],
                cwd=REPOSITORY,
                env=os.environ | {"JAX_PLATFORMS": "cpu"},
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            for index in range(count)
        ]
        statuses, outputs = end(running)
        assert statuses == [0] * count, outputs
        return [[line for line in output.splitlines() if line[:1].isdigit()] for output in outputs]

    (alone,) = digests(1, 1)
    first, second = digests(2, 2)
    assert len(first) == len(second) == len(alone) / 2
    assert sorted(first + second) == sorted(alone)


@pytest.mark.slow
def test_a_process_that_never_comes_ends_the_others_in_a_line(rooms, tmp_path):
    """Of two processes the second is not started; the first listens where it was asked to."""
    settings = {"processes__start_seconds": 8, "processes__num_processes": 2}
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    where = {"processes__coordinator": f"127.0.0.1:{port}", "processes__process_id": 0}
    running = train(rooms, tmp_path / "run", **settings, **where)
    [status], [output] = end(running)
    assert status == 1
    (line,) = [text for text in output.splitlines() if text.startswith("error: ")]
    assert f"not all came to 127.0.0.1:{port} within 8 s" in line
    assert "Check failure" not in output and not (tmp_path / "run").exists()


def test_where_the_coordinator_listens():
    assert processes._bind_address("node7:9000", {}) == "node7:9000"
    assert processes._bind_address("", {}) is None
    assert processes._bind_address("a:1", {"JAX_COORDINATOR_BIND_ADDRESS": "[::]:1"}) is None
