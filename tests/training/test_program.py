"""`train.py` as a program: what its workers load, what it needs, and how it tells errors."""

import os
import pathlib
import re
import subprocess
import sys
import time

import pytest
from PIL import Image

import lvsm_jax

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]


def arguments(rooms, workdir, **changes):
    settings = {
        "run.num_steps": 2,
        "run.batch_size": 2,
        "run.log_every": 1,
        "run.image_every": 2,
        "run.eval_every": 0,
        "run.cpu_devices": 1,
        "model.num_layers": 1,
        "model.width": 16,
        "model.head_dim": 8,
        "model.copy_head": False,
        "data.path": rooms,
        "data.image_height": 16,
        **changes,
    }
    fields = [f"--config.{name}={value}" for name, value in settings.items()]
    return ["--config", "configs/quickstart.py", "--workdir", str(workdir), *fields]


def run(command):
    return subprocess.run(
        command,
        cwd=REPOSITORY,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def children(pid):
    return [int(c) for c in pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.skipif(not pathlib.Path("/proc/self/maps").exists(), reason="needs Linux")
@pytest.mark.parametrize(
    "program",
    [pytest.param(x, marks=pytest.mark.slow) for x in (["train.py"], ["-m", "lvsm_jax", "train"])],
    ids=" ".join,
)
def test_workers_load_neither_jax_nor_tensorflow(rooms, tmp_path, program):
    changes = {"run.num_steps": 100_000, "data.num_workers": 2, "run.image_every": 0}
    running = subprocess.Popen(
        [sys.executable, *program, *arguments(rooms, tmp_path, **changes)],
        cwd=REPOSITORY,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        while not (tmp_path / "metrics.csv").exists():
            assert running.poll() is None, running.communicate()[0]
            time.sleep(0.1)
        workers = {
            pid: (
                pathlib.Path(f"/proc/{pid}/maps").read_text(),
                pathlib.Path(f"/proc/{pid}/status"),
            )
            for pid in children(running.pid)
            if "spawn_main" in pathlib.Path(f"/proc/{pid}/cmdline").read_text()
        }
        assert len(workers) == 2
        for maps, status in workers.values():
            assert "array_record" in maps  # it has begun to load samples
            assert not re.search("jaxlib|libtensorflow|/tensorflow/", maps)
            megabytes = int(re.search(r"VmRSS:\s*(\d+)", status.read_text()).group(1)) / 1024
            assert megabytes < 200
    finally:
        running.terminate()
        running.communicate(timeout=100)


WITHOUT_TENSORFLOW = """
import sys
from importlib.machinery import PathFinder

find = PathFinder.find_spec
absent = ("tensorflow", "tensorboard")
PathFinder.find_spec = lambda name, *r: None if name.split(".")[0] in absent else find(name, *r)
from lvsm_jax.programs.train import main
main(sys.argv[1:])
"""


@pytest.mark.slow
def test_it_trains_without_tensorflow(rooms, tmp_path):
    done = run([sys.executable, "-c", WITHOUT_TENSORFLOW, *arguments(rooms, tmp_path)])
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].startswith("step 1/2 · PSNR ")
    assert re.fullmatch(r"exported the weights to .*export", done.stdout.splitlines()[-1])
    assert done.stderr == ""
    assert {path.name for path in tmp_path.iterdir()} == {
        *("config.json", "log.txt", "metrics.csv", "images", "checkpoints", "export")
    }
    log = (tmp_path / "log.txt").read_text()
    for detail in ("lvsm_jax[tensorboard]", "decoder/mlp/up/kernel", "model.width = 16", "flax "):
        assert detail in log
    assert "orbax" not in log
    assert re.search(r"program 1, for 2 × 16×16 pixels of inputs, compiled in \d+\.\d s", log)
    assert len((tmp_path / "metrics.csv").read_text().splitlines()) == 3
    assert Image.open(tmp_path / "images" / "train_0000002.png").size == (64, 16)
    assert lvsm_jax.load(tmp_path / "export").config.width == 16


@pytest.mark.parametrize(
    ("changes", "flags", "message"),
    [
        ({}, ["--workdirr=x"], "there is no argument --workdirr=x; did you mean --workdir?"),
        ({}, ["x"], "unexpected argument x"),
        ({"run.num_stpes": 3}, [], "num_steps"),
        ({"run.log_every": 0}, [], "run.log_every is 0, expected at least 1"),
        ({"data.min_span": 100, "data.max_span": 120}, [], "min_span"),
        ({}, ["--workdir={file}/run"], "--workdir={file}/run cannot be written: Not a directory"),
        ({}, ["--workdir={file}"], "--workdir={file} cannot be written: Not a directory"),
    ],
)
def test_errors_are_one_line(rooms, tmp_path, changes, flags, message):
    file = tmp_path / "file"
    file.touch()
    flags = [flag.format(file=file) for flag in flags]
    done = run([sys.executable, "train.py", *arguments(rooms, tmp_path / "run", **changes), *flags])
    assert done.returncode == 1
    assert message.format(file=file) in done.stderr
    assert done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 1
    assert done.stdout == ""


def test_a_disk_that_is_full_is_told_in_a_line(rooms, tmp_path):
    """A limit on the size of files stands for it: both refuse a write."""
    program = [sys.executable, "train.py", *arguments(rooms, tmp_path, **{"run.image_every": 0})]
    limit = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)); "
    limited = limit + "import runpy; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], "
    done = run([sys.executable, "-c", limited + "run_name='__main__')", *program[1:]])
    assert done.returncode == 1
    assert re.fullmatch(r"error: .*cannot be written: File too large\n", done.stderr)


@pytest.mark.parametrize("program", ["train", "eval"])
def test_help_teaches_and_comes_at_once(program):
    start = time.monotonic()
    done = run([sys.executable, f"{program}.py", "--help"])
    assert time.monotonic() - start < 2
    assert done.returncode == 0
    for text in (f"lvsm {program} --config=", "--config.SECTION.FIELD=VALUE", "holds"):
        assert text in done.stdout
