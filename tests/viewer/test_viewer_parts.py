"""Parts of the page without a browser: jobs, places, unposed uploads, paths, small pictures."""

import threading
import time
from unittest import mock

import numpy as np
import pytest

from lvsm_jax.common.errors import UserError
from lvsm_jax.scenes.readers import read_scene
from lvsm_jax.viewer import geometry, jobs, paths, thumbnails
from lvsm_jax.viewer.uploads import Limits, NoPosesError, Unposed, Uploads
from lvsm_jax.viewer.viewpoint import Viewpoint
from lvsm_jax.viewer.worlds import Places, World
from tests.helpers.viewer_scene import (
    MAX_VIEWS,
    SIZE,
    archive,
    camera,
    make_model,
    open_gallery,
    picture,
    poses_json,
    write_scene,
)

WAIT = 20  # seconds that no test should need


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    session, gallery = open_gallery(make_model(), write_scene(tmp_path_factory.mktemp("scene")))
    with session:
        yield World.of("The scene", session, gallery, gallery.listing()[1].photograph.camera)


# Geometry.


@pytest.mark.parametrize("size", [(32, 32), (24, 40)])
@pytest.mark.parametrize("aspect", [0.5, 1.2, 3.0])
def test_the_field_of_view_is_that_of_the_render(size, aspect):
    fov = geometry.window_fov(0.9, size, aspect)
    window = geometry.Window(np.eye(4), fov, aspect)
    assert window.picture_fov(size) == pytest.approx(0.9)
    shown = window.camera(geometry.PageFrame.fit([camera(0)]), size)
    assert 2 * np.arctan(size[0] / 2 / shown.fxfycxcy[1]) == pytest.approx(0.9)


def test_a_wipe_shows_a_share_of_each():
    black, white = np.zeros((32, 48, 3), np.uint8), np.full((16, 24, 3), 200, np.uint8)
    for share in (0.0, 0.25, 1.0):
        shown = geometry.wipe(black, white, share)
        height, width, _ = shown.shape
        assert (height, width) == geometry.fill_window(black, 1.5).shape[:2]
        edge = round(share * width)
        assert not shown[:, : max(0, edge - 1)].any() and (shown[:, edge + 1 :] == 200).all()
        assert (shown == 255).any() == (0 < share < 1)


@pytest.mark.parametrize("value", [np.nan, np.inf, True, "1", None])
def test_numbers_of_browsers_are_checked(value):
    with pytest.raises(UserError, match="expected a number from 1 to 2"):
        geometry.bounded(value, 1.0, 2.0)
    assert [geometry.bounded(v, 1.0, 2.0) for v in (-1, 1.5, 1e9)] == [1, 1.5, 2]


# Worlds.


def test_where_visitors_stand_first_is_a_photograph(world):
    assert world.first == "1.png"


def test_cameras_far_away_are_of_another_world(world):
    near = world.gallery.listing()[0].photograph.camera
    moved = near.c2w.copy()
    moved[:3, 3] += [200.0, 0, 0]
    far = type(near)(moved, near.fxfycxcy, near.width, near.height)
    assert not world.is_far([near]) and world.is_far([near, far])


def test_places_are_few_and_have_sessions_of_their_own(world, tmp_path):
    places = Places(world, SIZE)
    photographs = read_scene(write_scene(tmp_path)).photographs
    opened = [places.open("mine", photographs[:5]) for _ in range(4)]
    assert [i.in_use for i in opened[0].gallery.listing()] == [True, True, False, True, True]
    assert opened[0].first in opened[0].gallery.in_use
    assert opened[0].gallery.max_views == MAX_VIEWS
    with pytest.raises(UserError, match="4 places of their own open"):
        places.open("mine", photographs)
    places.close(opened[0])
    places.close(opened[0])  # is closed already
    (tmp_path / "5.png").write_bytes(b"broken")
    with pytest.raises(UserError, match=r"5\.png"):
        places.open("mine", photographs)
    places.open("mine", photographs[:1])  # what failed takes no room
    assert world.session.views.keys() == {"0.png", "1.png", "2.png"}
    for place in list(places._open):
        places.close(place)


# Photographs without cameras.


