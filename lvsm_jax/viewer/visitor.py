"""The page of one visitor: the render, frustums in it, and the panel with its tabs."""

import io
import logging
import threading
from collections.abc import Callable
from typing import Any

import jax
from PIL import Image

from lvsm_jax.common.errors import UserError
from lvsm_jax.viewer import geometry
from lvsm_jax.viewer.comparison import Comparison
from lvsm_jax.viewer.controls import PhotographControls, ViewControls
from lvsm_jax.viewer.drops import Drops
from lvsm_jax.viewer.jobs import Job
from lvsm_jax.viewer.paths import Paths
from lvsm_jax.viewer.photographs import Frustums, code
from lvsm_jax.viewer.renderer import Rendered
from lvsm_jax.viewer.splats import Splats, behind
from lvsm_jax.viewer.uploads import Uploads
from lvsm_jax.viewer.viewpoint import Viewpoint
from lvsm_jax.viewer.worlds import Page, Request, World

_log = logging.getLogger(__name__)

_READY = "**Ready.** Drag to turn, scroll or pinch to come nearer, W A S D to walk."
_DROP = "Or drop them on the page, with a file of cameras or without: then these are found."


class Visitor:
    """Shows the page to one of viser's clients until `leave`."""

    def __init__(self, client: Any, page: Page, uploads: Uploads):
        self._client, self._page, self._uploads = client, page, uploads
        self._key = client.client_id
        self._lock = threading.RLock()  # of what follows
        self._viewpoint = Viewpoint(client, page.scene, page.size)
        self._frustums = Frustums(client.scene, self._viewpoint, self._frustum_clicked)
        self._splats = Splats(client.scene, self._viewpoint)
        self._newest: Rendered | None = None
        self._seconds: dict[bool, float] = {}  # that the last coarse and full render took
        self._own: World | None = None  # of photographs that this visitor brought
        self._gone = False
        self._parts: list[Any] = []  # to close
        try:
            self._build()
            page.scene.gallery.listen(self._key, self._sync)
            self._sync()
            page.renderer.join(self._key, self._show)
            client.camera.on_update(self._moved)
            self._viewpoint.go_to_start()
            self._look()
        except BaseException:  # a browser that goes while the page is made
            self.leave()
            raise

    def leave(self) -> None:
        """Frees all that is this visitor's."""
        with self._lock:
            self._gone = True
            own, self._own = self._own, None
        for part in self._parts:
            part.close()
        self._page.renderer.leave(self._key)
        try:
            if own is not None:
                self._page.places.close(own)
            self._page.gallery.leave(self._key)
        finally:
            self._uploads.close()

    def tell(self, title: str, body: str, *, colour: str | None = None) -> None:
        """Shows a message on the page."""
        self._client.add_notification(title, body, color=colour, auto_close_seconds=12.0)

    def update_status(self) -> None:
        """Shows what is wrong, and in the details times and memory."""
        page, newest, memory = self._page, self._newest, self._page.memory
        gallery = self._viewpoint.world.gallery
        views, count = len(gallery.in_use), page.visitors()
        state = _READY
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
        cache = f"{views} of {gallery.max_views} views in the cache, "
        cache += f"{_megabytes(views * memory['per_view'])} of {_megabytes(memory['total'])}"
        visitors = f"{count} visitor{'s' if count > 1 else ''}"
        self._status.content = state
        self._details.content = "  \n".join(("; ".join(times), cache + _device_memory(), visitors))

    def _build(self) -> None:
        client, gui, page, safely = self._client, self._client.gui, self._page, self._safely
        self._status = gui.add_markdown("")
        self._place = gui.add_dropdown("Place", ["The scene"], visible=False)
        job = Job(gui, page.working, self.tell)
        tabs = gui.add_tab_group()
        with tabs.add_tab("View"):
            splats = page.scene.session.makes_gaussians
            self._view = ViewControls(
                gui, self._viewpoint, self._replace, self._save, safely, splats=splats
            )
        with tabs.add_tab("Photos"):
            drops = Drops(
                self._key, page, self._uploads, self._viewpoint, job, self.tell, self._enter_own
            )
            self._photographs = PhotographControls(
                gui, self._go_to, self._use, self._drop, drops.open_alone, safely
            )
        with tabs.add_tab("Path"):
            send = lambda name, content: client.send_file_download(  # noqa: E731
                name, content, save_immediately=True
            )
            paths = Paths(gui, self._viewpoint, page.size, job, send, safely)
        with tabs.add_tab("Compare"):
            self._comparison = Comparison(
                gui, self._viewpoint, self._frustums, page.size, page.loading, self._redraw
            )
        gui.add_divider()
        # Outside of the tabs: what is dropped on the page goes to it, so it must always be there.
        upload = gui.add_upload_button(
            "Add photographs", mime_type=".json,.zip,image/*", icon="photo-plus", color="gray"
        )
        gui.add_markdown(_DROP)
        with gui.add_folder("Details", expand_by_default=False):
            self._details = gui.add_markdown("")
        self._paths = paths
        self._parts = [self._comparison, paths, job]
        self._place.on_update(safely(lambda event: self._place_chosen(event)))
        self._comparison.next.on_click(safely(lambda _: self._comparison.go_to_next()))
        upload.on_upload(
            safely(lambda event: drops.receive(event.target.value.name, event.target.value.content))
        )

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
            finally:
                if self._gone:  # in the meantime
                    self._page.gallery.take_back(self._key)

        return call

    def _use(self, name: str) -> None:
        self._viewpoint.world.gallery.use(name)

    def _drop(self, name: str) -> None:
        self._viewpoint.world.gallery.drop(name)

    def _go_to(self, name: str) -> None:
        with self._lock:
            frustum = self._frustums.shown.get(name)
            if frustum is None:
                raise UserError(f"there is no photograph {name!r} any more")
            self._photographs.choose(name)
        self._viewpoint.go(frustum.listed.photograph.camera, name)

    def _frustum_clicked(self, name: str) -> None:
        self._safely(self._go_to)(name)

    def _save(self) -> None:
        """Lets the visitor download what they see, at full size."""
        if (request := self._viewpoint.request) is None:
            return
        file = io.BytesIO()
        Image.fromarray(request.render(self._page.size)).save(file, "PNG")
        self._client.send_file_download("view.png", file.getvalue(), save_immediately=True)

    def _enter_own(self, world: World) -> bool:
        """Enters a place of the visitor's own, instead of the one of before; not if they left."""
        with self._lock:
            if self._gone:
                return False
            before, self._own = self._own, world
            self._place.options = ["The scene", world.name]
            self._place.visible = True
            self._enter(world)
            self._place.value = world.name
        if before is not None:
            self._page.places.close(before)
        return True

    def _place_chosen(self, event: Any) -> None:
        if event.client is None:  # by `_enter_own`
            return
        with self._lock:
            own = self._own is not None and event.target.value == self._own.name
            self._enter(self._own if own else self._page.scene)

    def _enter(self, world: World) -> None:
        with self._lock, self._client.atomic():
            if world is self._viewpoint.world:
                return
            self._viewpoint.world.gallery.ignore(self._key)
            self._frustums.clear()
            self._splats.clear()
            self._viewpoint.enter(world)
            self._paths.enter()
            self._comparison.enter()
            world.gallery.listen(self._key, self._sync)
            self._newest = None
            self._sync()
            self._viewpoint.go_to_start()
        self._look()
        if world is not self._page.scene:  # the server renders again after changes of the scene
            world.gallery.listen(("render", self._key), self._look, of_views=True)

    async def _moved(self, _: Any) -> None:
        """Runs in viser's event loop, which keeps the order of messages."""
        self._look()

    def _look(self) -> None:
        """Asks for a render of what the visitor's window shows now."""
        if (request := self._viewpoint.look()) is not None:
            self._page.renderer.ask(self._key, request)

    def _show(self, result: Rendered) -> None:
        """Called by the renderer."""
        with self._lock, self._client.atomic():
            if self._gone or result.request.world is not self._viewpoint.world:
                return
            before, self._newest = self._newest, result
            if result.error is None:
                self._seconds[result.full] = result.seconds
                self._redraw()
            else:
                self._client.scene.set_background_image(None)
                self._splats.hide()
                known = before and str(before.error) == str(result.error)
                if not (known or isinstance(result.error, UserError)):
                    _log.error("a render failed", exc_info=result.error)
            self._hide()
            self._view.show()
            self.update_status()

    def _redraw(self) -> None:
        """Shows the newest render, with the photograph laid over it where there is one."""
        with self._lock:
            newest = self._newest
            if self._gone or newest is None or newest.error is not None:
                return
            request: Request = newest.request
            picture = self._comparison.over(request, newest.picture)
            image = geometry.fill_window(picture, request.window.aspect)
            session = request.world.session
            if session.makes_gaussians:
                visible = self._view.splats_shown and not self._comparison.covers
                self._splats.update(session.gaussians, visible=visible)
                image = behind(session.background) if visible else image
            self._client.scene.set_background_image(image, format="jpeg", jpeg_quality=88)

    def _replace(self) -> None:
        """Puts the frustums where they are on the page as it is now."""
        with self._lock, self._client.atomic():
            self._frustums.clear()
            self._sync()
        self._look()

    def _sync(self) -> None:
        """Shows frustums and list as the gallery is now, in the thread of whoever changed it."""
        if self._gone:
            return
        with self._lock, self._client.atomic():
            gallery = self._viewpoint.world.gallery
            items = gallery.listing()
            self._frustums.update(items)
            own = any(item.owner == self._key for item in items)
            self._photographs.update(gallery, items, own)
            self._hide()
            self.update_status()

    def _hide(self) -> None:
        with self._lock:
            if (request := self._viewpoint.request) is not None:
                self._frustums.hide(request.window, all_of_them=not self._view.cameras_shown)


def _megabytes(count: int) -> str:
    return f"{count / 2**20:.1f} MiB"


def _device_memory() -> str:
    """Memory in use on an accelerator, where it says so."""
    used = (jax.devices()[0].memory_stats() or {}).get("bytes_in_use")
    return "" if used is None else f"; {_megabytes(used)} in use on the device"
