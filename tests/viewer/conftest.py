"""Fixtures of tests in a browser, which import what other tests of this room do without."""

import contextlib

import pytest

from tests.helpers.viewer_scene import open_viewer


@pytest.fixture(scope="module")
def viewer(tmp_path_factory):
    with open_viewer(tmp_path_factory.mktemp("scene"), max_visitors=2) as viewer:
        yield viewer


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
