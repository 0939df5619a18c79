"""The page of one visitor: the scene as frustums, the render behind them, and the panel."""

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from lvsm_jax.common.errors import UserError
from lvsm_jax.scenes.photograph import PosedCamera
from lvsm_jax.scenes.trajectories import PATHS, make_path
from lvsm_jax.viewer import geometry
from lvsm_jax.viewer.gallery import Page
from lvsm_jax.viewer.photographs import Beside, Frustums, code
from lvsm_jax.viewer.renderer import Rendered
from lvsm_jax.viewer.uploads import Uploads

_log = logging.getLogger(__name__)

_PLAY_RATE = 20.0  # cameras a second that are sent to the browser
_PATH_FRAMES = 240  # a path of speed 1 takes 12 s
_USED_MARK = "● "


class Visitor:
    """Shows the page to one of viser's clients until `leave`."""

    def __init__(self, client: Any, page: Page, uploads: Uploads):
        self._client, self._page, self._uploads = client, page, uploads
        self._key = client.client_id
        self._lock = threading.RLock()  # of what follows
        self._frustums = Frustums(client.scene, page, self._frustum_clicked)
        self._window: geometry.Window | None = None
        self._newest: Rendered | None = None
        self._seconds: dict[bool, float] = {}  # that the last coarse and full render took
        self._stop: threading.Event | None = None
        self._gone = False
        self._beside: Beside | None = None
        try:
            self._build()
            page.gallery.listen(self._key, self._sync)
            self._sync()
            page.renderer.join(self._key, self._show)
            client.camera.on_update(self._moved)
            self._look()
        except BaseException:  # a browser that goes while the page is made
            self.leave()
            raise

    def leave(self) -> None:
        """Frees all that is this visitor's."""
        self._gone = True
        if self._beside:
            self._beside.close()
        if self._stop:
            self._stop.set()
        self._page.renderer.leave(self._key)
        try:
            self._page.gallery.leave(self._key)
        finally:
            self._uploads.close()

    def tell(self, title: str, body: str, *, colour: str | None = None) -> None:
        """Shows a message on the page."""
        self._client.add_notification(title, body, color=colour, auto_close_seconds=12.0)

    def update_status(self) -> None:
        """Shows times and memory, and what is wrong."""
        page, newest, memory = self._page, self._newest, self._page.memory
        views, count = len(page.gallery.in_use), page.visitors()
        state = "**Ready.** Drag to turn, scroll to come nearer, right button to shift."
        if not views:
            state = "**Nothing to render from: add a photograph.**"
        elif newest and newest.error:
            state = f"**The render failed:** {code(str(newest.error))}"
        times = [
            f"{word} {size[1]}×{size[0]}: {1e3 * self._seconds[full]:.0f} ms"
            for full, word, size in zip((False, True), ("coarse", "full"), page.sizes, strict=True)
            if full in self._seconds
        ]
        times.append(f"requests dropped: {newest.dropped if newest else 0}")
        cache = f"{views} of {page.gallery.max_views} views in the cache, "
        cache += f"{_megabytes(views * memory['per_view'])} of {_megabytes(memory['total'])}"
        visitors = f"{count} visitor{'s' if count > 1 else ''}"
        lines = (state, "; ".join(times), cache + _device_memory(), visitors)
        self._status.content = "  \n".join(lines)

    def _build(self) -> None:
        gui, page, gallery = self._client.gui, self._page, self._page.gallery
        self._choices = {"Go there": self._go_to, "Add": gallery.use, "Remove": gallery.drop}
        self._status = gui.add_markdown("")
        self._beside = Beside(gui, gallery, page.sizes[1], page.loading)
        with gui.add_folder("Photographs"):
            self._choice = gui.add_dropdown("Photograph", [""])
            choice_buttons = gui.add_button_group("", list(self._choices))
            self._used = gui.add_markdown("")
            self._shown = gui.add_checkbox("Cameras in 3D", True)
        with gui.add_folder("Path"):
            self._kind = gui.add_dropdown("Kind", list(PATHS))
            self._speed = gui.add_slider("Speed", 0.1, 4.0, 0.1, 1.0)
            self._play = gui.add_button("Play")
        with gui.add_folder("Upload"):
            gui.add_markdown("`cameras.json`, then its pictures; or all in one zip archive.")
            upload = gui.add_upload_button("Upload", mime_type=".json,.zip,image/*")
        choice_buttons.on_click(self._safely(self._choice_clicked))
        self._shown.on_update(self._safely(lambda _: self._hide()))
        self._play.on_click(self._safely(self._play_clicked))
        upload.on_upload(self._safely(self._uploaded))

    def _safely(self, callback: Callable[[Any], None]) -> Callable[[Any], None]:
        """The callback, with its errors shown on the page while the server goes on."""

        def call(event: Any) -> None:
            try:
                callback(event)
            except (UserError, OSError) as error:
                _log.info("refused: %s", error)
                self.tell("That does not work", str(error), colour="red")
            except Exception as error:
                if self._gone:
                    return
                _log.exception("a visitor's request failed")
                message = f"{type(error).__name__} at the server, whose log says more"
                self.tell("Something went wrong", message, colour="red")

        return call

    def _choice_clicked(self, event: Any) -> None:
        self._choices[event.target.value](self._choice.value.removeprefix(_USED_MARK))

    def _uploaded(self, event: Any) -> None:
        file = event.target.value
        photographs = self._uploads.receive(file.name, file.content)
        if not photographs:
            self.tell("Poses", f"{self._uploads.poses} poses are known: now upload their pictures")
            return
        try:
            added, used = self._page.gallery.upload(self._key, photographs)
        finally:
            if self._gone:  # in the meantime
                self._page.gallery.leave(self._key)
        rest = "" if added == used else f", {added - used} not: there is no more room"
        self.tell("Photographs", f"{used} are in use now{rest}", colour="green")

    def _go_to(self, name: str) -> None:
        with self._lock:
            frustum = self._frustums.shown.get(name)
        if frustum is None:
            raise UserError(f"there is no photograph {name!r} any more")
        self._set_camera(frustum.listed.camera)

    def _set_camera(self, camera: PosedCamera) -> None:
        """Moves the visitor to a camera's place; the browser then reports where it is."""
        c2w, viewer = self._page.frame.to_page(camera.c2w), self._client.camera
        fov = geometry.field_of_view(camera, self._page.sizes[1], viewer.aspect)
        with self._client.atomic():
            viewer.up_direction = geometry.upright(c2w)
            viewer.position = c2w[:3, 3]
            viewer.look_at = c2w[:3, 3] + self._page.frame.distance * c2w[:3, 2]
            viewer.fov = fov

    async def _moved(self, _: Any) -> None:
        """Runs in viser's event loop, which keeps the order of messages."""
        self._look()

    def _look(self) -> None:
        """Asks for a render of what the visitor's window shows now."""
        camera = self._client.camera
        try:
            place = np.asarray(camera.wxyz, np.float64), np.asarray(camera.position, np.float64)
            window = geometry.Window.of(*place, camera.fov, camera.aspect)
        except (ValueError, ZeroDivisionError) as error:
            _log.warning("visitor %s: %s", self._key, error)
            return
        self._window = window
        self._page.renderer.ask(self._key, window)

    def _play_clicked(self, _: Any) -> None:
        with self._lock:  # of two quick clicks the second stops
            if self._stop:
                self._stop.set()
                return
            cameras = [item.camera for item in self._page.gallery.listing() if item.in_use]
            if not cameras:
                raise UserError("a path leads through the photographs in use, and there are none")
            if self._kind.value not in PATHS:  # `make_path` would take the name of a file
                raise UserError(f"there is no path {self._kind.value!r}")
            path = make_path(self._kind.value, cameras, _PATH_FRAMES)
            self._stop = threading.Event()
            self._play.label = "Stop"
            threading.Thread(target=self._follow, args=(path, self._stop), daemon=True).start()

    def _follow(self, path: list[PosedCamera], stop: threading.Event) -> None:
        """Plays a path once, at the speed that the slider has meanwhile."""
        place, then = 0.0, time.monotonic()
        try:
            while not self._gone:
                self._set_camera(path[min(int(place), len(path) - 1)])
                if place >= len(path) or stop.wait(1 / _PLAY_RATE):
                    return
                now = time.monotonic()
                place += (now - then) * _PLAY_RATE * self._speed.value
                then = now
        except Exception:
            _log.exception("playing a path failed")
        finally:
            self._stop = None
            if not self._gone:
                self._play.label = "Play"

    def _show(self, result: Rendered) -> None:
        """Called by the renderer."""
        with self._lock, self._client.atomic():
            before, self._newest, window = self._newest, result, result.request
            if result.error is None:
                self._seconds[result.full] = result.seconds
                image = geometry.fill_window(result.picture, window.aspect)
                self._client.scene.set_background_image(image, format="jpeg", jpeg_quality=88)
                self._beside.show(self._frustums.nearest(window), result.picture)
            else:
                self._client.scene.set_background_image(None)
                known = before and str(before.error) == str(result.error)
                if not (known or isinstance(result.error, UserError)):
                    _log.error("a render failed", exc_info=result.error)
            self._hide()
            self.update_status()

    def _sync(self) -> None:
        """Shows frustums and list as the gallery is now, in the thread of whoever changed it."""
        if self._gone:
            return
        with self._lock, self._client.atomic():
            items = self._page.gallery.listing()
            self._frustums.update(items)
            chosen = self._choice.value.removeprefix(_USED_MARK)
            options = {i.name: f"{_USED_MARK if i.in_use else ''}{i.name}" for i in items}
            if tuple(options.values()) != tuple(self._choice.options):
                self._choice.options = list(options.values())
            self._choice.value = options.get(chosen, options[items[0].name])
            used = [code(item.name) for item in items if item.in_use]
            text = f"{len(used)} of {len(items)} in use (room for {self._page.gallery.max_views}): "
            self._used.content = text + (", ".join(used) or "none")
            self._hide()
            self.update_status()

    def _frustum_clicked(self, name: str) -> None:
        with self._lock:
            for option in self._choice.options:
                if option.removeprefix(_USED_MARK) == name:
                    self._choice.value = option
        self._safely(self._go_to)(name)

    def _hide(self) -> None:
        with self._lock:
            if self._window is not None:
                self._frustums.hide(self._window, all_of_them=not self._shown.value)


def _megabytes(count: int) -> str:
    return f"{count / 2**20:.1f} MiB"


def _device_memory() -> str:
    """Memory in use on an accelerator, where it says so."""
    used = (jax.devices()[0].memory_stats() or {}).get("bytes_in_use")
    return "" if used is None else f"; {_megabytes(used)} in use on the device"
