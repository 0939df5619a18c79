"""What a visitor brings, records and compares on the page, in a real Chromium."""

import sys
import threading
import time
import types

import numpy as np
import pytest
from PIL import Image

from lvsm_jax.common.errors import UserError
from lvsm_jax.scenes import camera_json
from lvsm_jax.viewer import geometry
from tests.helpers.viewer_browser import (
    READY,
    WAIT,
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
    viewpoint_of,
    window_of,
)
from tests.helpers.viewer_scene import SIZE, picture, poses_json

PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}


def drop(page, files: dict[str, bytes]):
    """Lets files fall on the page, as a browser does."""
    page.evaluate(
        """files => {
            const transfer = new DataTransfer();
            for (const [name, bytes] of Object.entries(files))
                transfer.items.add(new File([new Uint8Array(bytes)], name));
            const options = { dataTransfer: transfer, bubbles: true, cancelable: true };
            document.querySelector("canvas").dispatchEvent(new DragEvent("drop", options));
        }""",
        {name: list(content) for name, content in files.items()},
    )


@pytest.fixture
def found(monkeypatch):
    """A stand-in for the search for cameras: it waits for `go`, and then does what is in `work`."""
    stand_in = types.SimpleNamespace(go=threading.Event(), folders=[], work=None, ended=[])

    def find_poses(photographs, output, *, progress):
        stand_in.folders.append(photographs)
        try:
            while not stand_in.go.wait(0.05):
                told = {"stage": "matching", "done": 3, "total": 4, "seconds_left": 7.0}
                progress(types.SimpleNamespace(**told))
            return stand_in.work(photographs, output)
        except BaseException as error:
            stand_in.ended.append(error)
            raise

    monkeypatch.setitem(sys.modules, "lvsm_jax.poses", types.SimpleNamespace(find_poses=find_poses))
    return stand_in


def write_found(photographs, output):
    """A scene of all of them but the last, as if their cameras had been found."""
    files = sorted(photographs.iterdir())
    output.mkdir()
    for file in files:
        (output / file.name).write_bytes(file.read_bytes())
    poses = poses_json({file.name: i for i, file in enumerate(files[:-1])})
    (output / "cameras.json").write_bytes(poses)
    return types.SimpleNamespace(folder=output, left_out={files[-1].name: "no matches"})


def test_several_files_at_once(page, viewer, tmp_path):
    """Chosen, or dropped on the page: they come as one archive, whose order does not matter."""
    files = {"new.png": picture(98), "cameras.json": poses_json({"new.png": 5, "ü.png": 4})}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    tab(page, "Photos")
    with page.expect_file_chooser() as chooser:
        press(page, "Add photographs")
    chooser.value.set_files([tmp_path / name for name in files])
    expect(page.get_by_text("4 of 7 in use")).to_be_visible()
    choose(page, "new.png")
    press(page, "Remove")
    expect(page.get_by_text("3 of 7 in use")).to_be_visible()
    tab(page, "View")
    drop(page, {"ü.png": picture(97)})
    tab(page, "Photos")
    expect(page.get_by_text("4 of 8 in use")).to_be_visible()
    # Small pictures of those in use, which go there.
    page.get_by_role("button", name="ü.png", exact=True).click()
    goal = viewer.gallery.listing()[-1].camera.c2w
    frame = viewpoint_of(viewer).frame
    until(lambda: np.allclose(window_of(client_of(viewer)).c2w, frame.to_page(goal), atol=1e-3), "")


@pytest.mark.slow
def test_photographs_without_cameras_become_a_place_of_their_own(page, viewer, browser, found):
    files = {f"IMG {i}.png": picture(50 + i) for i in range(5)}
    found.work = write_found
    drop(page, files)
    expect(page.get_by_text("Finding cameras: matching 3 of 4, 7 s left")).to_be_visible()
    drop(page, files)  # while it goes on
    expect(page.get_by_text("one thing at a time")).to_be_visible()
    drag(page)  # nothing else stops
    shows_its_render(page, viewer)
    found.go.set()
    expect(page.get_by_text("but not those of IMG 4.png")).to_be_visible()
    tab(page, "Photos")
    expect(page.get_by_text("4 of 4 in use")).to_be_visible()
    world = viewpoint_of(viewer).world
    assert [item.name for item in world.gallery.listing()] == [f"IMG {i}.png" for i in range(4)]
    assert viewer.session.views.keys() == {"0.png", "1.png", "2.png"}

    def shows_own():
        camera = window_of(client_of(viewer)).camera(viewpoint_of(viewer).frame, SIZE)
        render = world.session.render(camera, height=SIZE[0], width=SIZE[1])
        seen = canvas(page)
        filled = geometry.fill_window(render, seen.shape[1] / seen.shape[0])
        return difference(np.asarray(Image.fromarray(filled).resize(seen.shape[1::-1])), seen) < 3

    until(shows_own, "the place")
    place = page.locator("input[role=combobox]:visible").first
    place.click()
    page.get_by_role("option", name="The scene").click()
    expect(page.get_by_text("3 of 6 in use")).to_be_visible()
    shows_its_render(page, viewer)
    page.reload()  # the place is gone with the visitor
    expect(page.get_by_text(READY)).to_be_visible(timeout=1000 * WAIT)
    until(lambda: not viewer._page.places._open, "the place to be closed")
    with pytest.raises(RuntimeError, match="closed"):
        world.session.views  # noqa: B018


