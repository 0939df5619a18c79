"""The viewer's page in a real Chromium: what it shows, and what visitors can do to it."""

import gc
import re
import time
import weakref

import numpy as np
import pytest

from tests.helpers.viewer_browser import (
    NOTHING,
    READY,
    WAIT,
    canvas,
    choose,
    client_of,
    difference,
    drag,
    expect,
    expected,
    frame_of,
    press,
    show_cameras,
    show_details,
    shows_its_render,
    tab,
    until,
    viewpoint_of,
    visit,
    window_of,
)
from tests.helpers.viewer_scene import SIZE, archive, picture, poses_json


def test_a_drag_changes_the_render_and_a_reload_survives(page, viewer):
    first = shows_its_render(page, viewer)
    before = window_of(client_of(viewer)).c2w
    start = viewer.gallery.listing()[1].camera
    np.testing.assert_allclose(before, frame_of(viewer).to_page(start.c2w), atol=1e-3)
    drag(page)
    until(lambda: not np.allclose(window_of(client_of(viewer)).c2w, before, atol=0.05), "a move")
    moved = shows_its_render(page, viewer)
    assert difference(moved, first) > 5
    old = client_of(viewer).client_id
    page.reload()
    until(lambda: viewer._server.get_clients().keys() - {old}, "the new visitor")
    expect(page.get_by_text(READY)).to_be_visible(timeout=1000 * WAIT)
    until(lambda: len(viewer._server.get_clients()) == 1, "the old visitor to leave")
    again = shows_its_render(page, viewer)
    assert difference(again, first) < 3


@pytest.mark.slow
def test_what_is_in_3d_stands_where_the_render_has_it(page, viewer):
    """A ball in the scene appears where the render's camera sees its place."""
    client, frame = client_of(viewer), frame_of(viewer)
    drag(page)
    shows_its_render(page, viewer)
    client.scene.set_background_image(None)
    window = window_of(client)
    camera = window.camera(frame, SIZE)
    for place in ([0.2, 0.15, 1.0], [-0.4, -0.1, 1.5]):
        target = (window.c2w @ [*place, 1])[:3]
        ball = client.scene.add_icosphere("/ball", 0.03, color=(255, 0, 255), position=target)
        world = target @ frame.axes / frame.scale + frame.origin
        local = camera.w2c @ [*world, 1]
        seen = local[:2] / local[2] * camera.fxfycxcy[:2] + camera.fxfycxcy[2:]
        shape = canvas(page).shape

        def magenta():
            image = canvas(page).astype(int)
            return np.argwhere((image[..., 0] + image[..., 2] - 2 * image[..., 1]) > 100)

        until(lambda: len(magenta()) > 20, "the ball")
        row, column = magenta().mean(0)
        height, width = shape[:2]
        side = min(height, width)  # of the square render in the middle
        x = (width - side) / 2 + seen[0] / SIZE[1] * side
        y = (height - side) / 2 + seen[1] / SIZE[0] * side
        assert abs(column + 0.5 - x) < 3 and abs(row + 0.5 - y) < 3
        ball.remove()


@pytest.mark.slow
def test_photographs_come_and_go(page, viewer):
    with_three = shows_its_render(page, viewer)
    choose(page, "5.png")
    press(page, "Add")
    expect(page.get_by_text("4 of 6 in use")).to_be_visible()
    with_four = shows_its_render(page, viewer)
    assert difference(with_four, with_three) > 1
    choose(page, "4.png")
    press(page, "Add")
    expect(page.get_by_text("there is room for no more")).to_be_visible()
    choose(page, "5.png")
    press(page, "Remove")
    expect(page.get_by_text("3 of 6 in use")).to_be_visible()
    assert difference(shows_its_render(page, viewer), with_three) < 2
    for i in range(3):
        choose(page, f"{i}.png")
        press(page, "Remove")
        expect(page.get_by_text(f"{2 - i} of 6 in use")).to_be_visible()
    expect(page.get_by_text(NOTHING)).to_be_visible()
    assert canvas(page).std(axis=(0, 1)).max() < 3  # empty
    choose(page, "1.png")
    press(page, "Add")
    expect(page.get_by_text(READY)).to_be_visible()
    shows_its_render(page, viewer)


