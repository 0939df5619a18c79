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
import io
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from benchmarks import common
from benchmarks.common import Report
from experiments.viewer_client import ViewerClient
from input_pipeline.clip_scene import open_scene
from lvsm_jax.common.command_line import path, program
from lvsm_jax.common.errors import UserError
from lvsm_jax.scenes.readers import ScenePhotograph
from lvsm_jax.scenes.trajectories import PATHS

_SAMPLES = 5.0  # seconds between looks at the process
_STAY = 10.0, 60.0  # seconds of a visit
_PAUSE = 0.2, 2.0  # seconds between what a visitor does
_PLACE = (0.1, -0.9, 0.1)  # where all stand still
_STALE = 1.0  # grey levels, of 255, by which a picture may differ: the order of views rounds
_WAIT = 60.0


@program
def main(arguments: list[str]) -> None:
    """Prints tables and writes JSON."""
    common.report_benchmark(_parser().parse_args(arguments), measure, table)


def measure(options: argparse.Namespace) -> Report:
    """What happened, in numbers."""
    photographs = open_scene(options.scene).photographs
    with tempfile.TemporaryDirectory() as temporary, _viewer(options, temporary) as viewer:
        url, process, log = viewer
        soak = _Soak(url, photographs, random.Random(options.seed))
        rounds = [soak.compare()]
        samples = [_look(process.pid, temporary)]
        threads = [
            threading.Thread(target=soak.visit_again_and_again, args=(seed,), daemon=True)
            for seed in range(options.visitors)
        ]
        for thread in threads:
            thread.start()
        minutes = _Clock(60 * options.minutes)
        while minutes.go_on(_SAMPLES):
            samples.append(_look(process.pid, temporary))
            if minutes.passed > len(rounds) * options.compare_every:
                rounds.append(soak.compare())
        soak.done.set()
        for thread in threads:
            thread.join(_WAIT)
        time.sleep(min(10.0, 60 * options.minutes))  # for the last to be forgotten
        samples.append(_look(process.pid, temporary))
        rounds.append(soak.compare(soak.first))
        process.send_signal(signal.SIGTERM)
        process.wait(_WAIT)
        left = sum(file.is_file() for file in pathlib.Path(temporary).rglob("*"))
        lines = log.read_text(errors="replace").splitlines()
    tracebacks = sum(line.startswith("Traceback") for line in lines)
    return {
        **common.describe_run(options),
        "did": soak.did,
        "slowest_first_picture": soak.slowest,
        "compared": sum(total for _, total in rounds),
        "stale": sum(stale for stale, _ in rounds),
        "samples": samples,
        "files_left": left,
        "status": process.returncode,
        "tracebacks": tracebacks,
        "log": lines[-20:],
    }


def table(report: Report) -> str:
    """The numbers as Markdown."""
    samples, rows = report["samples"], []
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
            f"Stale pictures: {report['stale']} of {report['compared']}. Slowest first picture: "
            f"{report['slowest_first_picture']:.1f} s. Tracebacks: {report['tracebacks']}. "
            f"Files left: {report['files_left']}. Status: {report['status']}.",
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