def test_photographs_without_cameras(tmp_path):
    uploads = Uploads(Limits())
    members = {"x/IMG 1.png": picture(1), "x/IMG <2>.png": picture(2)}
    content = archive(members)
    with pytest.raises(NoPosesError):
        uploads.receive("2 files.zip", content)
    unposed = uploads.receive_unposed("2 files.zip", content)
    assert unposed.names == {
        "photograph-001.png": "x/IMG 1.png",
        "photograph-002.png": "x/IMG _2_.png",
    }
    assert (unposed.folder / "photograph-002.png").read_bytes() == picture(2)
    uploads.receive("cameras.json", poses_json({"a.png": 0}))
    with pytest.raises(NoPosesError):  # poses of other pictures do not change that
        uploads.receive("2 files.zip", content)
    with pytest.raises(UserError, match=r"b\.png has no poses"):  # nor is one picture lost quietly
        uploads.receive("two.zip", archive({"a.png": picture(0), "b.png": picture(1)}))
    uploads.close()
    assert not unposed.folder.exists()


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"a.png": picture(0), "b.png": b"GIF89a"}, "b.png: not a picture"),
        ({"a.png": picture(0), "b.png": b""}, "b.png: not a picture"),
        ({f"{i}.png": picture(i) for i in range(4)}, "more than 3 photographs"),
    ],
)
def test_bad_photographs_without_cameras_leave_nothing(members, message):
    uploads = Uploads(Limits(photographs=3))
    for _ in range(2):
        with pytest.raises(UserError, match=message):
            uploads.receive_unposed("some.zip", archive(members))
        assert not any(uploads._folder.iterdir())
    uploads.close()


def test_messages_name_files_as_the_visitor_does(tmp_path):

    unposed = Unposed(tmp_path / "7", {"photograph-001.jpg": "IMG 1.jpg"})
    text = f"{tmp_path}/7/photograph-001.jpg did not join; see {tmp_path}/7-posed.log"
    shown = unposed.in_their_words(text, tmp_path / "7-posed")
    assert shown.startswith("IMG 1.jpg did not join") and str(tmp_path) not in shown


# Jobs.


class Gui:
    """viser's panel, as far as jobs use it."""

    def __getattr__(self, _):
        return lambda *_, **options: mock.Mock(visible=options.get("visible"))


@pytest.fixture
def job():
    told = []
    tell = lambda title, body, **_: told.append((title, body))  # noqa: E731
    made = jobs.Job(Gui(), threading.Semaphore(), tell)
    made.told = told
    yield made
    made.close()


def wait_for(condition):
    end = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_jobs_are_one_at_a_time_and_can_be_stopped(job):
    begun, ended = threading.Event(), threading.Event()

    def work(report):
        begun.set()
        try:
            while True:
                report(0.5, "half")
                time.sleep(0.01)
        finally:
            ended.set()

    job.start("Work", work)
    assert begun.wait(WAIT)
    assert job._bar.value == 50 and job._button.visible
    with pytest.raises(UserError, match="one thing at a time"):
        job.start("Work", work)
    job.stop()
    assert ended.wait(WAIT)
    wait_for(lambda: job._stop is None and not job._button.visible)
    assert not job.told


def test_jobs_of_several_visitors_take_turns_and_errors_are_told(job):
    turn = job._turn
    turn.acquire()

    def fail(report):
        raise UserError("too dark")

    job.start("Work", fail)
    wait_for(lambda: "waits for the work of another" in str(job._words.content))
    assert not job.told
    turn.release()
    wait_for(lambda: job.told)
    assert job.told == [("Work: that did not work", "too dark")]
    wait_for(lambda: job._stop is None)
    assert turn.acquire(timeout=WAIT)  # is given back
    turn.release()
    job.close()
    job.start("Work", fail)  # of one who has left
    assert len(job.told) == 1


# Paths and small pictures.


def test_paths_are_of_the_kinds_that_are_listed(world, tmp_path):
    (tmp_path / "path.json").write_text("{}")
    safely = lambda callback: callback  # noqa: E731
    viewpoint, job = mock.Mock(spec=Viewpoint, world=world, request=None), mock.Mock(spec=jobs.Job)
    controls = paths.Paths(Gui(), viewpoint, SIZE, job, mock.Mock(), safely)
    for kind, message in (
        (str(tmp_path / "path.json"), "no such path"),
        (paths.KEY_FRAMES, "needs two of them"),
    ):
        controls._kind.value = kind
        with pytest.raises(UserError, match=message):
            controls._path(20.0)
    controls._kind.value = "dolly"
    assert len(controls._path(20.0)) == 240


def test_small_pictures_hold_no_names(world):
    items = [item for item in world.gallery.listing() if item.in_use]
    pictures = [(world.gallery.picture(item.name), True) for item in items]
    style = thumbnails.style_of([*pictures, (pictures[0][0], False)])
    assert style.count("data:image/jpeg;base64,") == 4 and ".png" not in style
    assert style.count("#ff8c00") == 3 and style.count("#00beff") == 1
