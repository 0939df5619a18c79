"""Camera paths on the page: through the photographs in use, or key frames that a visitor records.

A path is played in the visitor's window, and downloaded as a video or as the cameras of a file that
`lvsm render --path` takes.
"""

import importlib.util
import json
import logging
import shutil
import threading
import time
from collections.abc import Callable
from typing import Any

from PIL import Image

from lvsm_jax.common.errors import UserError
from lvsm_jax.rendering.frames import write_video
from lvsm_jax.scenes import camera_json
from lvsm_jax.scenes.photograph import PosedCamera
from lvsm_jax.scenes.trajectories import PATHS, interpolate, make_path
from lvsm_jax.viewer import geometry
from lvsm_jax.viewer.jobs import Job, Report
from lvsm_jax.viewer.leftovers import make_folder
from lvsm_jax.viewer.viewpoint import Viewpoint
from lvsm_jax.viewer.worlds import World

_log = logging.getLogger(__name__)

KEY_FRAMES = "key frames"
_RATE = 20.0  # cameras a second that are sent to the browser
_SECONDS = 12.0  # that a path of speed 1 takes
_A_KEY = 2.5  # seconds from one key frame to the next
_MOST_KEYS = 100
_FPS, _MOST_FRAMES = 30.0, 1800  # of a video
_WATCHED = 512  # pixels of the shorter side of a video that people watch
_SPEEDS = (0.1, 4.0)


class Paths:
    """The controls of paths; `send(name, content)` lets the visitor download a file.

    Callbacks go through `safely`, which shows their errors. `size` is the height and width of the
    pictures of a video.
    """

    def __init__(
        self,
        gui: Any,
        viewpoint: Viewpoint,
        size: tuple[int, int],
        job: Job,
        send: Callable[[str, bytes], None],
        safely: Callable[[Callable[[Any], None]], Callable[[Any], None]],
    ):
        self._viewpoint, self._size, self._job, self._send = viewpoint, size, job, send
        self._keys: list[PosedCamera] = []
        self._stop: threading.Event | None = None
        self._gone = False
        self._lock = threading.Lock()
        self._kind = gui.add_dropdown("Path", [*PATHS, KEY_FRAMES])
        self._words = gui.add_markdown("")
        buttons = gui.add_button_group("Key frames", ["Add", "Undo", "Clear"])
        self._speed = gui.add_slider("Speed", *_SPEEDS, 0.1, 1.0)
        self._play = gui.add_button("Play", icon="player-play")
        video = gui.add_button("Download video", color="gray", icon="movie")
        cameras = gui.add_button("Download cameras", color="gray", icon="download")
        cameras.hint = "for lvsm render --path=FILE"
        buttons.on_click(safely(lambda event: self._change(event.target.value)))
        self._play.on_click(safely(lambda _: self._play_or_stop()))
        video.on_click(safely(lambda _: self._make_video()))
        cameras.on_click(safely(lambda _: self._send_cameras()))
        self._say()

    def enter(self) -> None:
        """Forgets the key frames, which are of the world that the visitor left."""
        self.stop()
        with self._lock:
            self._keys = []
        self._say()

    def stop(self) -> None:
        """Stops the path that is being played, if one is."""
        with self._lock:
            if self._stop:
                self._stop.set()

    def close(self) -> None:
        """Stops for good: the visitor has left."""
        self._gone = True
        self.stop()

    def _change(self, button: str) -> None:
        request = self._viewpoint.request
        with self._lock:
            if button == "Add" and request is not None:
                if len(self._keys) >= _MOST_KEYS:
                    raise UserError(f"a path has at most {_MOST_KEYS} key frames")
                self._keys.append(request.camera(self._size))
                if len(self._keys) == 2:
                    self._kind.value = KEY_FRAMES
            elif button == "Undo":
                self._keys = self._keys[:-1]
            elif button == "Clear":
                self._keys = []
        self._say()

    def _say(self) -> None:
        count = len(self._keys)
        if count == 0:
            text = "*Add* keeps where you stand; two key frames make a path."
        else:
            text = f"{count} key frame{'s' if count > 1 else ''}"
        self._words.content = text

    def _path(self, rate: float) -> list[PosedCamera]:
        """The cameras of the path that is chosen, `rate` a second at its usual speed."""
        kind = self._kind.value
        if kind == KEY_FRAMES:
            with self._lock:
                keys = list(self._keys)
            if len(keys) < 2:
                raise UserError("a path of key frames needs two of them: add where you stand")
            return interpolate(keys, round(rate * _A_KEY * (len(keys) - 1)) + 1)
        if kind not in PATHS:  # what a browser says may be anything, also a file's name
            raise UserError("there is no such path")
        used = [item for item in self._viewpoint.world.gallery.listing() if item.in_use]
        if not used:
            raise UserError("a path leads through the photographs in use, and there are none")
        return make_path(kind, [item.camera for item in used], round(rate * _SECONDS))

    @property
    def _times(self) -> float:
        """Times the usual speed."""
        return geometry.bounded(self._speed.value, *_SPEEDS)

    def _play_or_stop(self) -> None:
        with self._lock:  # of two quick clicks the second stops
            stop = self._stop
        if stop:
            stop.set()
            return
        path = self._path(_RATE)
        with self._lock:
            if self._stop or self._gone:
                return
            self._stop = threading.Event()
        self._play.label = "Stop"
        threading.Thread(target=self._follow, args=(path, self._stop), daemon=True).start()

    def _follow(self, path: list[PosedCamera], stop: threading.Event) -> None:
        """Plays a path once, at the speed that the slider has meanwhile."""
        place, then = 0.0, time.monotonic()
        try:
            while not self._gone:
                self._viewpoint.go(path[min(int(place), len(path) - 1)])
                if place >= len(path) or stop.wait(1 / _RATE):
                    return
                now = time.monotonic()
                place += (now - then) * _RATE * self._times
                then = now
        except Exception:
            _log.exception("playing a path failed")
        finally:
            self._stop = None
            if not self._gone:
                self._play.label = "Play"

    def _send_cameras(self) -> None:
        content = camera_json.as_json(self._path(_FPS / self._times)[:_MOST_FRAMES])
        self._send("path.json", json.dumps(content).encode())

    def _make_video(self) -> None:
        if importlib.util.find_spec("imageio_ffmpeg") is None:
            raise UserError("a video needs imageio-ffmpeg: pip install 'lvsm_jax[video]'")
        cameras, world = self._path(_FPS / self._times), self._viewpoint.world
        if len(cameras) > _MOST_FRAMES:
            most = f"{_MOST_FRAMES / _FPS:g} s"
            raise UserError(f"the video would last {len(cameras) / _FPS:g} s, of {most} at most")
        self._job.start("Video", lambda report: self._render(world, cameras, report))

    def _render(self, world: World, cameras: list[PosedCamera], report: Report) -> None:
        height, width = self._size
        folder = make_folder()
        try:
            for i, camera in enumerate(cameras):
                report(i / len(cameras), f"Video: frame {i + 1} of {len(cameras)}")
                picture = world.session.render(camera, height=height, width=width)
                Image.fromarray(picture).save(folder / f"frame_{i:05d}.png")
            report(None, "Video: is put together")
            video = write_video(folder, len(cameras), _FPS, -(-_WATCHED // min(height, width)))
            self._send("path.mp4", video.read_bytes())
        finally:
            shutil.rmtree(folder, ignore_errors=True)
