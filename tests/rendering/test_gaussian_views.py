"""A session of a GS-LRM: what it renders is the model's, whatever came and went before."""

import dataclasses

import jax
import numpy as np
import pytest

import lvsm_jax
from lvsm_jax.rendering.session import Session
from tests.helpers import viewer_scene
from tests.helpers.viewer_scene import camera

SIZE = viewer_scene.SIZE


def photograph(number):
    pixels = np.random.default_rng(number).integers(0, 256, (40, 60, 3), np.uint8)
    return lvsm_jax.Photograph(pixels, camera(number), f"{number}")


@pytest.fixture(scope="module")
def model():
    return viewer_scene.make_gaussian_model()


@pytest.fixture
def session(model):
    with Session(model, image_height=SIZE[0], max_views=3) as session:
        yield session


@pytest.mark.slow
def test_renders_are_the_models(model, session):
    session.add([photograph(number) for number in (0, 2)])
    session.add(photograph(4))
    session.remove("2")
    session.replace("4", dataclasses.replace(photograph(5), name="4"))
    render = session.render(camera(3))
    # The frame is that of the first photographs, 0 and 2.
    again = Session(model, image_height=SIZE[0], frame=session.frame)
    views = {"0": photograph(0), "4": photograph(5)}
    again.add([dataclasses.replace(view, name=name) for name, view in views.items()])
    np.testing.assert_array_equal(render, again.render(camera(3)))

    poses, targets = (
        lvsm_jax.Cameras(
            session.frame.apply(np.stack([x.c2w for x in some]))[None],
            np.float32([x.cropped_to(*SIZE).fxfycxcy for x in some])[None],
        )
        for some in ([camera(0), camera(5)], [camera(3)])
    )
    images = np.stack([view.picture for view in session.views.values()])[None] / np.float32(255)
    expected = np.asarray(model(images, poses, targets))[0, 0] * 255
    np.testing.assert_allclose(render, expected, atol=1)
    assert render.std() > 10
    paths = list(session.render_path([camera(3), camera(1)]))
    np.testing.assert_allclose(paths[0], render, atol=1)


def test_gaussians_are_those_of_the_views_that_are_there(session):
    assert session.makes_gaussians and session.background == 1
    with pytest.raises(ValueError, match="the session has no views"):
        session.gaussians  # noqa: B018
    session.add([photograph(0), photograph(2)])
    both = session.gaussians
    assert both.means.shape == (2 * SIZE[0] * SIZE[1], 3) and session.gaussians is both
    # In the world of the cameras, in front of them.
    ahead = (both.means - camera(0).c2w[:3, 3]) @ camera(0).c2w[:3, 2]
    assert (ahead > 0).all()
    session.remove("2")
    assert session.gaussians.means.shape == (SIZE[0] * SIZE[1], 3)
    assert session.memory["total"] == 3 * SIZE[0] * SIZE[1] * 14 * 4
    session.close()
    with pytest.raises(RuntimeError, match="closed"):
        session.gaussians  # noqa: B018


@pytest.mark.slow
def test_too_little_room_is_taken_and_kept(model):
    small = jax.tree.map(lambda x: x, model)
    small.config = dataclasses.replace(model.config, pairs_per_gaussian=0.5)
    with Session(small, image_height=SIZE[0]) as cramped, Session(model, image_height=32) as wide:
        for session in (cramped, wide):
            session.add(photograph(0))
        np.testing.assert_array_equal(cramped.render(camera(1)), wide.render(camera(1)))


def test_other_models_make_none():
    model = viewer_scene.make_model()
    with Session(model, image_height=SIZE[0]) as session:
        assert not session.makes_gaussians
        with pytest.raises(ValueError, match="EfficientLVSM makes no Gaussians; GSLRM does"):
            session.gaussians  # noqa: B018
