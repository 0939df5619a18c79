"""Watches what Python does while a file is read: time, memory, and whatever runs."""

import contextlib
import resource
import signal
import sys
import tempfile
from collections.abc import Iterator

# Of what a reader does, none of these may come from the file.
_FORBIDDEN = (
    *("os.system", "os.exec", "os.posix_spawn", "os.spawn", "pty.spawn", "subprocess.Popen"),
    *("os.remove", "os.rename", "os.rmdir", "shutil.rmtree", "socket.connect"),
    *("pickle.find_class", "webbrowser.open"),
)
_events: list[str] | None = None  # None while nothing is watched
_hooked = False


def _note(event: str, arguments: tuple) -> None:
    if _events is None:
        return
    if event in _FORBIDDEN:
        _events.append(f"{event}{arguments!r:.200}")
    # Modules of the program and its packages may be imported at any time, but none of the input.
    elif event == "exec" and arguments[0].co_filename.startswith(tempfile.gettempdir()):
        _events.append(f"exec {arguments[0].co_filename}")


@contextlib.contextmanager
def watched(seconds: int, *, allowed: tuple[str, ...] = ()) -> Iterator[None]:
    """Fails for what takes longer, and for what runs something; `allowed` begin its events."""
    global _events, _hooked
    if not _hooked:
        sys.addaudithook(_note)  # for good: there is no way to take it off
        _hooked = True

    def late(*_: object) -> None:
        raise AssertionError(f"still reading after {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    _events = []
    try:
        yield
    finally:
        events, _events = _events, None
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    ran = [event for event in events if not event.startswith(allowed or ("\0",))]
    assert not ran, f"reading ran {ran[:3]}"


def peak_bytes() -> int:
    """The most memory that this process ever had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
