"""The viewer's renderer: turns, dropped requests, coarse and full."""

import itertools
import threading
import time

import pytest

from lvsm_jax.viewer.renderer import Renderer

WAIT = 20  # seconds that no test should need


class Gate:
    """A render that waits to be let through, one at a time."""

    def __init__(self):
        self.calls, self.asked = [], threading.Semaphore(0)
        self.through = threading.Semaphore(0)

    def __call__(self, request, full):
        self.calls.append((request, full))
        self.asked.release()
        assert self.through.acquire(timeout=WAIT)
        if request == "bad":
            raise ValueError("a bad one")
        return f"picture of {request}"

    def wait(self):
        assert self.asked.acquire(timeout=WAIT)

    def let(self, count=1):
        self.through.release(count)


class Screen:
    def __init__(self):
        self.shown, self.new, self.seen = [], threading.Semaphore(0), itertools.count()

    def __call__(self, result):
        self.shown.append(result)
        self.new.release()

    def wait(self):
        assert self.new.acquire(timeout=WAIT)
        return self.shown[next(self.seen)]


@pytest.fixture
def gate():
    return Gate()


@pytest.fixture
def slow(gate):
    """Whose requests never settle by themselves."""
    renderer = Renderer(gate, settle=1e6)
    yield renderer
    gate.let(100)
    renderer.close()


def test_only_the_newest_request_is_rendered(slow, gate):
    screen = Screen()
    slow.join("a", screen)
    slow.ask("a", 0)
    gate.wait()  # is being rendered
    for request in range(1, 6):
        slow.ask("a", request)
    gate.let(2)
    assert screen.wait().request == 0
    result = screen.wait()
    assert (result.request, result.picture, result.full) == (5, "picture of 5", False)
    assert gate.calls == [(0, False), (5, False)]
    assert result.dropped == 4
    assert result.seconds > 0 and result.error is None


def test_visitors_take_turns(slow, gate):
    screens = {name: Screen() for name in "abc"}
    for name, screen in screens.items():
        slow.join(name, screen)
    slow.ask("a", "a0")
    gate.wait()
    for name in "abc":
        slow.ask(name, f"{name}1")
    gate.let()
    for number in range(2, 6):  # a asks again whenever it has been served
        gate.wait()
        slow.ask("a", f"a{number}")
        gate.let()
    for name in "bc":
        screens[name].wait()
    assert [request for request, _ in gate.calls[:4]] == ["a0", "b1", "c1", "a3"]


def test_what_stands_still_is_rendered_in_full_once(gate):
    renderer, screen = Renderer(gate, settle=0.05), Screen()
    gate.let(100)
    renderer.join("a", screen)
    renderer.ask("a", 1)
    assert not screen.wait().full
    assert screen.wait().full
    renderer.refresh()  # stands already
    assert screen.wait().full
    renderer.close()
    assert gate.calls == [(1, False), (1, True), (1, True)]


def test_errors_are_told_and_the_renderer_goes_on(slow, gate, caplog):
    def broken(_):
        broken_called.set()
        raise RuntimeError("cannot show")

    broken_called, screen = threading.Event(), Screen()
    gate.let(100)
    slow.join("a", screen)
    slow.join("b", broken)
    slow.ask("a", "bad")
    result = screen.wait()
    assert result.picture is None and str(result.error) == "a bad one"
    slow.ask("b", 1)
    assert broken_called.wait(WAIT)
    slow.ask("a", "good")
    assert screen.wait().picture == "picture of good"
    assert "cannot show" in caplog.text


def test_who_leaves_is_shown_nothing(slow, gate):
    gone, stays = Screen(), Screen()
    slow.join("gone", gone)
    slow.join("stays", stays)
    slow.ask("gone", 1)
    gate.wait()
    slow.ask("gone", 2)
    slow.leave("gone")
    slow.ask("gone", 3)
    slow.ask("stays", 4)
    gate.let(2)
    stays.wait()
    assert not gone.shown
    assert [request for request, _ in gate.calls] == [1, 4]
    slow.leave("gone")


def test_closing_waits_for_the_render(gate):
    renderer, closed = Renderer(gate, settle=1e6), threading.Event()
    renderer.join("a", Screen())
    renderer.ask("a", 1)
    gate.wait()
    closing = threading.Thread(target=lambda: (renderer.close(), closed.set()))
    closing.start()
    assert not closed.wait(0.05)
    gate.let()
    assert closed.wait(WAIT)


def test_a_quick_model_renders_no_coarse_pictures():
    """As soon as a full render was quick, and until one is not."""
    seconds, calls, screen = [0.0], [], Screen()

    def render(request, full):
        calls.append((request, full))
        time.sleep(seconds[0])

    renderer = Renderer(render, settle=0.05, quick=0.2)
    renderer.join("a", screen)
    renderer.ask("a", 1)
    assert not screen.wait().full  # nothing is known yet
    assert screen.wait().full
    seconds[0] = 0.3
    renderer.ask("a", 2)
    assert screen.wait().full  # at once, and only once
    renderer.ask("a", 3)
    assert not screen.wait().full
    renderer.close()
    assert calls[:4] == [(1, False), (1, True), (2, True), (3, False)]


def test_only_whom_a_change_concerns_is_rendered_again(gate):
    renderer, screens = Renderer(gate, settle=0.0), {name: Screen() for name in "ab"}
    gate.let(100)
    for name, screen in screens.items():
        renderer.join(name, screen)
        renderer.ask(name, name)
        screen.wait()
    renderer.refresh(lambda request: request == "b")
    screens["b"].wait()
    renderer.close()
    assert gate.calls == [("a", True), ("b", True), ("b", True)]