def test_going_to_a_photograph_and_along_a_path(page, viewer):
    choose(page, "4.png")
    press(page, "Go there")
    tab(page, "Compare")
    goal = frame_of(viewer).to_page(viewer.gallery.listing()[4].camera.c2w)
    until(lambda: np.allclose(window_of(client_of(viewer)).c2w, goal, atol=1e-3), "the place")
    expect(page.get_by_text("4.png, the nearest photograph")).to_be_visible()
    shown = shows_its_render(page, viewer)
    camera = viewer.gallery.listing()[4].camera
    assert difference(shown, expected(viewer, camera, shown.shape)) < 3

    tab(page, "Path")
    press(page, "Play")
    path = [viewer.gallery.listing()[i].camera.c2w for i in (0, 2)]
    first, last = frame_of(viewer).to_page(np.stack(path))[:, :3, 3]

    def at(place):  # in extents of the scene
        away = np.linalg.norm(window_of(client_of(viewer)).c2w[:3, 3] - place)
        return away / viewpoint_of(viewer).magnification

    until(lambda: at(first) < 0.1, "the first input")
    until(lambda: at(first) > 0.2, "the path")
    press(page, "Stop")
    expect(page.get_by_role("button", name="Play")).to_be_visible()
    time.sleep(0.3)
    here = window_of(client_of(viewer)).c2w
    time.sleep(0.3)
    np.testing.assert_array_equal(window_of(client_of(viewer)).c2w, here)
    assert at(last) > 0.1
    shows_its_render(page, viewer)


def test_clicking_a_frustum_goes_there(page, viewer):
    client = client_of(viewer)
    visitor = viewer._visitors[client.client_id]
    frustum = visitor._frustums.shown["1.png"]
    # Look at its picture from behind, a little from above.
    show_cameras(page)
    away = viewpoint_of(viewer).magnification * (np.array([0, 0, 0.4]) - 1.5 * frustum.c2w[:3, 2])
    behind = frustum.c2w[:3, 3] + away
    client.camera.position = behind
    client.camera.look_at = frustum.c2w[:3, 3] + 0.7 * frustum.depth * frustum.c2w[:3, 2]
    until(lambda: np.allclose(window_of(client).c2w[:3, 3], behind, atol=1e-3), "the place")
    time.sleep(0.5)
    box = page.locator("canvas").first.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2 + 30, box["y"] + box["height"] / 2)
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    poses = {name: other.c2w for name, other in visitor._frustums.shown.items()}

    def there():
        here = window_of(client).c2w
        return any(np.allclose(here, c2w, atol=1e-3) for c2w in poses.values())

    until(there, "being at a photograph")
    # Standing there one sees the render, not the photograph in its place.
    frustums = visitor._frustums.shown.values()
    here = window_of(client).c2w[:3, 3]

    def hidden():
        return {f.listed.name for f in frustums if not f.handle.visible}

    until(hidden, "the frustum to be hidden")
    for frustum in frustums:
        if frustum.listed.name in hidden():
            assert np.linalg.norm(frustum.c2w[:3, 3] - here) < 2 * frustum.depth
    assert len(hidden()) < 6


