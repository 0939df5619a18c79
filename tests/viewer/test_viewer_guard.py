"""A real viewer among strangers: handshakes, messages and jobs, without a browser."""

import asyncio
import contextlib
import http.client
import logging
import socket
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest

pytest.importorskip("viser")
from websockets.exceptions import ConnectionClosed, InvalidStatus

from experiments.viewer_client import ViewerClient
from lvsm_jax.viewer import guard
from tests.helpers.viewer_scene import archive, open_viewer, picture, poses_json

TOKEN, WAIT, VISITORS = "a-token", 30.0, 3


@pytest.fixture(scope="module")
def viewer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scene")
    with open_viewer(folder, token=TOKEN, max_visitors=VISITORS) as viewer:
        viewer.renders, render = [], viewer.session.render
        viewer.session.render = lambda *a, **k: viewer.renders.append(0) or render(*a, **k)
        yield viewer


@pytest.fixture
def visit(viewer, monkeypatch, caplog):
    """Makes visitors, who leave at the end; no test may leave a traceback in the log."""
    # Each test begins with an empty log of strangers.
    monkeypatch.setattr(guard, "_lines", guard.Pace(1e6, 1e6))
    clients = []

    def visit(**options) -> ViewerClient:
        client = ViewerClient(viewer.url, **options)
        clients.append(client)
        client.stand((0.0, -1.0, 0.2))
        client.wait_for(lambda: client.jpeg, "a picture")
        return client

    with caplog.at_level(logging.WARNING):
        yield visit
    for client in clients:
        client.close()
    until(lambda: not viewer._visitors, "the visitors to be gone")
    assert "Traceback" not in caplog.text


def until(condition, what: str, wait: float = WAIT):
    end = time.monotonic() + wait
    while not condition():
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.02)


def place(viewer) -> str:
    return viewer.url.partition("/?")[0]


def test_the_token_opens_the_page_and_the_socket(viewer, visit):
    host = place(viewer).removeprefix("http://")
    connection = http.client.HTTPConnection(host, timeout=WAIT)
    connection.request("GET", f"/?token={TOKEN}")
    answer = connection.getresponse()
    cookie = answer.getheader("Set-Cookie").partition(";")[0]
    assert (answer.status, answer.getheader("Location")) == (303, "/")
    connection = http.client.HTTPConnection(host, timeout=WAIT)
    connection.request("GET", "/", headers={"Cookie": cookie})
    answer = connection.getresponse()
    assert answer.status == 200 and b"<html" in answer.read()
    assert answer.getheader("X-Frame-Options") == "SAMEORIGIN"
    assert visit(origin=place(viewer)).picture().std() > 3


def test_without_it_nothing_is_served(viewer, visit, caplog):
    for path in ("/", "/index.html", "/?token=wrong"):
        with pytest.raises(urllib.error.HTTPError, match="403") as error:
            urllib.request.urlopen(place(viewer) + path, timeout=WAIT)
        assert "open the whole link" in error.value.read().decode()
    for url in (place(viewer), f"{place(viewer)}/?token=wrong"):
        with pytest.raises(InvalidStatus, match="403"):
            ViewerClient(url)
    with pytest.raises(InvalidStatus, match="403"):
        ViewerClient(viewer.url, origin="http://evil.example")
    assert len(caplog.records) == 6 and TOKEN not in caplog.text


