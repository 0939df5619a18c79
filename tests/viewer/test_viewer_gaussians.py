"""A GS-LRM in the viewer: the browser draws its Gaussians, as the server renders them."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from lvsm_jax.gaussians.gaussians import Gaussians
from lvsm_jax.viewer.splats import on_page
from tests.helpers.viewer_browser import (
    canvas,
    choose,
    client_of,
    difference,
    drag,
    expect,
    press,
    shows_its_render,
    tab,
    until,
    visit,
    window_of,
)
from tests.helpers.viewer_scene import make_gaussian_model, open_viewer


def test_covariances_move_with_the_page():
    rng = np.random.default_rng(0)
    turns = rng.normal(size=(5, 4))
    turns /= np.linalg.norm(turns, axis=1, keepdims=True)
    scales = rng.uniform(0.1, 1, (5, 3))
    gaussians = Gaussians(rng.normal(size=(5, 3)), turns, scales, np.ones(5), np.ones((5, 3)))
    axes, origin = Rotation.from_euler("xyz", [0.3, 1.0, -0.4]).as_matrix(), np.array([1, 2.0, 3])
    means, covariances = on_page(gaussians, axes, origin, 0.5)
    w, x, y, z = turns[3]
    own = Rotation.from_quat([x, y, z, w]).as_matrix()
    spread = 0.5 * axes @ own @ np.diag(scales[3])
    np.testing.assert_allclose(covariances[3], spread @ spread.T, atol=1e-12)
    np.testing.assert_allclose(means[3], 0.5 * axes @ (gaussians.means[3] - origin))


@pytest.mark.long
@pytest.mark.slow
def test_the_browser_draws_what_the_server_renders(browser, tmp_path):
    with (
        open_viewer(tmp_path, model=make_gaussian_model()) as viewer,
        visit(viewer, browser) as page,
    ):
        box = page.get_by_label("Gaussians in 3D")
        expect(box).to_be_checked()
        until(lambda: canvas(page).std() > 20, "the splats")
        drag(page)
        before = window_of(client_of(viewer)).c2w
        drawn = canvas(page)
        box.click()
        rendered = shows_its_render(page, viewer)
        np.testing.assert_allclose(window_of(client_of(viewer)).c2w, before, atol=1e-6)
        # The render fills the square in the middle of a wide window; the splats all of it.
        height, width = rendered.shape[:2]
        inner = slice(height // 8, -height // 8), slice((width - height) // 2 + 40, width // 2 + 90)
        assert difference(drawn[inner], rendered[inner]) < 12
        assert difference(rendered[inner], 255) > 40
        box.click()
        until(lambda: difference(canvas(page)[inner], drawn[inner]) < 2, "the splats again")
        # With another photograph the model runs anew, and the page has its Gaussians.
        choose(page, "5.png")
        press(page, "Add")
        expect(page.get_by_text("4 of 6 in use")).to_be_visible()
        until(lambda: difference(canvas(page)[inner], drawn[inner]) > 2, "other splats")
        tab(page, "View")
        box.click()
        shows_its_render(page, viewer)