@pytest.mark.slow
def test_a_search_that_fails_is_told_and_one_that_is_left_is_stopped(page, viewer, found):
    def refuse(photographs, output):
        raise UserError(f"{photographs}/photograph-002.png overlaps with none")

    found.work = refuse
    files = {f"{name}.png": picture(i) for i, name in enumerate("abc")}
    drop(page, files)
    found.go.set()
    expect(page.get_by_text("b.png overlaps with none", exact=True)).to_be_visible()
    found.go.clear()
    drop(page, files)
    until(lambda: len(found.folders) == 2, "a second search")
    expect(page.get_by_role("button", name="Stop this")).to_be_visible()
    page.reload()
    until(lambda: len(found.ended) == 2, "its end")
    until(lambda: not found.folders[1].exists(), "its files to be gone")
    expect(page.get_by_text(READY)).to_be_visible(timeout=1000 * WAIT)
    shows_its_render(page, viewer)


@pytest.mark.slow
def test_key_frames_are_played_and_downloaded(page, viewer):
    tab(page, "Path")
    client, view = client_of(viewer), viewpoint_of(viewer)
    press(page, "Add")
    expect(page.get_by_text("1 key frame", exact=True)).to_be_visible()
    first = view.request.camera(SIZE)
    before = window_of(client).c2w
    drag(page)
    until(lambda: not np.allclose(window_of(client).c2w, before, atol=0.05), "a move")
    time.sleep(0.5)
    press(page, "Add")
    expect(page.get_by_text("2 key frames", exact=True)).to_be_visible()
    last = view.request.camera(SIZE)
    with page.expect_download() as download:
        press(page, "Download cameras")
    path = camera_json.read_camera_path(download.value.path())
    for ours, expected in ((path[0], first), (path[-1], last)):
        np.testing.assert_allclose(ours.c2w, expected.c2w, atol=1e-6)
        np.testing.assert_allclose(ours.fxfycxcy, expected.fxfycxcy, rtol=1e-6)
    assert len(path) == 30 * 2.5 + 1
    press(page, "Play")
    start = view.frame.to_page(first.c2w)
    until(lambda: np.allclose(window_of(client).c2w, start, atol=0.1), "the first key frame")
    end = view.frame.to_page(last.c2w)
    until(lambda: np.allclose(window_of(client).c2w, end, atol=1e-3), "the last one")
    expect(page.get_by_role("button", name="Play")).to_be_visible()
    with page.expect_download(timeout=1000 * WAIT) as download:
        press(page, "Download video")
    assert download.value.path().read_bytes()[4:8] == b"ftyp"


@pytest.mark.slow
def test_a_picture_the_field_of_view_and_the_way_back(page, viewer):
    client, view = client_of(viewer), viewpoint_of(viewer)
    start = window_of(client)
    fov = page.get_by_role("textbox").first
    fov.fill("80")
    fov.press("Enter")
    until(lambda: abs(view.fov - 80) < 0.1, "the field of view")
    drag(page)
    shows_its_render(page, viewer)
    with page.expect_download() as download:
        press(page, "Download picture")
    saved = np.asarray(Image.open(download.value.path()))
    np.testing.assert_array_equal(saved, view.request.render(SIZE))
    here = view.request.camera(SIZE)
    speed = page.get_by_role("textbox").nth(1)
    speed.fill("1")
    speed.press("Enter")  # a page half as large, on which the visitor stays where they are
    until(lambda: view.magnification == pytest.approx(2), "another speed")
    shows_its_render(page, viewer)
    np.testing.assert_allclose(view.request.camera(SIZE).c2w, here.c2w, atol=1e-3)
    press(page, "Back to the start")
    until(lambda: abs(window_of(client).fov - start.fov) < 1e-3, "the start")
    np.testing.assert_allclose(2 * window_of(client).c2w[:3, 3], start.c2w[:3, 3], atol=1e-3)


@pytest.mark.slow
def test_a_photograph_is_laid_over_the_render_from_there(page, viewer):
    tab(page, "Compare")
    press(page, "Next held-out view")
    item = viewer.gallery.listing()[3]
    expect(page.get_by_text("from the photograph, held out")).to_be_visible()
    photograph = viewer.gallery.picture(item.name)
    render = viewer.session.render(item.photograph.camera)
    error = np.square(photograph / 255.0 - render / 255.0).mean()
    expect(page.get_by_text(f"{-10 * np.log10(error):.1f} dB PSNR")).to_be_visible()
    slider = page.get_by_role("textbox").first

    def like(shown):
        def same():
            seen = canvas(page)
            filled = geometry.fill_window(shown, seen.shape[1] / seen.shape[0])
            filled = Image.fromarray(filled).resize(seen.shape[1::-1])
            return difference(np.asarray(filled), seen) < 3

        return same

    until(like(geometry.wipe(photograph, render, 0.5)), "a half of each")
    slider.fill("100")
    slider.press("Enter")
    until(like(photograph), "the photograph alone")
    drag(page)
    expect(page.get_by_text("Go to a photograph and move the slider")).to_be_visible()
    shows_its_render(page, viewer)


def test_on_a_phone_the_panel_is_closed_at_first(viewer, browser):
    with browser.new_context(**PHONE) as context:
        phone = context.new_page()
        phone.goto(viewer.url)
        handle = phone.get_by_text("lvsm_jax", exact=True)
        expect(handle).to_be_visible(timeout=1000 * WAIT)
        expect(phone.get_by_text(READY)).not_to_be_visible(timeout=1000 * WAIT)
        handle.tap()
        expect(phone.get_by_text(READY)).to_be_visible()
    until(lambda: not viewer._server.get_clients(), "the visitor to be gone")
