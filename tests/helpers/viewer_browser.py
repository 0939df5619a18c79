"""The viewer's page in a real Chromium: what a visitor does there."""

import contextlib
import io
import re
import shutil
import time

import numpy as np
import pytest
from PIL import Image

from lvsm_jax import PosedCamera
from lvsm_jax.viewer import geometry
from lvsm_jax.viewer.geometry import Window
from tests.helpers.viewer_scene import SIZE

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
WAIT = 60  # seconds that nothing should take, also where other programs run
expect = playwright.expect
expect.set_options(timeout=1000 * WAIT)
READY, NOTHING = "Ready.", "Nothing to render from"


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
        camera = window_of(client_of(viewer)).camera(frame_of(viewer), SIZE)
        seen.append(canvas(page))
        return difference(seen[-1], expected(viewer, camera, seen[-1].shape))

    until(lambda: same() < 3, "the render")
    return seen[-1]


def frame_of(viewer):
    """The page of the newest visitor."""
    return viewpoint_of(viewer).frame


def viewpoint_of(viewer):
    return viewer._visitors[client_of(viewer).client_id]._viewpoint


def tab(page, name: str):
    page.get_by_text(name, exact=True).first.click()


def show_details(page):
    page.get_by_text("Details").click()


def choose(page, name: str):
    tab(page, "Photos")
    page.locator("input[role=combobox]:visible").first.click()
    page.get_by_role("option", name=re.compile(rf"^(● )?{re.escape(name)}$")).click()


def show_cameras(page):
    tab(page, "View")
    page.get_by_role("checkbox").first.click()


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
