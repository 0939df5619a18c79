"""Visitors who come, look, upload, play paths and leave, for minutes, at a real viewer.

    python -m experiments.viewer_soak SCENE                  # 10 visitors for 10 minutes
    python -m experiments.viewer_soak SCENE --minutes=0.5 --visitors=3

Starts `lvsm view SCENE` with the weights of the package and a token, and visitors that speak its
protocol as the page does, without browsers. Each stays for a while, moves, plays paths, takes
photographs in and out of use, uploads some, and leaves: by closing the page, or without a word.
From time to time all stand still at one place: a picture that then differs from the one that a new
visitor gets there is stale. Reported are these, the viewer's memory, threads and files over time,
what it logged, and what it leaves when it ends.
"""

import argparse
import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import Any

from tqdm import tqdm

from benchmarks import common
from benchmarks.common import Report
from experiments.viewer_visits import Visitors
from input_pipeline.clip_scene import open_scene
from lvsm_jax.common.command_line import path, program
from lvsm_jax.common.errors import UserError

_SAMPLES = 5.0  # seconds between looks at the process
_STALE = 1.0  # grey levels, of 255, by which a picture may differ: the order of views rounds
_WAIT = 180.0


@program
def main(arguments: list[str]) -> None:
    """Prints tables and writes JSON."""
    common.report_benchmark(_parser().parse_args(arguments), measure, table)


def measure(options: argparse.Namespace) -> Report:
    """What happened, in numbers."""
    photographs = open_scene(options.scene).photographs
    with tempfile.TemporaryDirectory() as temporary, _viewer(options, temporary) as viewer:
        url, process, log = viewer
        visitors = Visitors(url, photographs)
        rounds = [visitors.compare()]
        samples = [_look(process.pid, temporary)]
        threads = [
            threading.Thread(target=visitors.come_and_go, args=(options.seed + i,), daemon=True)
            for i in range(options.visitors)
        ]
        for thread in threads:
            thread.start()
        minutes = _Clock(60 * options.minutes)
        while minutes.go_on(_SAMPLES):
            samples.append(_look(process.pid, temporary))
            if minutes.passed > len(rounds) * options.compare_every:
                rounds.append(visitors.compare())
        visitors.done.set()
        for thread in threads:
            thread.join(_WAIT)
        time.sleep(min(10.0, 60 * options.minutes))  # for the last to be forgotten
        samples.append(_look(process.pid, temporary))
        rounds.append(visitors.compare(at_end=True))
        process.send_signal(signal.SIGTERM)
        process.wait(_WAIT)
        left = sum(file.is_file() for file in pathlib.Path(temporary).rglob("*"))
        lines = log.read_text(errors="replace").splitlines()
    tracebacks = sum(line.startswith("Traceback") for line in lines)
    return {
        **common.describe_run(options),
        "did": visitors.did,
        "slowest_first_picture": visitors.slowest,
        "differences": rounds,
        "samples": samples,
        "files_left": left,
        "status": process.returncode,
        "tracebacks": tracebacks,
        "log": lines[-200:],
    }


def table(report: Report) -> str:
    """The numbers as Markdown."""
    samples, rows = report["samples"], []
    differences = [x for found in report["differences"] for x in found]
    stale = sum(difference > _STALE for difference in differences)
    for name, words in (
        ("memory", "memory of the viewer, MiB"),
        ("threads", "threads"),
        ("files_open", "open files and connections"),
        ("files", "files of uploads"),
    ):
        values = [sample[name] for sample in samples]
        third = values[len(values) // 3]
        rows.append([words, *(f"{v:.0f}" for v in (values[0], third, max(values), values[-1]))])
    did = ", ".join(f"{count} {what}" for what, count in sorted(report["did"].items()))
    first = ("", "before", "after a third", "most", "when all had left")
    return "\n".join(
        (
            f"{report['hardware']}, jax {report['jax']}: {report['options']['visitors']} visitors "
            f"for {report['options']['minutes']:g} minutes: {did}.",
            "",
            common.markdown_table(first, rows),
            "",
            f"Stale pictures: {stale} of {len(differences)} (furthest {max(differences):.3f} grey "
            f"levels). Slowest first picture: {report['slowest_first_picture']:.1f} s. "
            f"Tracebacks: {report['tracebacks']}. Files left: {report['files_left']}. "
            f"Status: {report['status']}.",
        )
    )


class _Clock:
    """Shows how much of a time has passed."""

    def __init__(self, seconds: float):
        self._seconds, self._start = seconds, time.monotonic()
        self._bar = tqdm(total=round(seconds), unit="s", desc="soaking", mininterval=5)

    @property
    def passed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._start

    def go_on(self, seconds: float) -> bool:
        """Waits, and tells whether there is time left."""
        time.sleep(max(0.0, min(seconds, self._seconds - self.passed)))
        self._bar.n = round(min(self.passed, self._seconds))
        self._bar.refresh()
        return self.passed < self._seconds


@contextlib.contextmanager
def _viewer(
    options: argparse.Namespace, temporary: str
) -> Iterator[tuple[str, subprocess.Popen, pathlib.Path]]:
    """The link of a new viewer, its process, and the file of what it says."""
    room = options.visitors + 2  # for the one who compares, and one who is not yet forgotten
    command = [sys.executable, "-m", "lvsm_jax.viewer", options.scene, "--port=0", "--token"]
    command += [f"--max-visitors={room}", *options.view_flags]
    with tempfile.TemporaryDirectory() as folder:
        log = pathlib.Path(folder, "log")
        environment = os.environ | {"TMPDIR": temporary}
        with (
            log.open("w") as errors,
            subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
            ) as process,
        ):
            try:
                ready = next((x for x in process.stdout if x.startswith("ready: ")), None)
                if ready is None:
                    raise UserError(f"the viewer did not start: {log.read_text().strip()}")
                yield ready.split()[1], process, log
            finally:
                process.kill()


def _look(pid: int, temporary: str) -> dict[str, Any]:
    """Memory in MiB, threads, and files of a process."""
    status = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
    fields = dict(line.split(":\t", 1) for line in status if ":\t" in line)
    files = sum(file.is_file() for file in pathlib.Path(temporary).rglob("*"))
    return {
        "memory": int(fields["VmRSS"].split()[0]) / 1024,
        "threads": int(fields["Threads"]),
        "files_open": len(os.listdir(f"/proc/{pid}/fd")),
        "files": files,
    }


def _parser() -> argparse.ArgumentParser:
    parser = common.benchmark_parser("experiments.viewer_soak", __doc__)
    add = parser.add_argument
    add("scene", type=path, metavar="SCENE", help="as lvsm view takes it")
    add("--visitors", type=int, default=10, help="at a time (10)")
    add("--minutes", type=float, default=10.0, help="that they come and go (10)")
    add("--compare-every", type=float, default=60.0, metavar="S",
        help="seconds between comparisons of pictures (60)")  # fmt: skip
    add("--seed", type=int, default=0, help="of what they do (0)")
    add("--view-flags", nargs=argparse.REMAINDER, default=[], metavar="FLAG",
        help="passed to lvsm view, last: --view-flags --weights=...")  # fmt: skip
    return parser


if __name__ == "__main__":
    main()
