"""Stands before viser's server: who is let in, what is let through, and how fast.

viser has no place for it. It starts a server of the package websockets, which is therefore replaced
while viser starts: it then looks at each handshake before it is answered, and at each message
before viser sees it. To close a connection later would be too late: what has come by then is read.
Like `server` this uses private names of viser 1.1, and is tested.
"""

import asyncio
import collections
import contextlib
import functools
import http
import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from typing import Any

import websockets.asyncio.server
from viser import _messages as messages
from websockets.asyncio.server import ServerConnection
from websockets.datastructures import Headers
from websockets.http11 import Request, Response

from lvsm_jax.common.errors import UserError
from lvsm_jax.common.text import printable, shortened
from lvsm_jax.viewer.access import Access, Answer
from lvsm_jax.viewer.messages import MAX_PART, check_message, check_update, is_button
from lvsm_jax.viewer.pace import Pace

_log = logging.getLogger(__name__)

# Each as Pace has it: so many a second, and so many at once.
_MESSAGES = 200.0, 600.0  # of a visitor
_USES = 3.0, 20.0  # of buttons, of a visitor
_DOORS = 10.0, 100.0  # new connections of all
_LINES = 1.0, 20.0  # of the log, about what strangers do

_MESSAGE_BYTES = 2**17  # a larger message counts as several: 25 MiB a second
_MOST_REFUSED = 20  # messages, before the connection is closed
_MOST_THREADS, _MOST_WAITING = 4, 100  # for what a visitor asked for
_WAITING = 8  # connections beside those of visitors: who comes, and who is told that it is full
_HEADERS = {"X-Frame-Options": "SAMEORIGIN", "X-Content-Type-Options": "nosniff"}
_lines = Pace(*_LINES)


def note(text: str) -> None:
    """Logs a line about what a stranger did, unless there were many just now."""
    if _lines.allows():
        _log.warning("%s", shortened(printable(text).replace("\n", " ")))


@contextlib.contextmanager
def guarding(access: Access, max_visitors: int) -> Iterator[None]:
    """Servers that start in the block let in whom `access` does, while there is room.

    Nobody is let in before the block is left.
    """
    start, doors, ready = websockets.asyncio.server.serve, Pace(*_DOORS), threading.Event()

    def serve(*where: Any, process_request: Callable[..., Any], **options: Any) -> Any:
        def answer(connection: ServerConnection, request: Request) -> Response | None:
            full = len(connection.server.connections) >= max_visitors + _WAITING
            try:
                page = process_request(connection, request)  # None for a websocket
                refusal = access.answer(request.path, _plain(request), socket=page is None)
            except (OSError, ValueError, LookupError) as error:  # paths and headers that are none
                refusal = Answer(http.HTTPStatus.BAD_REQUEST, f"no request of the page: {error}")
            if (
                refusal is None
                and page is None
                and (full or not ready.is_set() or not doors.allows())
            ):
                refusal = Answer(http.HTTPStatus.SERVICE_UNAVAILABLE, "too many connections")
            if refusal is not None:
                return _respond(connection, refusal)
            if page is not None:
                page.headers.update(_HEADERS)
            return page

        options |= {"max_size": MAX_PART + 2**16, "max_queue": 4, "logger": _connections_log()}
        return start(*where, process_request=answer, create_connection=_Connection, **options)

    websockets.asyncio.server.serve = serve
    try:
        yield
        ready.set()
    finally:
        websockets.asyncio.server.serve = start


def _plain(request: Request) -> dict[str, str]:
    """Headers by their names in lower case; of several with one name, none is believed alone."""
    names = {name.lower() for name, _ in request.headers.raw_items()}
    return {
        name: ("; " if name == "cookie" else ", ").join(request.headers.get_all(name))
        for name in names
    }


def _respond(connection: ServerConnection, answer: Answer) -> Response:
    if answer.status >= http.HTTPStatus.BAD_REQUEST:
        note(f"refused {connection.remote_address[0]}: {answer.text}")
    body = f"{shortened(printable(answer.text))}\n".encode()
    fields = {"Content-Type": "text/plain; charset=utf-8", "Content-Length": str(len(body))}
    headers = Headers(fields | dict(answer.headers))
    return Response(answer.status, answer.status.phrase, headers, body)


