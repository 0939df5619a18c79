"""A training that is killed at random moments, and goes on each time, beside one that is not.

    python -m experiments.training_soak runs/soak                 # 20 kills
    python -m experiments.training_soak runs/soak --kills=2 --steps=20

Trains twice with the same flags, in runs/soak/straight and runs/soak/killed. The second is killed
(SIGKILL, to all of its processes) at random moments from its start to its end, and given the same
command again. In the end weights and all that is logged of the steps must be the same, bit for bit.
Times of steps differ, and are not compared.
"""

import argparse
import contextlib
import csv
import os
import pathlib
import random
import signal
import subprocess
import sys
import time
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks import common
from benchmarks.common import Report
from experiments.runs import REPOSITORY, last_step
from lvsm_jax.common.command_line import path, program
from lvsm_jax.common.errors import UserError
from lvsm_jax.common.tree import named_leaves
from lvsm_jax.weights import exports

_EARLY = 0.25  # share of kills at any moment from the start of the program; others as it trains
_STUCK = 1800.0  # seconds without a step


@program
def main(arguments: list[str]) -> None:
    """Prints what was compared, and writes JSON; status 1 if anything differs."""
    options = _parser().parse_args(arguments)
    common.report_benchmark(options, measure, table)


def measure(options: argparse.Namespace) -> Report:
    """Both runs, and what differs."""
    folder = pathlib.Path(options.directory)
    straight, killed = folder / "straight", folder / "killed"
    if killed.exists():
        raise UserError(f"{killed} exists: name another directory")
    start = time.monotonic()
    if not (straight / "export").exists():
        _train(options, straight).wait()
    alone = time.monotonic() - start
    kills = kill_and_resume(options, killed)
    differing = compare(straight, killed)
    if differing:
        raise UserError(f"not the same: {', '.join(differing[:20])}")
    return {
        **common.describe_run(options),
        "kills": kills,
        "seconds_straight": alone,
        "seconds_killed": time.monotonic() - start - alone,
        "arrays": len(named_leaves(exports.load(straight / "export"))),
        "rows": len(_rows(straight)),
        "left": _left(killed),
    }


def kill_and_resume(options: argparse.Namespace, workdir: pathlib.Path) -> list[dict[str, Any]]:
    """Trains to the end, killed on the way; returns the step and the seconds of each kill."""
    rng, kills = random.Random(options.seed), []
    with tqdm(total=options.kills, desc="kills", unit="kill") as bar:
        while len(kills) < options.kills:
            process, begin, first = _train(options, workdir), time.monotonic(), _last(workdir)
            share = options.steps // (options.kills + 1)
            # Steps are left for the kills that follow.
            step = min(first + rng.randint(1, 2 * share), share * (len(kills) + 1))
            early = rng.random() < _EARLY
            wait = rng.uniform(0.0, options.early_seconds if early else options.late_seconds)
            while process.poll() is None:
                seconds = time.monotonic() - begin
                if early and seconds > wait:
                    break
                if not early and _last(workdir) >= max(step, first + 1):
                    time.sleep(wait)
                    break
                if seconds > _STUCK:
                    raise UserError(f"no step in {_STUCK:g} s, see {workdir}.txt")
                time.sleep(0.05)
            if process.poll() is not None:
                raise UserError(
                    f"{workdir} ended after {len(kills)} of {options.kills} kills with status "
                    f"{process.returncode}: give more --steps, or see {workdir}.txt"
                )
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            seconds = round(time.monotonic() - begin, 1)
            kills.append({"step": _last(workdir), "seconds": seconds, "early": early})
            bar.update()
    if status := _train(options, workdir).wait():
        raise UserError(f"{workdir} ended with status {status}, see {workdir}.txt")
    return kills


