"""The viewer without a browser: geometry, gallery, the nearest photograph, its program."""

import argparse
import contextlib
import importlib.util
import socket
import threading
import types
import urllib.request
from concurrent.futures import Executor
from unittest import mock

import numpy as np
import pytest

from lvsm_jax import PosedCamera
from lvsm_jax.scenes.readers import ScenePhotograph
from lvsm_jax.viewer import __main__ as program
from lvsm_jax.viewer import geometry
from lvsm_jax.viewer.gallery import Gallery
from lvsm_jax.viewer.geometry import PageFrame, Window
from lvsm_jax.viewer.photographs import Beside, code
from lvsm_jax.viewer.uploads import Limits, Uploads
from lvsm_jax.weights import exports
from lvsm_jax.weights.shipped import SHIPPED
from tests.helpers.viewer_scene import (
    MAX_VIEWS,
    SIZE,
    archive,
    camera,
    make_model,
    open_gallery,
    picture,
    pose,
    poses_json,
    write_scene,
)

needs_viser = pytest.mark.skipif(
    importlib.util.find_spec("viser") is None, reason="viser is not installed"
)
WAIT = 20  # seconds that no test should need


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    return write_scene(tmp_path_factory.mktemp("scene"))


# Geometry.


def test_the_page_has_up_as_z_and_the_scene_around_its_origin():
    cameras = [camera(i) for i in range(6)]
    frame = PageFrame.fit(cameras)
    c2w = np.stack([c.c2w for c in cameras])
    page = frame.to_page(c2w)
    np.testing.assert_allclose(frame.to_world(page), c2w, atol=1e-9)
    np.testing.assert_allclose(page[:, :3, 1], [[0, 0, -1]] * 6, atol=1e-9)  # down
    np.testing.assert_allclose(page[:, :3, 3].mean(0), 0, atol=1e-9)
    assert np.linalg.norm(page[:, :3, 3], axis=1).max() == pytest.approx(1)
    np.testing.assert_allclose(np.linalg.det(page[:, :3, :3]), 1)
    alone = PageFrame.fit([camera(0)])
    assert alone.scale == 1
    np.testing.assert_allclose(alone.to_page(pose(0))[:3, 3], 0, atol=1e-9)


@pytest.mark.parametrize("aspect", [0.5, 1.0, 1.0001, 2.3])
@pytest.mark.parametrize("size", [(32, 32), (24, 36)])
def test_a_window_at_a_photograph_shows_what_it_shows(aspect, size):
    frame = PageFrame.fit([camera(i) for i in range(6)])
    shown = camera(4)
    fov = geometry.field_of_view(shown, size, aspect)
    c2w = frame.to_page(shown.c2w)
    window = Window.of(geometry.wxyz(c2w), c2w[:3, 3], fov, aspect)
    ours, expected = window.camera(frame, size), shown.cropped_to(*size)
    np.testing.assert_allclose(ours.c2w, expected.c2w, atol=1e-9)
    np.testing.assert_allclose(ours.fxfycxcy, expected.fxfycxcy)
    assert (ours.width, ours.height) == size[::-1]


def test_the_render_keeps_its_shape_in_any_window():
    red = np.zeros((16, 32, 3), np.uint8)
    red[..., 0] = 255
    for aspect in (0.5, 1.9, 2.0, 3.0):
        image = geometry.fill_window(red, aspect)
        assert image.shape[1] / image.shape[0] == pytest.approx(aspect, rel=0.01)
        rows, columns = np.nonzero(image[..., 0] == 255)
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert width / height == pytest.approx(2, rel=0.01)
        assert height == image.shape[0] or width == image.shape[1]
        assert rows.min() + rows.max() == pytest.approx(image.shape[0] - 1, abs=1)
        assert columns.min() + columns.max() == pytest.approx(image.shape[1] - 1, abs=1)


def test_what_browsers_say_is_checked():
    wxyz, here = np.array([1.0, 0, 0, 0]), np.zeros(3)
    for bad in (
        {"wxyz": np.array([1, 0, 0, np.nan])},
        {"wxyz": np.zeros(4)},
        {"position": np.array([0, np.inf, 0])},
        {"fov": np.nan},
        {"aspect": np.inf},
    ):
        with pytest.raises(ValueError, match=r"not finite|zero norm"):
            Window.of(**{"wxyz": wxyz, "position": here, "fov": 1.0, "aspect": 1.0} | bad)
    huge = Window.of(wxyz, here, 1.0, 1e9)
    assert geometry.fill_window(np.zeros((16, 16, 3), np.uint8), huge.aspect).size < 10**7