def _connections_log() -> logging.Logger:
    """Of connections: a handshake that fails is a line, without the traceback of its reader."""
    log = _log.getChild("connections")

    def one_line(record: logging.LogRecord) -> bool:
        if record.getMessage() != "opening handshake failed":
            return True
        if record.exc_info:
            note(f"a connection that was no request: {record.exc_info[1]}")
        return False

    if not log.filters:
        log.addFilter(one_line)
    return log


class _Connection(ServerConnection):
    """A visitor's, of which viser sees only messages of the page, at a bearable pace."""

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self._pace, self._refused = Pace(*_MESSAGES), 0
        self._closing: asyncio.Task | None = None

    async def recv(self, decode: bool | None = None) -> bytes | str:
        """The next message that is one."""
        while True:
            raw = await super().recv(decode)
            if (seconds := self._pace.delay(1.0 + len(raw) // _MESSAGE_BYTES)) > 0:
                await asyncio.sleep(seconds)  # meanwhile the sender has to wait
            if self._closing:
                continue  # its answer comes after what was sent before
            try:
                check_message(raw)
                return raw
            except UserError as error:
                note(f"refused what {self.remote_address[0]} sent: {error}")
            self._refused += 1
            if self._refused == _MOST_REFUSED:
                closing = self.close(1008, "these are no messages of the page")
                self._closing = asyncio.create_task(closing)


def mend_events(server: Any) -> None:
    """Lets any thread send messages by a server of viser's.

    viser wakes who waits for them from the thread that sends, which asyncio's events do not bear:
    now and then it raised an error, and a message was lost.
    """

    def mend(buffer: Any) -> None:
        buffer.message_event = _Event(buffer.event_loop)

    mend(server.get_message_buffer())  # to all
    server.on_client_connect(lambda connection: mend(connection.get_message_buffer()))


class _Event(asyncio.Event):
    """An event that is set in the thread of its loop alone."""

    def __init__(self, loop: asyncio.AbstractEventLoop):
        super().__init__()
        self._of = loop

    def set(self) -> None:
        """Sets it now, or soon if this is another thread."""
        try:
            inside = asyncio.get_running_loop() is self._of
        except RuntimeError:
            inside = False
        if inside:
            return super().set()
        with contextlib.suppress(RuntimeError):  # of a loop that has ended
            self._of.call_soon_threadsafe(super().set)


def watch(client: Any, executor: Executor) -> None:
    """Checks what one of viser's clients does to panel and scene, and has it done by `executor`.

    An element of the panel takes no value that it cannot have. Buttons go at a pace, and of the
    jobs of one visitor only some are done at a time, so that others have their turn.
    """
    gui, scene, uses = client.gui, client.scene, Pace(*_USES)
    connection = gui._websock_interface

    def tell(text: str) -> None:
        client.add_notification("Not so fast", text, color="red", auto_close_seconds=5.0)

    gui._thread_executor = scene._thread_executor = _Jobs(executor, tell)
    update = gui._handle_gui_updates

    async def checked_update(client_id: Any, message: Any) -> None:
        handle = gui._gui_input_handle_from_uuid.get(message.uuid)
        if handle is None or handle._impl.removed:
            return
        try:
            check_update(handle, message.updates)
        except UserError as error:
            note(f"refused a value of visitor {client_id}: {error}")
            return
        if is_button(handle) and not uses.allows():
            tell("Wait a few seconds before you go on.")
            return
        await update(client_id, message)

    connection.unregister_handler(messages.GuiUpdateMessage, update)
    connection.register_handler(messages.GuiUpdateMessage, checked_update)


class _Jobs:
    """A visitor's part of an executor: a few jobs at a time, in their order, and not many wait."""

    def __init__(self, executor: Executor, tell: Callable[[str], None]):
        self._executor, self._tell = executor, tell
        self._waiting: collections.deque[tuple[Future, Callable[[], Any]]] = collections.deque()
        self._threads, self._lock = 0, threading.Lock()

    def submit(self, job: Callable[..., Any], *arguments: Any) -> Future:
        """A future of the job, or one that is done if too many wait."""
        future: Future = Future()
        with self._lock:
            if full := len(self._waiting) >= _MOST_WAITING:
                future.set_result(None)
            else:
                self._waiting.append((future, functools.partial(job, *arguments)))
                if self._threads < _MOST_THREADS:
                    self._executor.submit(self._work)
                    self._threads += 1
        if full:
            self._tell("Wait until what you asked for is done.")
        return future

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._threads -= 1
                    return
                future, job = self._waiting.popleft()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(job())
            except BaseException as error:
                future.set_exception(error)