class _Soak:
    """Visitors, and what they did."""

    def __init__(self, url: str, photographs: Sequence[ScenePhotograph], rng: random.Random):
        self._url, self._photographs, self._rng = url, photographs, rng
        self._still = threading.Event()  # while all stand still
        self._here: set[ViewerClient] = set()
        self._lock = threading.Lock()
        self.done = threading.Event()
        self.did: dict[str, int] = {}
        self.slowest = 0.0
        self.first: np.ndarray | None = None  # picture of all, before anything was changed

    def visit_again_and_again(self, seed: int) -> None:
        """Comes and goes until it is `done`."""
        rng = random.Random(seed)
        while not self.done.is_set():
            try:
                with self._visitor() as client:
                    self._stay(client, rng)
            except (OSError, TimeoutError, UserError) as error:
                self._count(f"failures ({type(error).__name__}: {str(error)[:80]})")
                time.sleep(1.0)

    def compare(self, expected: np.ndarray | None = None) -> tuple[int, int]:
        """Number of stale pictures, and of all, when all have come to one place."""
        self._still.set()
        try:
            time.sleep(2 * _PAUSE[1])  # what was begun is done by then
            with self._visitor() as new:
                with self._lock:
                    clients = list(self._here)
                for client in clients:
                    with contextlib.suppress(UserError):
                        client.press("Stop")
                    client.stand(_PLACE)
                for client in clients:
                    with contextlib.suppress(OSError):
                        client.wait_until_settled(wait=_WAIT)
                picture = new.picture()
                if self.first is None:
                    self.first = picture
                others = [c.picture() for c in clients if not c.closed and c is not new]
            pairs = [(picture, other) for other in others]
            if expected is not None:
                pairs.append((picture, expected))
            return sum(_difference(*pair) > _STALE for pair in pairs), len(pairs)
        finally:
            self._still.clear()

    @contextlib.contextmanager
    def _visitor(self) -> Iterator[ViewerClient]:
        start = time.monotonic()
        client = ViewerClient(self._url, wait=_WAIT)
        try:
            client.stand(_PLACE)
            client.wait_for(lambda: client.jpeg or client.closed, "the first picture", _WAIT)
            with self._lock:
                self.slowest = max(self.slowest, time.monotonic() - start)
                self._here.add(client)
            yield client
        finally:
            with self._lock:
                self._here.discard(client)
            client.close()

    def _stay(self, client: ViewerClient, rng: random.Random) -> None:
        self._count("visits")
        end, uploads = time.monotonic() + rng.uniform(*_STAY), 1
        while time.monotonic() < end and not self.done.is_set() and not client.closed:
            time.sleep(rng.uniform(*_PAUSE))
            if self._still.is_set():
                continue
            act = rng.choices((self._move, self._play, self._change, self._upload), (6, 2, 2, 1))[0]
            if act == self._upload:
                if not uploads:
                    continue
                uploads -= 1
            act(client, rng)
        while self._still.is_set():  # nobody leaves while pictures are compared
            time.sleep(0.2)
        if rng.random() < 0.5:
            client.vanish()

    def _move(self, client: ViewerClient, rng: random.Random) -> None:
        start, ahead = (np.array([rng.uniform(-1, 1) for _ in range(3)]) for _ in range(2))
        for step in range(10):
            client.stand(start + 0.05 * step * ahead, (0.0, 0.0, 3.0))
            time.sleep(0.05)
        self._count("moves")

    def _play(self, client: ViewerClient, rng: random.Random) -> None:
        [kinds, *_] = client.elements("GuiDropdown", "orbit")
        client.update(kinds["uuid"], {"value": rng.choice(list(PATHS))})
        for word in ("Play", "Stop"):
            with contextlib.suppress(UserError):
                client.press(word)
                self._count("paths" if word == "Play" else "paths stopped")
                return

    def _change(self, client: ViewerClient, rng: random.Random) -> None:
        [choice, *_] = client.elements("GuiDropdown", "Photograph")
        [buttons, *_] = client.elements("GuiButtonGroup", "Remove")
        client.update(choice["uuid"], {"value": rng.choice(choice["props"]["options"])})
        client.update(buttons["uuid"], {"value": rng.choice(("Add", "Remove"))})
        self._count("photographs added or removed")

    def _upload(self, client: ViewerClient, rng: random.Random) -> None:
        client.upload("mine.zip", make_archive(rng.sample(self._photographs, 2), rng))
        self._count("uploads")

    def _count(self, what: str) -> None:
        with self._lock:
            self.did[what] = self.did.get(what, 0) + 1


def make_archive(photographs: Sequence[ScenePhotograph], rng: random.Random) -> bytes:
    """Photographs of the scene, a little darker, with their cameras, as a visitor uploads them."""
    frames, file = [], io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for number, photograph in enumerate(photographs):
            camera, pixels = photograph.camera, np.asarray(photograph.load().pixels)
            picture = io.BytesIO()
            Image.fromarray((pixels * rng.uniform(0.6, 0.9)).astype(np.uint8)).save(picture, "PNG")
            archive.writestr(f"{number}.png", picture.getvalue())
            size = {"w": camera.width, "h": camera.height, "fxfycxcy": list(camera.fxfycxcy)}
            frames.append({"file": f"{number}.png", **size, "c2w": np.asarray(camera.c2w).tolist()})
        archive.writestr("cameras.json", json.dumps({"frames": frames}))
    return file.getvalue()


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


def _difference(one: np.ndarray, other: np.ndarray | None) -> float:
    if other is None or one.shape != other.shape:
        return np.inf
    return float(np.abs(one.astype(float) - other).mean())


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