def compare(straight: pathlib.Path, killed: pathlib.Path) -> list[str]:
    """What is not the same in two runs: arrays of their exports, and cells of their metrics."""
    ours, theirs = (named_leaves(exports.load(w / "export")) for w in (killed, straight))
    differing = sorted(ours.keys() ^ theirs.keys())
    differing += [
        name
        for name in sorted(ours.keys() & theirs.keys())
        if np.asarray(ours[name]).tobytes() != np.asarray(theirs[name]).tobytes()
    ]
    rows = _rows(killed), _rows(straight)
    if len(rows[0]) != len(rows[1]):
        return [*differing, f"{len(rows[0])} rows of metrics.csv, expected {len(rows[1])}"]
    for one, other in zip(*rows, strict=True):
        differing += [f"{key} of step {other['step']}" for key in other if one[key] != other[key]]
    return differing


def table(report: Report) -> str:
    """The numbers in words."""
    steps = ", ".join(f"{kill['step']}" for kill in report["kills"])
    early = sum(kill["early"] for kill in report["kills"])
    return (
        f"{report['hardware']}, jax {report['jax']}: {report['options']['steps']} steps, killed "
        f"{len(report['kills'])} times (after steps {steps}; {early} of them as it started). "
        f"{report['arrays']} arrays and {report['rows']} rows of metrics are the same, bit for "
        "bit. "
        f"{report['seconds_straight']:.0f} s without kills, {report['seconds_killed']:.0f} s with. "
        f"Left beside the run: {', '.join(report['left']) or 'nothing'}."
    )


def _train(options: argparse.Namespace, workdir: pathlib.Path) -> subprocess.Popen:
    """A training in a group of its own, which says what it has to say in a file."""
    workdir.parent.mkdir(parents=True, exist_ok=True)
    fields = {"run.num_steps": options.steps, "run.log_every": 1, "run.cpu_devices": 1}
    fields |= {"run.checkpoint_every": options.checkpoint_every, "run.image_every": 0}
    command = [sys.executable, str(REPOSITORY / "train.py"), f"--config={options.config}"]
    command += [f"--workdir={workdir}", *(f"--config.{k}={v}" for k, v in fields.items())]
    compiled = {"JAX_COMPILATION_CACHE_DIR": str(workdir.parent / ".compiled")}
    with open(f"{workdir}.txt", "a") as output:
        return subprocess.Popen(
            [*command, *options.train_flags],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | compiled,
            start_new_session=True,
        )


def _last(workdir: pathlib.Path) -> int:
    try:
        return last_step(workdir)
    except (ValueError, KeyError):  # just being written
        return 0


def _rows(workdir: pathlib.Path) -> list[dict[str, str]]:
    """Rows of metrics.csv, without what a clock measured."""
    with (workdir / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if not _is_time(k)} for row in rows]


def _is_time(name: str) -> bool:
    return any(word in name for word in ("second", "time", "wait", "memory", "mfu", "flop"))


def _left(workdir: pathlib.Path) -> list[str]:
    """Unfinished files and checkpoints in a run's directory."""
    names = [str(file.relative_to(workdir)) for file in workdir.rglob("*")]
    return sorted(name for name in names if ".tmp" in name or "-tmp" in name or ".old" in name)


def _parser() -> argparse.ArgumentParser:
    parser = common.benchmark_parser("experiments.training_soak", __doc__)
    add = parser.add_argument
    add("directory", type=path, help="of the two runs")
    add("--config", default=str(REPOSITORY / "configs" / "quickstart.py"), metavar="FILE",
        help="what is trained (configs/quickstart.py)")  # fmt: skip
    add("--kills", type=int, default=20, help="of the run (20)")
    add("--steps", type=int, default=200, help="of each run (200)")
    add("--checkpoint-every", type=int, default=5, metavar="N", help="steps (5)")
    add("--early-seconds", type=float, default=20.0, metavar="S",
        help="by when a run is killed that is to be killed as it starts (20)")  # fmt: skip
    add("--late-seconds", type=float, default=0.5, metavar="S",
        help="at most, after a step at random, of the others (0.5)")  # fmt: skip
    add("--seed", type=int, default=0, help="of the moments (0)")
    add("--train-flags", nargs=argparse.REMAINDER, default=[], metavar="FLAG",
        help="passed to train.py, last: --train-flags --config.data.path=...")  # fmt: skip
    return parser


if __name__ == "__main__":
    main()
