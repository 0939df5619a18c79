"""viser's server with the limits that it lacks, and the visitors.

Written for viser 1.1: its private names are used here and in `guard`, nowhere else, and tested.
"""

import contextlib
import io
import pathlib
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import viser
from viser import _messages as messages

from lvsm_jax.rendering.session import Session
from lvsm_jax.scenes.photograph import PosedCamera
from lvsm_jax.viewer import geometry, guard
from lvsm_jax.viewer.access import Access, is_loopback
from lvsm_jax.viewer.gallery import Gallery
from lvsm_jax.viewer.messages import MAX_PART
from lvsm_jax.viewer.renderer import Renderer
from lvsm_jax.viewer.uploads import Limits, Uploads
from lvsm_jax.viewer.viewpoint import WALKING, frame_at
from lvsm_jax.viewer.visitor import Visitor
from lvsm_jax.viewer.worlds import Page, Places, World

_JOBS = 16  # that are done at a time, for all visitors
_EVERYWHERE = ("", "0.0.0.0", "::")
_PAGE = pathlib.Path(__file__).with_name("page.js")
_PANEL = 340  # pixels


class Viewer:
    """Serves the page at `url` until `close`.

    The session, which is not closed, renders in two `sizes` (height and width, coarse and full)
    from the gallery, of which one photograph at least is in use. Visitors stand at `start` first;
    more than `max_visitors` are told that there is no room, and `limits` are of each one's uploads.
    With a `token` only who has it comes in: `url` then carries it. Port 0 is any that is free.
    Raises OSError for a port that is taken or a host elsewhere.
    """

    def __init__(
        self,
        session: Session,
        gallery: Gallery,
        *,
        sizes: tuple[tuple[int, int], tuple[int, int]],
        start: PosedCamera,
        host: str = "127.0.0.1",
        port: int = 8080,
        token: str | None = None,
        max_visitors: int = 8,
        limits: Limits = Limits(),  # noqa: B008, frozen
    ):
        scene = World.of("The scene", session, gallery, start)
        check_address(host, port)
        self._limits, self._max_visitors = limits, max_visitors
        self._visitors: dict[int, Visitor | None] = {}  # None while the page is made
        self._lock = threading.Lock()
        self._page = Page(
            scene=scene,
            places=Places(scene, sizes[1]),
            renderer=Renderer(lambda request, full: request.render(sizes[full])),
            sizes=sizes,
            loading=ThreadPoolExecutor(1, "photographs"),
            working=threading.Semaphore(),
            memory=session.memory,
            visitors=lambda: len(self._visitors),
        )
        refresh = self._page.renderer.refresh
        of_scene = lambda request: request.world is scene  # noqa: E731
        gallery.listen(self, lambda: refresh(of_scene), of_views=True)
        access = Access(is_loopback(host), token)
        # viser prints a banner.
        with contextlib.redirect_stdout(io.StringIO()), guard.guarding(access, max_visitors):
            self._server = _Server(host, port, label="lvsm_jax", verbose=False)
            guard.mend_events(self._server._websock_server)
            # Apart from viser's threads, which let visitors in and out.
            self._jobs = ThreadPoolExecutor(_JOBS, "jobs of visitors")
        theme = {"dark_mode": True, "show_logo": False, "show_share_button": False}
        self._server.gui.configure_theme(**theme)
        panel = self._server.gui.main_panel
        panel.dock_right()  # floating, it would hide part of the render
        panel.set_width(_PANEL)
        frame = frame_at(scene, WALKING)
        c2w, view = frame.to_page(start.c2w), self._server.initial_camera
        view.position = c2w[:3, 3]
        view.look_at = c2w[:3, 3] + frame.distance * c2w[:3, 2]
        view.up = geometry.upright(c2w)
        view.fov = geometry.field_of_view(start, sizes[1], 16 / 9)
        self._server.on_client_connect(self._enter)
        self._server.on_client_disconnect(self._exit)
        name = socket.gethostname() if host in _EVERYWHERE else host
        shown = f"[{name}]" if ":" in name else name
        self.url = access.link(f"http://{shown}:{self._server.get_port()}")

    def close(self) -> None:
        """Stops serving and rendering, and deletes uploads."""
        self._server.stop()
        # Callbacks that are running use session and gallery.
        self._jobs.shutdown()
        self._server._thread_executor.shutdown()
        with self._lock:
            visitors, self._visitors = self._visitors, {}
        for visitor in filter(None, visitors.values()):
            visitor.leave()
        self._page.renderer.close()
        self._page.loading.shutdown(cancel_futures=True)

    def _enter(self, client: Any) -> None:
        with self._lock:
            full = len(self._visitors) >= self._max_visitors
            if not full:
                self._visitors[client.client_id] = None
        if full:
            here = f"**{self._max_visitors} visitors are here already**"
            rest = "and there is room for no more. Reload the page later."
            client.gui.add_markdown(f"{here}, {rest}")
            return
        guard.watch(client, self._jobs)
        _limit_uploads(client, self._limits.bytes)
        _run_javascript(client, _PAGE.read_text("utf-8"))
        visitor = Visitor(client, self._page, Uploads(self._limits))
        with self._lock:
            # The visitor may have left meanwhile, and `_exit` even have come before `_enter`.
            there = client.client_id in self._visitors
            there &= client.client_id in self._server.get_clients()
            if there:
                self._visitors[client.client_id] = visitor
            else:
                self._visitors.pop(client.client_id, None)
        if not there:
            visitor.leave()
        self._tell_all()

    def _exit(self, client: Any) -> None:
        with self._lock:
            visitor = self._visitors.pop(client.client_id, None)
        if visitor:
            visitor.leave()
            self._tell_all()

    def _tell_all(self) -> None:
        with self._lock:
            visitors = list(filter(None, self._visitors.values()))
        for visitor in visitors:
            visitor.update_status()


