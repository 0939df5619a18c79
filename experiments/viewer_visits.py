"""Visitors of a viewer: they come, look, upload, play paths, leave; what they see is compared."""

import contextlib
import io
import json
import random
import threading
import time
import zipfile
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image

from experiments.viewer_client import ViewerClient
from lvsm_jax.common.errors import UserError
from lvsm_jax.scenes.readers import ScenePhotograph
from lvsm_jax.scenes.trajectories import PATHS

_STAY = 10.0, 60.0  # seconds of a visit
_PAUSE = 0.2, 2.0  # seconds between what a visitor does
_PLACE = (0.1, -0.9, 0.1)  # where all stand still
_WAIT = 180.0  # seconds, where the machine does much else
_SETTLED = 5.0  # seconds without a new picture
_USED_MARK = "● "


class Visitors:
    """Visitors of a viewer at `url`, who have photographs of its scene, and what they did."""

    def __init__(self, url: str, photographs: Sequence[ScenePhotograph]):
        self._url, self._photographs = url, photographs
        self._still = threading.Event()  # while all stand still
        self._here: set[ViewerClient] = set()
        self._acting = 0  # visitors who are doing something just now
        self._used: dict[str, bool] = {}  # which photographs are in use at first
        self._lock = threading.Lock()
        self.done = threading.Event()
        self.did: dict[str, int] = {}
        self.slowest = 0.0
        self.first: np.ndarray | None = None  # picture of all, before anything was changed

    def come_and_go(self, seed: int) -> None:
        """Comes and goes until it is `done`."""
        rng = random.Random(seed)
        while not self.done.is_set():
            try:
                with self._visitor() as client:
                    self._stay(client, rng)
            except (OSError, TimeoutError, UserError) as error:
                self._count(f"failures ({type(error).__name__}: {str(error)[:80]})")
                time.sleep(1.0)

    def compare(self, *, at_end: bool = False) -> list[float]:
        """How far pictures are from a new visitor's, in grey levels, when all are at one place.

        `at_end` also that one from the first ever, with the same photographs in use again.
        """
        self._still.set()
        try:
            time.sleep(_PAUSE[1])
            while self._acting:
                time.sleep(0.1)
            with self._visitor() as new:
                if self.first is None:
                    self._used = _in_use(new)
                if at_end:
                    self._use_as_before(new)
                with self._lock:
                    clients = list(self._here)
                for client in clients:
                    with contextlib.suppress(UserError, OSError):
                        client.press("Stop")
                time.sleep(1.0)  # on a path one may be put to a last place
                for client in clients:
                    with contextlib.suppress(OSError):
                        client.stand(_PLACE)
                for client in clients:
                    client.wait_until_settled(_SETTLED, wait=_WAIT)
                picture = new.picture()
                others = [c.picture() for c in clients if not c.closed and c is not new]
                if at_end:
                    others.append(self.first)
                if self.first is None:
                    self.first = picture
            return [_difference(picture, other) for other in others]
        finally:
            self._still.clear()

    def _use_as_before(self, client: ViewerClient) -> None:
        """Takes photographs into use, and out of it, until they are those of the beginning."""
        for unwanted, action in ((True, "Remove"), (False, "Add")):
            for name, used in _in_use(client).items():
                if used == unwanted != self._used[name]:
                    _change(client, name, action)
                    time.sleep(1.0)  # so fast may a visitor go on
        client.wait_for(lambda: _in_use(client) == self._used, "the photographs of the beginning")

    @contextlib.contextmanager
    def _visitor(self) -> Iterator[ViewerClient]:
        start = time.monotonic()
        client = ViewerClient(self._url, wait=_WAIT)
        try:
            client.stand(_PLACE)
            try:
                client.wait_for(lambda: client.jpeg or client.closed, "the first picture", _WAIT)
            except TimeoutError:
                raise UserError(f"no picture in {_WAIT:g} s: {client.texts()[:80]!r}") from None
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
            act = rng.choices((self._move, self._play, self._change, self._upload), (6, 2, 2, 1))[0]
            if act == self._upload:
                if not uploads:
                    continue
                uploads -= 1
            with self._lock:
                if self._still.is_set():
                    continue
                self._acting += 1
            try:
                act(client, rng)
            finally:
                with self._lock:
                    self._acting -= 1
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
        _change(client, rng.choice(list(_in_use(client))), rng.choice(("Add", "Remove")))
        self._count("photographs added or removed")

    def _upload(self, client: ViewerClient, rng: random.Random) -> None:
        client.upload("mine.zip", make_archive(rng.sample(self._photographs, 2), rng))
        self._count("uploads")

    def _count(self, what: str) -> None:
        with self._lock:
            self.did[what] = self.did.get(what, 0) + 1


def _in_use(client: ViewerClient) -> dict[str, bool]:
    """The photographs that the page lists, and whether they are in use."""
    [choice, *_] = client.elements("GuiDropdown", "Photograph")
    options = choice["props"]["options"]
    return {option.removeprefix(_USED_MARK): option.startswith(_USED_MARK) for option in options}


def _change(client: ViewerClient, name: str, action: str) -> None:
    """Adds a photograph to those in use, or removes it, as the page does."""
    [choice, *_] = client.elements("GuiDropdown", "Photograph")
    options = [o for o in choice["props"]["options"] if o.removeprefix(_USED_MARK) == name]
    if not options:
        return  # whose it was has left
    [buttons, *_] = client.elements("GuiButtonGroup", "Remove")
    client.update(choice["uuid"], {"value": options[0]})
    client.update(buttons["uuid"], {"value": action})


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


def _difference(one: np.ndarray, other: np.ndarray | None) -> float:
    if other is None or one.shape != other.shape:
        return np.inf
    return float(np.abs(one.astype(float) - other).mean())
