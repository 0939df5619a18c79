"""Seconds from the command `lvsm view` to its first picture, cold and warm.

    python -m experiments.viewer_start EXPORT SCENE --rounds=3

Each round starts the viewer twice with one new directory of compiled programs: cold, when all is
compiled, and warm, when that is found there. Its page is ready once the first picture is rendered.
CPU seconds are of all cores together, and vary less where the machine has other work.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time

from tqdm import tqdm

from benchmarks import common
from benchmarks.common import Report
from lvsm_jax.common import compilation
from lvsm_jax.common.command_line import path, program
from lvsm_jax.common.errors import UserError


@program
def main(arguments: list[str]) -> None:
    """Prints a table and writes JSON."""
    common.report_benchmark(_parser().parse_args(arguments), measure, table)


def measure(options: argparse.Namespace) -> Report:
    """Starts of the viewer, in the order in which they were made."""
    command = [sys.executable, "-m", "lvsm_jax.viewer", options.export, options.scene, "--port=0"]
    starts = []
    for _ in tqdm(range(options.rounds), "rounds"):
        with tempfile.TemporaryDirectory() as compiled:
            for start in ("cold", "warm"):
                seconds, cpu_seconds = time_start(command, compiled)
                starts.append({"start": start, "seconds": seconds, "cpu_seconds": cpu_seconds})
    return {**common.describe_run(options), "starts": starts}


def time_start(command: list[str], compiled: str | os.PathLike) -> tuple[float, float]:
    """Seconds until the viewer is ready, by the clock and of the CPU; it is ended then."""
    environment = os.environ | {compilation.VARIABLE: str(compiled)}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    cpu, start = _cpu_seconds(), time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as viewer:
        ready = any(line.startswith("ready") for line in viewer.stdout)
        seconds = time.perf_counter() - start
        viewer.terminate()
    if not ready:
        raise UserError("the viewer did not start; the reason is above")
    return seconds, _cpu_seconds() - cpu


def _cpu_seconds() -> float:
    """Of the processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def table(report: Report) -> str:
    """Medians of the rounds."""
    rows = []
    for start in ("cold", "warm"):
        found = [row for row in report["starts"] if row["start"] == start]
        kinds = ("seconds", "cpu_seconds")
        rows.append([start, *(f"{statistics.median(r[k] for r in found):.1f}" for k in kinds)])
    title = f"{report['hardware']}, jax {report['jax']}, medians of {len(found)} starts"
    return f"{title}\n\n{common.markdown_table(['start', 'first picture, s', 'CPU, s'], rows)}"


def _parser() -> argparse.ArgumentParser:
    parser = common.benchmark_parser("experiments.viewer_start", __doc__)
    add = parser.add_argument
    add("export", type=path, metavar="EXPORT", help="as lvsm view takes it")
    add("scene", type=path, metavar="SCENE", help="as lvsm view takes it")
    add("--rounds", type=int, default=3, help="of which the median counts (3)")
    return parser


if __name__ == "__main__":
    main()