def test_upright_gives_the_pose_back():
    """As viser does it: from where one looks and what is up."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        q, r = np.linalg.qr(rng.standard_normal((3, 3)))
        rotation = q * np.sign(np.diag(r))
        c2w = np.eye(4)
        c2w[:3, :3] = rotation * np.linalg.det(rotation)
        up, ahead = geometry.upright(c2w), c2w[:3, 2]
        right = np.cross(ahead, up)
        np.testing.assert_allclose(right / np.linalg.norm(right), c2w[:3, 0], atol=1e-6)


def test_nearest_counts_place_and_direction():
    frame = PageFrame.fit([camera(i) for i in range(6)])
    page = frame.to_page(np.stack([pose(i) for i in range(6)]))
    assert [geometry.nearest(c2w, page) for c2w in page] == list(range(6))
    turned = page[1].copy()
    turned[:3, :3] = page[5, :3, :3] @ np.diag([-1, 1, -1])
    two = np.stack([turned, page[2]])
    assert geometry.nearest(page[1], two) == 1


@pytest.mark.parametrize(
    ("size", "patch", "expected"),
    [((64, 64), 8, (32, 32)), ((72, 72), 8, (32, 32)), ((256, 448), 16, (128, 224)),
     ((24, 40), 8, (24, 40)), ((8, 8), 8, (8, 8))],
)  # fmt: skip
def test_coarse_renders_have_the_shape_of_full_ones(size, patch, expected):
    assert geometry.coarse_size(size, patch) == expected


# The gallery.


@pytest.fixture
def shown(model, scene):
    session, gallery = open_gallery(model, scene)
    with session:
        yield session, gallery


def test_gallery(shown):
    session, gallery = shown
    told = []
    gallery.listen("me", lambda: told.append(gallery.in_use))
    gallery.listen("broken", lambda: 1 / 0)
    assert [item.name for item in gallery.listing()] == [f"{i}.png" for i in range(6)]
    assert [item.in_use for item in gallery.listing()] == [True] * 3 + [False] * 3
    gallery.use("4.png")
    assert told == [{"0.png", "1.png", "2.png", "4.png"}]
    assert gallery.in_use == session.views.keys()
    gallery.use("4.png")  # is there
    with pytest.raises(ValueError, match=f"{MAX_VIEWS} photographs are in use"):
        gallery.use("5.png")
    with pytest.raises(ValueError, match=r"no photograph '7.png' any more"):
        gallery.use("7.png")
    for name in ("0.png", "0.png", "1.png", "2.png", "4.png"):
        gallery.drop(name)
    assert not gallery.in_use and not session.views
    gallery.use("0.png")
    assert gallery.in_use == {"0.png"}


def test_pictures_are_those_the_model_sees(shown):
    session, gallery = shown
    pixels = session.views["1.png"].picture
    assert gallery.at_hand("1.png") and not gallery.at_hand("5.png")
    np.testing.assert_array_equal(gallery.picture("1.png"), pixels)
    gallery.drop("1.png")
    np.testing.assert_array_equal(gallery.picture("1.png"), pixels)
    assert gallery.picture_in_use("1.png") is None
    assert gallery.picture("5.png").shape == (*SIZE, 3)
    assert gallery.at_hand("5.png")


def test_uploads_go_with_their_owner(shown, tmp_path):
    session, gallery = shown
    mine, theirs = Uploads(Limits()), Uploads(Limits())
    members = {"cameras.json": poses_json({"0.png": 0, "b.png": 1})}
    members |= {"0.png": picture(7), "b.png": picture(8)}
    photographs = mine.receive("mine.zip", archive(members))
    assert gallery.upload("me", photographs) == (2, 1)  # there was room for one
    gallery.upload("them", theirs.receive("theirs.zip", archive(members)))
    names = [item.name for item in gallery.listing()[6:]]
    assert names == ["0.png (2)", "b.png", "0.png (3)", "b.png (2)"]
    assert gallery.in_use == {"0.png", "1.png", "2.png", "0.png (2)"}
    gallery.leave("me")
    assert gallery.in_use == session.views.keys() == {"0.png", "1.png", "2.png"}
    assert [item.name for item in gallery.listing()[6:]] == ["0.png (3)", "b.png (2)"]
    gallery.leave("me")
    gallery.leave("them")
    assert len(gallery.listing()) == 6
    mine.close()
    theirs.close()


def test_a_picture_of_someone_who_left_is_not_kept(shown, monkeypatch):
    _, gallery = shown
    uploads = Uploads(Limits())
    members = {"cameras.json": poses_json({"a.png": 0, "b.png": 1})}
    members |= {"a.png": picture(7), "b.png": picture(8)}
    gallery.upload("me", uploads.receive("mine.zip", archive(members)))
    load = ScenePhotograph.load

    def leave_meanwhile(photograph):
        gallery.leave("me")
        return load(photograph)

    monkeypatch.setattr(ScenePhotograph, "load", leave_meanwhile)
    assert gallery.picture("b.png").shape == (*SIZE, 3)
    assert not gallery.at_hand("b.png")
    uploads.close()


@needs_viser
@pytest.mark.parametrize("there", [True, False])
def test_who_is_gone_before_the_page_is_made_leaves_nothing(monkeypatch, there):
    """Viser calls `_enter` and `_exit` in threads, so that `_exit` may come first."""
    from lvsm_jax.viewer import server

    made = mock.Mock()
    monkeypatch.setattr(server, "Visitor", lambda *_: made)
    monkeypatch.setattr(server, "_limit_uploads", mock.Mock())
    monkeypatch.setattr(server.guard, "watch", mock.Mock())
    viewer = mock.Mock(_lock=threading.Lock(), _visitors={}, _max_visitors=1, _limits=Limits())
    client = mock.Mock(client_id=3)
    viewer._server.get_clients = lambda: {3: client} if there else {}
    server.Viewer._exit(viewer, client)
    server.Viewer._enter(viewer, client)
    assert viewer._visitors == ({3: made} if there else {})
    assert made.leave.called != there


# The nearest photograph.


def test_names_do_not_leave_their_place_in_markdown():
    for text in ("a`b`", "a\n\n<b>", "a\r\r<b>", "a\u2028<b>"):
        shown = code(text)
        assert shown[0] == shown[-1] == "`" and "`" not in shown[1:-1]
        assert len(shown.splitlines()) == 1


def test_the_photograph_that_is_wanted_is_decoded_elsewhere():
    """One at a time, the newest; a damaged one is tried once."""
    jobs, decoded, asked = [], {}, []

    def picture(name):
        asked.append(name)
        if name == "damaged":
            raise RuntimeError("damaged: broken")
        decoded[name] = np.full((*SIZE, 3), int(name), np.uint8)
        return decoded[name]

    image, caption = types.SimpleNamespace(image=None), types.SimpleNamespace(content="")
    gui = types.SimpleNamespace(add_image=lambda *_, **__: image, add_markdown=lambda _: caption)
    gallery = mock.Mock(spec=Gallery, picture=picture, at_hand=lambda name: name in decoded)
    submit = lambda job, *arguments: jobs.append((job, arguments))  # noqa: E731
    beside = Beside(gui, gallery, SIZE, mock.Mock(spec=Executor, submit=submit))
    render = np.full((*SIZE, 3), 200, np.uint8)

    def left_right():
        return image.image[0, 0, 0], image.image[0, -1, 0]

    beside.show("10", render)
    for name in ("20", "30"):
        beside.show(name, render)
    assert left_right() == (128, 200) and len(jobs) == 1
    for _ in range(2):
        job, arguments = jobs.pop()
        job(*arguments)
    assert asked == ["10", "30", "30"] and not jobs
    assert left_right() == (30, 200) and caption.content.startswith("`30`, the nearest")
    beside.show("10", render)  # is at hand
    assert left_right() == (10, 200)
    beside.show("damaged", render)
    job, arguments = jobs.pop()
    job(*arguments)
    beside.show("damaged", render)
    assert not jobs and left_right() == (10, 200)
    beside.show("40", render)
    beside.close()
    image.image = None
    job, arguments = jobs.pop()
    job(*arguments)
    assert image.image is None


# The program.


@pytest.fixture(scope="module")
def export(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "export"
    data = {"path": "data/rooms", "image_height": SIZE[0], "num_inputs": 3}
    exports.save(model, folder, about={"step": 9, "config": {"data": data}})
    return folder


def parse(*arguments) -> argparse.Namespace:
    return program._parser().parse_args([str(argument) for argument in arguments])


@needs_viser
def test_serving(export, scene, capsys):
    given = parse(export, scene, "--port=0", "--inputs=0.png,2.png", "--cache-dtype=int8")
    with program.serve(given) as url:
        assert url.startswith("http://127.0.0.1:")
        with urllib.request.urlopen(url, timeout=WAIT) as page:
            assert page.status == 200
        port = int(url.rpartition(":")[2])
        with pytest.raises(OSError, match=f"cannot listen at 127.0.0.1, port {port}"):
            with program.serve(parse(export, scene, f"--port={port}")):
                pass
    told = capsys.readouterr()
    assert "2 of 6 photographs" in told.out
    assert "note: 2 inputs, and the model was trained with 3" in told.err
    with socket.create_server(("127.0.0.1", port)):  # is free again
        pass


def test_a_token_is_asked_for_beyond_this_computer():
    for arguments, asks in (
        ([], False),
        (["--host=::1"], False),
        (["--token"], True),
        (["--host=0.0.0.0"], True),
        (["--host=box.lan"], True),
        (["--host=0.0.0.0", "--no-token"], False),
    ):
        tokens = [program._token(parse(*arguments)) for _ in range(2)]
        assert [token is not None for token in tokens] == [asks] * 2, arguments
        assert not asks or tokens[0] != tokens[1]


@needs_viser
def test_one_argument_without_a_name_is_the_scene(export, scene, monkeypatch):
    served = []

    @contextlib.contextmanager
    def serve(given):
        served.append((given.scene, program.scene_options.choose_weights(given)))
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(program, "serve", serve)
    monkeypatch.setattr(program.signal, "signal", lambda *_: None)
    for arguments in (
        [f"--weights={export}", str(scene)],
        [str(export), "--port=0", str(scene)],
        [str(scene)],
    ):
        program.main(arguments)
    assert served == [(str(scene), str(export))] * 2 + [(str(scene), str(SHIPPED))]


@needs_viser
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "run `make demo` first"),
        (["{export}"], "is an export, no scene: give a scene, and --weights="),
        (["{scene}/none", "--weights={export}"], "no scene"),
        (["{export}", "{scene}", "--weights={export}"], "two exports"),
        (["{export}", "{scene}/none"], "no scene"),
        (["{export}", "{scene}", "--inputs=9"], "--inputs=9, but"),
        (["{export}", "{scene}", "--max-views=0"], "--max-views=0, expected at least 1"),
        (["{scene}", "{scene}"], "export"),
        (["{export}", "{scene}", "--host=192.0.2.1"], "cannot listen at 192.0.2.1"),
        (["{export}", "{scene}", "--port=99999"], "cannot listen at 127.0.0.1, port 99999"),
        (["{export}", "{scene}", "--size=12"], "multiples of the patch"),
        (["{export}", "{scene}", "--cache-dtype=int4"], "cache_dtype"),
    ],
)
def test_errors_are_one_line(export, scene, arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    filled = [argument.format(export=export, scene=scene) for argument in arguments]
    with pytest.raises(SystemExit, match=message) as error:
        program.main(filled)
    assert str(error.value).startswith("error: ") and "\n" not in str(error.value)


def test_without_viser(export, scene, monkeypatch):
    monkeypatch.setattr(program.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"pip install 'lvsm_jax\[viewer\]'"):
        program.main([str(export), str(scene)])


def test_help_teaches(capsys):
    with pytest.raises(SystemExit):
        program.main(["--help"])
    text = capsys.readouterr().out
    assert "ssh -L" in text and "make demo" in text


def test_cameras_of_the_scene_are_the_windows(model, scene, shown):
    """What a window at an input shows is what the session renders for its camera."""
    session, _ = shown
    frame = PageFrame.fit([camera(i) for i in range(6)])
    at = PosedCamera(pose(1), (50.0, 50.0, 20.0, 20.0), 40, 40)
    c2w = frame.to_page(at.c2w)
    window = Window(c2w, geometry.field_of_view(at, SIZE, 1.7), 1.7)
    ours = session.render(window.camera(frame, SIZE), height=SIZE[0], width=SIZE[1])
    assert np.abs(ours.astype(int) - session.render(at)).max() <= 1
