"""Fixtures of tests in a browser, which import what other tests of this room do without."""

import contextlib

import pytest

from tests.helpers.viewer_scene import SIZE, make_model, open_gallery, write_scene


@pytest.fixture(scope="module")
def viewer(tmp_path_factory):
    from lvsm_jax.viewer import geometry
    from lvsm_jax.viewer.server import Viewer
    from lvsm_jax.viewer.uploads import Limits

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
    from tests.helpers.viewer_browser import CHROMIUM, FLAGS, playwright

    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(viewer, browser):
    """A new visitor; what they did to the gallery is undone."""
    from lvsm_jax.common.errors import UserError
    from tests.helpers.viewer_browser import visit

    with visit(viewer, browser) as page:
        yield page
    for name in viewer.gallery.in_use - {"0.png", "1.png", "2.png"}:
        with contextlib.suppress(UserError):  # it goes with the visitor who brought it
            viewer.gallery.drop(name)
    for name in ("0.png", "1.png", "2.png"):
        viewer.gallery.use(name)
