"""The viewer's page in a real Chromium: what it shows, and what visitors can do to it."""

import contextlib
import gc
import io
import re
import shutil
import time
import weakref

import numpy as np
import pytest
from PIL import Image

from lvsm_jax import PosedCamera
from lvsm_jax.common.errors import UserError
from lvsm_jax.viewer import geometry
from lvsm_jax.viewer.geometry import Window
from lvsm_jax.viewer.uploads import Limits
from tests.helpers.viewer_scene import (
    SIZE,
    archive,
    make_model,
    open_gallery,
    picture,
    poses_json,
    write_scene,
)

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
if CHROMIUM is None:
    pytest.skip("there is no Chromium", allow_module_level=True)
playwright = pytest.importorskip("playwright.sync_api")
pytest.importorskip("viser")

FLAGS = [
    "--headless", "--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader",
    "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
WINDOW = {"width": 900, "height": 500}
WAIT = 30  # seconds that nothing should take
expect = playwright.expect
READY, NOTHING = "Ready.", "Nothing to render from"


@pytest.fixture(scope="module")
def viewer(tmp_path_factory):
    from lvsm_jax.viewer.server import Viewer

    session, gallery = open_gallery(make_model(), write_scene(tmp_path_factory.mktemp("scene")))
    sizes = geometry.coarse_size(SIZE, 8), SIZE
    with session:
        start = gallery.listing()[1].camera
        viewer = Viewer(
            session,
            gallery,
            sizes=sizes,
            start=start,
            port=0,
            max_visitors=2,
            limits=Limits(bytes=2**20),
        )
        viewer.session, viewer.gallery = session, gallery  # for tests to look at
        yield viewer
        viewer.close()


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(viewer, browser):
    """A new visitor; what they did to the gallery is undone."""
    with visit(viewer, browser) as page:
        yield page
    for name in viewer.gallery.in_use - {"0.png", "1.png", "2.png"}:
        with contextlib.suppress(UserError):  # it goes with the visitor who brought it
            viewer.gallery.drop(name)
    for name in ("0.png", "1.png", "2.png"):
        viewer.gallery.use(name)


@contextlib.contextmanager
def visit(viewer, browser):
    with browser.new_context(viewport=WINDOW) as context:
        page = context.new_page()
        page.set_default_timeout(1000 * WAIT)
        page.goto(viewer.url)
        expect(page.get_by_text(READY)).to_be_visible(timeout=1000 * WAIT)
        yield page
    until(lambda: not viewer._server.get_clients(), "the visitor to be gone", others=True)


def until(condition, what: str, others: bool = False):
    """Waits for a condition; `others`: or for as long as other visitors are there."""
    end = time.monotonic() + (2 if others else WAIT)
    while not condition():
        if time.monotonic() > end:
            if others:
                return
            raise AssertionError(f"waited in vain for {what}")
        time.sleep(0.1)


def client_of(viewer):
    """The newest visitor, as viser knows them."""
    clients = viewer._server.get_clients()
    return clients[max(clients)]


def canvas(page) -> np.ndarray:
    """What the 3D window shows."""
    box = page.locator("canvas").first.bounding_box()
    page.mouse.move(box["x"] + 5, box["y"] + 5)
    messages = ".mantine-Notification-root { visibility: hidden !important }"
    pixels = page.screenshot(clip=box, style=messages)
    return np.asarray(Image.open(io.BytesIO(pixels)).convert("RGB"))


def window_of(client) -> Window:
    camera = client.camera
    return Window.of(camera.wxyz, camera.position, camera.fov, camera.aspect)


def expected(viewer, camera: PosedCamera, shape) -> np.ndarray:
    """What a window of this shape should show at full size, but for its 3D contents."""
    render = viewer.session.render(camera, height=SIZE[0], width=SIZE[1])
    filled = Image.fromarray(geometry.fill_window(render, shape[1] / shape[0]))
    return np.asarray(filled.resize(shape[1::-1], Image.Resampling.BICUBIC))


def difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(float) - b).mean())


