"""Long work of a visitor: a thread of its own, progress on the page, and a way to stop it."""

import logging
import threading
from collections.abc import Callable
from typing import Any

from lvsm_jax.common.errors import UserError

_log = logging.getLogger(__name__)

_TURN = 0.2  # seconds between looks at whether to stop


class Stopped(Exception):
    """Raised in a job that is to stop."""


# Shows how far a job is, a share in [0, 1] or None, and in words; raises Stopped if it is to stop.
Report = Callable[[float | None, str], None]


class Job:
    """One long job at a time of one visitor, and of all visitors while it has `turn`.

    Errors are shown by `tell(title, message, colour=…)`; nothing else stops for them.
    """

    def __init__(self, gui: Any, turn: threading.Semaphore, tell: Callable[..., None]):
        self._turn, self._tell = turn, tell
        self._stop: threading.Event | None = None  # of the job that runs
        self._gone = False
        self._lock = threading.Lock()
        self._words = gui.add_markdown("", visible=False)
        self._bar = gui.add_progress_bar(0.0, visible=False)
        self._button = gui.add_button("Stop this", visible=False, color="gray")
        self._button.on_click(lambda _: self.stop())

    def start(self, title: str, work: Callable[[Report], None]) -> None:
        """Begins work in a thread; UserError if there is some already."""
        with self._lock:
            if self._gone:
                return
            if self._stop is not None:
                raise UserError("one thing at a time: wait for what is running, or stop it")
            self._stop = threading.Event()
            arguments = title, work, self._stop
            threading.Thread(target=self._run, args=arguments, name="job", daemon=True).start()

    def stop(self) -> None:
        """Asks the job that runs, if one does, to stop."""
        with self._lock:
            if self._stop is not None:
                self._stop.set()

    def close(self) -> None:
        """Stops the job for good: the visitor has left."""
        with self._lock:
            self._gone = True
        self.stop()

    def _run(self, title: str, work: Callable[[Report], None], stop: threading.Event) -> None:
        def report(share: float | None, words: str) -> None:
            if stop.is_set():
                raise Stopped
            self._bar.animated = share is None
            self._bar.value = 100.0 if share is None else 100.0 * min(1.0, max(0.0, share))
            self._words.content = words

        try:
            report(None, f"{title} …")
            self._show(True)
            while not self._turn.acquire(timeout=_TURN):
                report(None, f"{title}: waits for the work of another visitor")
            try:
                work(report)
            finally:
                self._turn.release()
        except Stopped:
            _log.info("%s: stopped", title)
        except (UserError, OSError) as error:
            self._say(title, str(error))
        except Exception as error:
            if not self._gone:
                _log.exception("%s failed", title)
                self._say(title, f"{type(error).__name__} at the server, whose log says more")
        finally:
            self._show(False)
            with self._lock:
                self._stop = None

    def _say(self, title: str, message: str) -> None:
        if not self._gone:
            self._tell(f"{title}: that did not work", message, colour="red")

    def _show(self, visible: bool) -> None:
        if not self._gone:
            for handle in (self._words, self._bar, self._button):
                handle.visible = visible