@pytest.mark.slow
def test_visitors_see_each_others_photographs_until_they_leave(page, viewer, browser, tmp_path):
    tab(page, "Photos")
    show_details(page)
    expect(page.get_by_text("1 visitor", exact=False)).to_be_visible()
    first = window_of(client_of(viewer))
    with visit(viewer, browser) as other:
        expect(page.get_by_text("2 visitors")).to_be_visible()
        drag(other)
        other_client = client_of(viewer)
        until(lambda: not np.allclose(window_of(other_client).c2w, first.c2w, atol=0.05), "a move")
        old = viewer._server.get_clients()[min(viewer._server.get_clients())]
        np.testing.assert_allclose(window_of(old).c2w, first.c2w, atol=1e-6)  # their own cameras
        with browser.new_context() as context:  # one too many
            third = context.new_page()
            third.goto(viewer.url)
            expect(third.get_by_text("2 visitors are here already")).to_be_visible(
                timeout=1000 * WAIT
            )
        file = tmp_path / "mine.zip"
        members = {"cameras.json": poses_json({"mine.png": 4}), "mine.png": picture(99)}
        file.write_bytes(archive(members))
        other.locator("input[type=file]").set_input_files(file)
        expect(page.get_by_text("4 of 7 in use")).to_be_visible()
        assert "mine.png" in viewer.gallery.in_use
        theirs = weakref.ref(viewer._visitors[other_client.client_id])
        folder = theirs()._uploads._folder
        assert folder.is_dir()
        del other_client
    expect(page.get_by_text("3 of 6 in use")).to_be_visible()
    expect(page.get_by_text("2 visitors")).not_to_be_visible()
    assert viewer.session.views.keys() == {"0.png", "1.png", "2.png"}
    assert not folder.exists()
    until(lambda: gc.collect() >= 0 and theirs() is None, "the visitor to be forgotten")


def test_bad_uploads_are_told_and_the_server_goes_on(page, viewer, tmp_path):
    def upload(name: str, content: bytes):
        (tmp_path / name).write_bytes(content)
        page.locator("input[type=file]").set_input_files(tmp_path / name)

    tab(page, "Photos")
    upload("early.png", picture(0))
    expect(page.get_by_text("upload its cameras.json first")).to_be_visible()
    upload("cameras.json", poses_json({"new.png": 5, "bad.png": 4}))
    expect(page.get_by_text("2 poses are known")).to_be_visible()
    upload("bad.png", b"\x80\x04not a picture")
    expect(page.get_by_text("bad.png: not a picture")).to_be_visible()
    upload("large.png", b"x" * (2**20 + 1))
    expect(page.get_by_text("1.0 MiB, of 1 MiB allowed")).to_be_visible()
    assert not viewer._server.get_clients()[
        client_of(viewer).client_id
    ].gui._current_file_upload_states
    upload("new.png", picture(98))
    expect(page.get_by_text("4 of 7 in use")).to_be_visible()
    shows_its_render(page, viewer)


def test_a_failing_render_is_told_and_the_server_goes_on(page, viewer, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patched:
        patched.setattr(viewer.session, "render", fail)
        drag(page)
        expect(page.get_by_text("The render failed:")).to_be_visible()
    drag(page)
    expect(page.get_by_text(READY)).to_be_visible()
    shows_its_render(page, viewer)


def test_a_slow_model_renders_the_newest(page, viewer, monkeypatch):
    show_details(page)
    heights, render = [], viewer.session.render

    def slow(camera, *, height, width):
        heights.append(height)
        time.sleep(0.3)
        return render(camera, height=height, width=width)

    shows_its_render(page, viewer)
    with monkeypatch.context() as patched:
        patched.setattr(viewer.session, "render", slow)
        drag(page)
        expect(page.get_by_text(re.compile("requests dropped: [1-9]"))).to_be_visible()
        until(lambda: heights[-1] == SIZE[0], "a full render")
    assert set(heights) == {SIZE[0] // 2, SIZE[0]}  # coarse on the way
    shows_its_render(page, viewer)


def test_other_pages_get_nothing(viewer):
    import viser
    import websockets
    from websockets.sync.client import connect

    address = viewer.url.replace("http", "ws")
    protocol = f"viser-v{viser.__version__}"
    with pytest.raises(websockets.InvalidStatus, match="403"):  # before there is a connection
        connect(address, subprotocols=[protocol], origin="http://evil.example")
    with connect(address, subprotocols=[protocol], origin=viewer.url) as connection:
        assert connection.recv(timeout=WAIT)
    assert viewer._server.request_share_url() is None
