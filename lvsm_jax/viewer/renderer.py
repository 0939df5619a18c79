"""One thread that renders for all visitors."""

import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Hashable
from typing import Any

_log = logging.getLogger(__name__)

_NOTHING, _COARSE, _FULL = range(3)


@dataclasses.dataclass(frozen=True)
class Rendered:
    """The answer to a request."""

    request: Any
    full: bool  # whether it is final, not coarse
    picture: Any  # what `render` returned, None if it failed
    error: Exception | None  # why it failed
    seconds: float  # that `render` took
    dropped: int  # requests of this visitor that were never rendered so far


@dataclasses.dataclass
class _Visitor:
    """Gets results by `show`; the `request` of the time `since` is rendered as `done` says."""

    show: Callable[[Rendered], None]
    request: Any = None
    since: float = 0.0
    done: int = _FULL
    dropped: int = 0


class Renderer:
    """Renders the newest request of each visitor, in turns, in a thread of its own.

    An older request that is not yet begun is dropped. A request is rendered coarse at once, and in
    full once it has stood for `settle` seconds. Where the last full render took less than `quick`
    seconds there are no coarse ones: all are full at once. What `render(request, full)` raises goes
    to the visitor who asked. Methods may be called from any thread and return at once, but for
    `close`.
    """

    def __init__(
        self,
        render: Callable[[Any, bool], Any],
        *,
        settle: float = 0.2,
        quick: float = 0.05,
    ):
        self._render, self._settle, self._quick = render, settle, quick
        self._last_full = float("inf")  # seconds that it took
        self._visitors: dict[Hashable, _Visitor] = {}  # in the order of their turns
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="renderer", daemon=True)
        self._thread.start()

    def join(self, key: Hashable, show: Callable[[Rendered], None]) -> None:
        """Adds a visitor; `show` is called in the renderer's thread and should be quick."""
        with self._changed:
            self._visitors[key] = _Visitor(show)

    def leave(self, key: Hashable) -> None:
        """Removes a visitor, if they are there; nothing more is shown to them."""
        with self._changed:
            self._visitors.pop(key, None)

    def ask(self, key: Hashable, request: Any) -> None:
        """Replaces the request of a visitor, if they are there."""
        with self._changed:
            if visitor := self._visitors.get(key):
                visitor.dropped += visitor.done == _NOTHING
                visitor.request, visitor.since, visitor.done = request, time.monotonic(), _NOTHING
                self._changed.notify()

    def refresh(self, concerns: Callable[[Any], bool] = lambda _: True) -> None:
        """Renders the requests that a change `concerns` again: by default all."""
        with self._changed:
            for visitor in self._visitors.values():
                if visitor.request is not None and concerns(visitor.request):
                    visitor.done = _NOTHING
            self._changed.notify()

    def close(self) -> None:
        """Stops after the current render."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._closed and (turn := self._next()) is None:
                    self._changed.wait(self._pause())
                if self._closed:
                    return
            self._serve(*turn)

    def _next(self) -> tuple[Hashable, _Visitor, Any, bool] | None:
        """The visitor whose turn it is, and what to render; they then go to the end of the row."""
        now = time.monotonic()
        for key, visitor in self._visitors.items():
            settled = now - visitor.since >= self._settle
            if visitor.done == _FULL or (visitor.done == _COARSE and not settled):
                continue
            full = settled or self._last_full < self._quick
            visitor.done = _FULL if full else _COARSE
            self._visitors[key] = self._visitors.pop(key)
            return key, visitor, visitor.request, full
        return None

    def _pause(self) -> float | None:
        """Seconds until the next request settles, None if there is none."""
        waiting = [v.since for v in self._visitors.values() if v.done == _COARSE]
        return max(0.0, min(waiting) + self._settle - time.monotonic()) if waiting else None

    def _serve(self, key: Hashable, visitor: _Visitor, request: Any, full: bool) -> None:
        start, picture, error = time.perf_counter(), None, None
        try:
            picture = self._render(request, full)
        except Exception as caught:
            error = caught
        seconds = time.perf_counter() - start
        if full and error is None:
            self._last_full = seconds
        with self._changed:
            if self._visitors.get(key) is not visitor:  # has left
                return
        try:
            visitor.show(Rendered(request, full, picture, error, seconds, visitor.dropped))
        except Exception:
            _log.exception("a picture could not be shown")