def test_requests_that_are_none_are_a_line(viewer, visit, caplog):
    host, port = place(viewer).removeprefix("http://").split(":")
    requests = (
        b"\x16\x03\x01 hello\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"x" * 9000 + b"\r\n\r\n",
        b"GET /" + b"a" * 3000 + b" HTTP/1.1\r\nCookie: " + b"=" * 3000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nUpgrade: websocket\r\nUpgrade: websocket\r\nHost: [\r\n\r\n",
        b"GET / HTTP/1.1\r\nUpgrade: websocket\r\nOrigin: http://[\r\nHost: [\r\n\r\n",
        b"GET / HTTP/1.1\r\nAccept-Encoding: a\r\nAccept-Encoding: b\r\nHost: x\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello",
        b"GET /%00%ff?token=%00 HTTP/1.1\r\nHost: \xff\xfe\x1b\r\n\r\n",
        b"GET http://[/ HTTP/1.1\r\nHost: x\r\n\r\n",
    )
    for request in requests:
        with socket.create_connection((host, int(port)), timeout=WAIT) as stranger:
            stranger.sendall(request)
            answer = stranger.recv(2**16)
        assert not answer or answer.startswith(b"HTTP/1.1 4"), request
    until(lambda: len(caplog.records) >= len(requests), "a line of each")
    assert all(len(r.getMessage()) < 400 and r.exc_info is None for r in caplog.records)
    assert visit().jpeg


def test_messages_that_are_none_are_dropped_and_then_the_visitor(viewer, visit, caplog):
    client, other = visit(), visit()
    client.send_raw(b"\xc1")
    client.send_raw("text")
    client.send("ShareUrlRequest")
    client.send("GuiFormDirtyMessage", uuid="x")
    client.send("RunJavascriptMessage", source="alert(1)")
    client.send("ViewerCameraMessage", wxyz=[float("nan")] * 4)
    client.send("GuiUpdateMessage", uuid="nothing", updates={"value": 1})
    for owner in ("", "nobody", str(min(viewer._visitors))):
        at = {"ray_origin": [0, 0, 0], "ray_direction": [0, 0, 1], "screen_pos": [0.5, 0.5]}
        rest = {"instance_index": None, "modifier": None, "owner": owner}
        client.send("SceneNodeClickMessage", name="/nothing", **at, **rest)
    parts = {"source_component_uuid": "nothing", "transfer_uuid": "x"}
    about = {"filename": "../x", "mime_type": "", "part_count": 2, "size_bytes": 9}
    client.send("FileTransferPart", **parts, part_index=2**53, content=b"x")
    client.send("FileTransferStartUpload", **parts, **about)
    client.send("FileTransferPart", **parts, part_index=1, content=b"x")
    shown = client.pictures
    client.stand((0.1, -1.0, 0.2))
    client.wait_for(lambda: client.pictures > shown, "the picture after them")
    assert "FormDirty" not in str(other.notifications) and not client.closed
    for _ in range(30):
        if client.closed:
            break
        with contextlib.suppress(ConnectionClosed):  # meanwhile
            client.send_raw(b"\xc1")
    client.wait_for(lambda: client.closed, "the connection to be closed")
    until(lambda: len(viewer._visitors) == 1, "the visitor to be forgotten")
    assert not other.closed and len(caplog.records) <= 26


def test_a_large_message_ends_the_connection_alone(viewer, visit):
    client, other = visit(), visit()
    client.send_raw(bytes(10 * 2**20))
    client.wait_for(lambda: client.closed, "the connection to be closed")
    assert not other.closed


def test_values_that_an_element_cannot_have(viewer, visit, tmp_path, caplog):
    """Above all: a path is one of those listed, not a file of the server."""
    client = visit()
    file = tmp_path / "path.json"
    file.write_bytes(poses_json({"a.png": 0}))
    [path] = client.elements("GuiDropdown", "dolly")
    slider, *_ = client.elements("GuiSlider")
    for number, (element, updates) in enumerate(
        (
            (path, {"value": str(file)}),
            (path, {"value": "../../../etc/passwd"}),
            (path, {"value": "dolly", "options": [str(file)]}),
            (slider, {"value": 1e9}),
            (slider, {"value": float("nan")}),
            (slider, {"value": 1.0, "update_cb": "x"}),
        ),
        1,
    ):
        client.update(element["uuid"], updates)
        until(lambda n=number: len(caplog.records) == n, "a line")
        assert "refused" in caplog.records[-1].getMessage()
    client.update(path["uuid"], {"value": "dolly"})
    [gui] = (visitor.gui for visitor in viewer._server.get_clients().values())
    handles = gui._gui_input_handle_from_uuid
    until(lambda: handles[path["uuid"]].value == "dolly", "the path that is listed")
    assert handles[slider["uuid"]].value == slider["value"]


def test_who_leaves_renders_nothing_anew(viewer, visit):
    """Unless photographs in use go with them."""
    stays = visit()
    members = {"cameras.json": poses_json({"mine.png": 4}), "mine.png": picture(99)}
    for uploads in (False, True):
        leaves = visit()
        if uploads:
            leaves.upload("mine.zip", archive(members))
            until(lambda: len(viewer.gallery.in_use) == 4, "the photograph")
        for client in (stays, leaves):
            client.wait_until_settled(0.6)
        before, shown = len(viewer.renders), stays.jpeg
        leaves.close()
        until(lambda: len(viewer._visitors) == 1, "the visitor to be gone")
        until(lambda: len(viewer.gallery.in_use) == 3, "their photograph to be gone")
        stays.wait_until_settled(0.6)
        assert (len(viewer.renders) > before) == uploads
        assert (stays.jpeg != shown) == uploads


def test_there_is_room_for_so_many_connections(viewer, visit):
    clients = [visit() for _ in range(VISITORS)]
    more = []
    with pytest.raises(InvalidStatus, match="503"):
        for _ in range(20):
            more.append(ViewerClient(viewer.url))
    assert len(more) == guard._WAITING
    more[0].stand((0.0, -1.0, 0.2))
    more[0].wait_for(lambda: "visitors are here already" in more[0].texts(), "what is told")
    for client in more:
        client.close()
    assert not any(client.closed for client in clients)


def test_who_clicks_too_fast_is_told(viewer, visit):
    client, other = visit(), visit()
    button, *_ = client.elements("GuiButtonMessage")
    for _ in range(60):
        client.update(button["uuid"], {"value": True})
    client.wait_for(lambda: any("Not so fast" in n for n in client.notifications), "a word")
    shown = other.pictures
    other.stand((0.3, -1.0, 0.2))
    other.wait_for(lambda: other.pictures > shown, "the other visitor's picture")


def test_a_flood_of_messages_waits_its_turn(viewer, visit, monkeypatch):
    monkeypatch.setattr(guard, "_MESSAGES", (50.0, 10.0))
    client = visit()
    begin = time.monotonic()
    for number in range(60):
        client.stand((0.01 * number, -1.0, 0.2))
    data = msgspec.msgpack.encode({"type": "ShareUrlRequest"})
    for _ in range(30):  # the last of which is refused after all others have been read
        if not client.closed:
            client.send_raw(data)
    client.wait_for(lambda: client.closed, "the end")
    assert time.monotonic() - begin > 1.0


def test_any_thread_may_send_messages():
    """Waiting for messages begins and ends in the loop's thread alone."""
    loop, woken = asyncio.new_event_loop(), []

    async def wait():
        event, here = guard._Event(loop), threading.get_ident()

        class Waiter(asyncio.Future):
            def set_result(self, result):
                woken.append(threading.get_ident() == here)
                super().set_result(result)

        event._waiters.append(waiter := Waiter())
        other = threading.Thread(target=event.set)
        other.start()
        other.join(WAIT)
        assert not event.is_set() and not woken
        await asyncio.wait_for(waiter, WAIT)
        assert event.is_set()
        event.clear()
        event.set()  # here it is set at once
        assert event.is_set()
        return event

    event = loop.run_until_complete(wait())
    assert woken == [True]
    loop.close()
    event.set()  # nobody is there any more


def test_the_events_of_all_connections_are_those(viewer, visit):
    visit()
    server = viewer._server._websock_server
    [state] = server._client_state_from_id.values()
    for buffer in (server.get_message_buffer(), state.message_buffer):
        assert isinstance(buffer.message_event, guard._Event)


def test_jobs_of_one_visitor_leave_room_for_others():
    told, done, gate = [], [], threading.Event()
    running = threading.Semaphore(0)

    def job(number):
        running.release()
        assert gate.wait(WAIT)
        done.append(number)

    with ThreadPoolExecutor(32) as executor:
        jobs = guard._Jobs(executor, told.append)
        futures = [jobs.submit(job, number) for number in range(200)]
        for _ in range(guard._MOST_THREADS):
            assert running.acquire(timeout=WAIT)
        assert executor.submit(lambda: "another's").result(WAIT)
        assert not running.acquire(timeout=0.1) and not done
        gate.set()
    assert len(set(done)) == len(done) == 200 - len(told)
    assert 0 <= len(done) - guard._MOST_WAITING <= guard._MOST_THREADS
    assert all(future.done() for future in futures)
    with ThreadPoolExecutor(1) as executor, pytest.raises(ZeroDivisionError):
        guard._Jobs(executor, told.append).submit(lambda: 1 / 0).result(WAIT)