def shows_its_render(page, viewer) -> np.ndarray:
    """Waits until the window shows what the session renders for it, and returns that."""
    seen = []

    def same():
        camera = window_of(client_of(viewer)).camera(viewer._page.frame, SIZE)
        seen.append(canvas(page))
        return difference(seen[-1], expected(viewer, camera, seen[-1].shape))

    until(lambda: same() < 3, "the render")
    return seen[-1]


def hide_cameras(page):
    page.get_by_role("checkbox").first.click()


def choose(page, name: str):
    page.locator("input[role=combobox]:visible").first.click()
    page.get_by_role("option", name=re.compile(rf"^(● )?{re.escape(name)}$")).click()


def press(page, name: str):
    page.get_by_role("button", name=name, exact=True).click()


def drag(page):
    box = page.locator("canvas").first.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    for i in range(10):
        page.mouse.move(x + 6 * i, y + 3 * i)
        time.sleep(0.03)
    page.mouse.up()


def test_a_drag_changes_the_render_and_a_reload_survives(page, viewer):
    hide_cameras(page)
    first = shows_its_render(page, viewer)
    before = window_of(client_of(viewer)).c2w
    start = viewer.gallery.listing()[1].camera
    np.testing.assert_allclose(before, viewer._page.frame.to_page(start.c2w), atol=1e-3)
    drag(page)
    until(lambda: not np.allclose(window_of(client_of(viewer)).c2w, before, atol=0.05), "a move")
    moved = shows_its_render(page, viewer)
    assert difference(moved, first) > 5
    old = client_of(viewer).client_id
    page.reload()
    until(lambda: viewer._server.get_clients().keys() - {old}, "the new visitor")
    expect(page.get_by_text(READY)).to_be_visible(timeout=1000 * WAIT)
    until(lambda: len(viewer._server.get_clients()) == 1, "the old visitor to leave")
    hide_cameras(page)
    again = shows_its_render(page, viewer)
    assert difference(again, first) < 3


def test_what_is_in_3d_stands_where_the_render_has_it(page, viewer):
    """A ball in the scene appears where the render's camera sees its place."""
    hide_cameras(page)
    client, frame = client_of(viewer), viewer._page.frame
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


def test_photographs_come_and_go(page, viewer):
    hide_cameras(page)
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
    hide_cameras(page)
    choose(page, "4.png")
    press(page, "Go there")
    goal = viewer._page.frame.to_page(viewer.gallery.listing()[4].camera.c2w)
    until(lambda: np.allclose(window_of(client_of(viewer)).c2w, goal, atol=1e-3), "the place")
    expect(page.get_by_text("4.png, the nearest photograph")).to_be_visible()
    shown = shows_its_render(page, viewer)
    camera = viewer.gallery.listing()[4].camera
    assert difference(shown, expected(viewer, camera, shown.shape)) < 3

    press(page, "Play")
    path = [viewer.gallery.listing()[i].camera.c2w for i in (0, 2)]
    first, last = viewer._page.frame.to_page(np.stack(path))[:, :3, 3]

    def at(place):
        return np.linalg.norm(window_of(client_of(viewer)).c2w[:3, 3] - place)

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
    behind = frustum.c2w[:3, 3] - 1.5 * frustum.c2w[:3, 2] + np.array([0, 0, 0.4])
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


def test_visitors_see_each_others_photographs_until_they_leave(page, viewer, browser, tmp_path):
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
    hide_cameras(page)
    shows_its_render(page, viewer)


def test_a_failing_render_is_told_and_the_server_goes_on(page, viewer, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("out of memory")

    hide_cameras(page)
    with monkeypatch.context() as patched:
        patched.setattr(viewer.session, "render", fail)
        drag(page)
        expect(page.get_by_text("The render failed:")).to_be_visible()
    drag(page)
    expect(page.get_by_text(READY)).to_be_visible()
    shows_its_render(page, viewer)


def test_a_slow_model_renders_the_newest(page, viewer, monkeypatch):
    heights, render = [], viewer.session.render

    def slow(camera, *, height, width):
        heights.append(height)
        time.sleep(0.3)
        return render(camera, height=height, width=width)

    hide_cameras(page)
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