def check_address(host: str, port: int) -> None:
    """Raises OSError if the port cannot be had: viser would take another or wait forever."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port), family=family).close()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OSError(f"cannot listen at {host}, port {port}: {reason}") from None


class _Server(viser.ViserServer):
    """Never shares over the internet."""

    def request_share_url(self, *_: Any, **__: Any) -> None:
        """Refuses what a visitor's browser can ask of viser: a public address of this server."""
        guard.note("a visitor asked for a public address, which is refused")


def _run_javascript(client: Any, source: str) -> None:
    """Runs a script of ours in a visitor's browser."""
    client.gui._websock_interface.queue_message(messages.RunJavascriptMessage(source=source))


def _limit_uploads(client: Any, max_bytes: int) -> None:
    """Refuses files above the limit by the size they declare, and parts beyond that size.

    viser itself only limits a message, to 50 MB, and keeps all parts that come.
    """
    gui, connection = client.gui, client.gui._websock_interface
    transfers = gui._current_file_upload_states

    def refuse(message: Any, total: int, reason: str) -> None:
        transfers.pop(message.transfer_uuid, None)
        ids = message.source_component_uuid, message.transfer_uuid
        # The browser's button waits for it.
        connection.queue_message(messages.FileTransferPartAck(*ids, total, total))
        guard.note(f"refused an upload: {reason}")
        client.add_notification("Not uploaded", reason, color="red", auto_close_seconds=12.0)

    def start(client_id: Any, message: Any) -> None:
        size, parts = message.size_bytes, message.part_count
        if transfers:
            refuse(message, size, "one file at a time")
        elif not 0 <= size <= max_bytes or not 0 <= parts <= max_bytes // 2**16 + 1:
            sizes = f"{size / 2**20:.1f} MiB, of {max_bytes / 2**20:g} MiB"
            refuse(message, size, f"the file has {sizes} allowed")
        else:
            gui._handle_file_transfer_start(client_id, message)

    def part(client_id: Any, message: Any) -> None:
        transfer = transfers.get(message.transfer_uuid)
        if transfer is None:  # refused
            return
        size = len(message.content)
        if size > MAX_PART or transfer["transferred_bytes"] + size > transfer["total_bytes"]:
            refuse(message, transfer["total_bytes"], "the file is larger than it said")
        else:
            gui._handle_file_transfer_part(client_id, message)

    for kind, theirs, ours in (
        (messages.FileTransferStartUpload, gui._handle_file_transfer_start, start),
        (messages.FileTransferPart, gui._handle_file_transfer_part, part),
    ):
        connection.unregister_handler(kind, theirs)
        connection.register_handler(kind, ours)
