"""Sessions: photographs in any world, by name; renders are those of the model itself."""

import dataclasses
import io
import itertools
import threading
import time

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image

import lvsm_jax
from input_pipeline.preprocess import camera_to_world, preprocess_frame
from lvsm_jax import Photograph, PosedCamera, Session
from lvsm_jax.common.errors import UserError
from lvsm_jax.common.tree import from_named, named_leaves
from lvsm_jax.models.architectures import abstract_model
from lvsm_jax.rendering import view_cache
from lvsm_jax.scenes.photograph import ResizeCrop
from lvsm_jax.scenes.scene_frame import SceneFrame
from tests.helpers.copying import with_random_copies

SIZE = (16, 24)
SIZES = ((40, 30), (30, 40), (64, 24), (24, 16), (33, 57))  # width, height


@pytest.fixture(scope="module")
def model():
    config = lvsm_jax.EfficientLVSMConfig(num_layers=2, width=32, head_dim=16)
    model = lvsm_jax.EfficientLVSM(config, rngs=nnx.Rngs(0))
    # So that renders depend on inputs and cameras far beyond rounding to 8 bits.
    factors = {"decoder": 10, "input_tokenizer": 10, "target_tokenizer": 10, "head": 5}
    leaves = named_leaves(model).items()
    return from_named(model, {name: a * factors.get(name.split(".")[0], 1) for name, a in leaves})


@pytest.fixture
def session(model):
    with open_session(model) as session:
        yield session


def open_session(model, **options):
    options = {"image_height": SIZE[0], "image_width": SIZE[1], "max_views": 4} | options
    return Session(model, **options)


def pose(seed: int) -> np.ndarray:
    """Cameras that look about the same way."""
    rng = np.random.default_rng(seed)
    q, r = np.linalg.qr(np.eye(3) + 0.2 * rng.standard_normal((3, 3)))
    matrix = np.eye(4)
    matrix[:3, :3] = q * np.sign(np.diag(r))
    matrix[:3, :3] *= np.linalg.det(matrix[:3, :3])
    matrix[:3, 3] = rng.uniform(-1, 1, 3)
    return matrix


def camera(seed: int, size=None, world=lambda c2w: c2w) -> PosedCamera:
    width, height = SIZES[seed % len(SIZES)] if size is None else size
    fxfycxcy = (0.9 * width, 0.9 * width, 0.45 * width, 0.55 * height)
    return PosedCamera(world(pose(seed)), fxfycxcy, width, height)


def photograph(seed: int, name: str | None = None, **options) -> Photograph:
    """A smooth picture, so that it does not only test the noise in it."""
    shown = camera(seed, **options)
    rng = np.random.default_rng(1000 + seed)
    small = Image.fromarray(rng.integers(0, 256, (4, 5, 3), np.uint8))
    pixels = np.asarray(small.resize((shown.width, shown.height), Image.Resampling.BICUBIC))
    return Photograph(pixels, shown, name)


def expected_renders(model, frame, photographs, cameras) -> np.ndarray:
    """What the model itself renders from the same photographs."""

    def as_seen(cameras):
        c2w = frame.apply(np.stack([camera.c2w for camera in cameras]))
        cut = [camera.cropped_to(*SIZE).fxfycxcy for camera in cameras]
        return lvsm_jax.Cameras(c2w[None], np.stack(cut).astype(np.float32)[None])

    pictures = [
        ResizeCrop.cover((p.camera.width, p.camera.height), *SIZE).pixels(Image.fromarray(p.pixels))
        for p in photographs
    ]
    images = np.stack(pictures)[None].astype(np.float32) / 255
    inputs = as_seen([p.camera for p in photographs])
    return np.asarray(model(images, inputs, as_seen(cameras))[0]) * 255


def assert_same_picture(ours, expected):
    assert ours.dtype == np.uint8
    atol = 1 if expected.dtype == np.uint8 else 0.5 + 255e-5
    np.testing.assert_allclose(ours.astype(np.float64), expected, atol=atol)


def test_renders_are_the_models(model, session):
    photographs = [photograph(seed) for seed in range(3)]
    assert session.frame is None
    assert session.add(photographs) == ["view-0", "view-1", "view-2"]
    frame = SceneFrame.fit(np.stack([p.camera.c2w for p in photographs]))
    np.testing.assert_array_equal(session.frame.world_to_scene, frame.world_to_scene)
    assert session.frame.scale == frame.scale
    cameras = [camera(seed) for seed in (7, 8, 9)]
    expected = expected_renders(model, frame, photographs, cameras)
    assert expected.std() > 10  # there is something to see
    for shown, picture in zip(cameras, expected, strict=True):
        assert_same_picture(session.render(shown), picture)


def test_a_head_that_copies(model):
    """Also after a view was replaced and another removed."""
    config = dataclasses.replace(model.config, copy_head=True)
    fresh = lvsm_jax.EfficientLVSM(config, rngs=nnx.Rngs(0))
    copying = with_random_copies(from_named(fresh, named_leaves(fresh) | named_leaves(model)))
    photographs = [photograph(seed) for seed in range(4)]
    with open_session(copying) as session:
        session.add(photographs[:3])
        session.replace("view-0", photographs[3])
        session.remove("view-1")
        left, shown = [photographs[3], photographs[2]], camera(7)
        (expected,) = expected_renders(copying, session.frame, left, [shown])
        assert_same_picture(session.render(shown), expected)
        cache = lvsm_jax.init_cache(copying, 1, 4, SIZE)
        assert session.memory == {"total": cache.nbytes, "per_view": cache.nbytes // 4}


def rigid_and_scaled(c2w):
    moved = pose(77) @ pose(78) @ c2w
    moved[:3, 3] = 123.4 * moved[:3, 3] + [1000, -300, 50]
    return moved


def test_the_world_and_its_unit_do_not_matter(model, session):
    with open_session(model) as other:
        for ours, world in ((session, lambda c2w: c2w), (other, rigid_and_scaled)):
            ours.add([photograph(seed, world=world) for seed in range(2)])
            ours.add(photograph(2, world=world))
            ours.replace("view-0", photograph(3, world=world))
        for seed in (7, 8):
            a = session.render(camera(seed)).astype(int)
            b = other.render(camera(seed, world=rigid_and_scaled)).astype(int)
            assert np.abs(a - b).max() <= 1


def test_realestate10k_as_in_training(model):
    """Pixels, intrinsics and cameras are those of the input pipeline, bit for bit."""
    photographs, frames, w2c = [], [], []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (90, 160, 3), np.uint8)).save(file, "JPEG")
        normalised = rng.uniform(0.4, 0.9, 4).astype(np.float32)
        w2c.append(np.linalg.inv(pose(seed))[:3].astype(np.float32))
        frames.append(preprocess_frame(file.getvalue(), normalised, 32, True))
        fxfycxcy = normalised * np.array([160, 90, 160, 90], np.float64)
        shown = PosedCamera.from_w2c(w2c[-1], fxfycxcy, 160, 90)
        photographs.append(Photograph(np.asarray(Image.open(file)), shown))
    c2w = np.stack([camera_to_world(matrix) for matrix in w2c])
    with open_session(model, image_height=32, image_width=None) as session:
        session.add(photographs)
        for view, (picture, fxfycxcy), pose_ in zip(
            session.views.values(), frames, SceneFrame.fit(c2w).apply(c2w), strict=True
        ):
            np.testing.assert_array_equal(view.picture, picture)
            cut = view.camera.cropped_to(32, 32).fxfycxcy.astype(np.float32)
            np.testing.assert_array_equal(cut, fxfycxcy)
            np.testing.assert_array_equal(session.frame.apply(view.camera.c2w), pose_)


def test_random_changes_by_name(model, session):
    """Removing renumbers the views of the cache; names still mean the same photographs."""
    rng, there = np.random.default_rng(0), {}
    frame, compared = None, 0
    for step in range(80):
        kind, names = rng.choice(["add", "replace", "remove"]), list(there)
        if kind == "add" and len(there) < 4:
            count = int(rng.integers(1, 5 - len(there)))
            new = [photograph(step + i, f"{step}+{i}") for i in range(count)]
            assert session.add(new) == [p.name for p in new]
            there |= {p.name: p for p in new}
        elif kind == "replace" and there:
            name = rng.choice(names)
            there[name] = photograph(step)
            session.replace(name, there[name])
        elif kind == "remove":
            gone = rng.permutation(names)[: rng.integers(0, 3)].tolist()
            session.remove(*gone)
            for name in gone:
                del there[name]
        frame = frame or session.frame
        assert session.frame is frame
        assert list(session.views) == list(there)
        assert all(session.views[name].camera is p.camera for name, p in there.items())
        if len(there) == 3:
            shown = camera(500 + step)
            [expected] = expected_renders(model, frame, there.values(), [shown])
            assert_same_picture(session.render(shown), expected)
            compared += 1
    assert compared > 10


def test_names_given_by_the_session(session):
    assert session.add(photograph(0, "view-1")) == ["view-1"]
    assert session.add([photograph(1), photograph(2, "a"), photograph(3)]) == [
        "view-0",
        "a",
        "view-2",
    ]
    session.remove("view-2", "view-0")
    with pytest.raises(ValueError, match="full"):
        session.add([photograph(1)] * 3)
    assert session.add(photograph(1)) == ["view-3"]  # no number twice, and a failure takes none
    assert session.add([]) == []


def test_a_failed_call_leaves_everything_as_it_was(model):
    with open_session(model, max_pixels=3000, max_views=5) as session:
        pictures = [np.full((30, 40, 3), 9, np.uint8), np.zeros((60, 60, 3), np.uint8)]
        good, bad_pose = photograph(5), pose(5)
        bad_pose[0, 3] = np.nan
        mirrored = pose(5) @ np.diag([1, 1, -1, 1])
        far = pose(5)
        far[:3, 3] = 9e11
        f = (30, 30, 20, 15)
        far = Photograph(pictures[0], PosedCamera(far, f, 40, 30))
        # As generators, for some of them cannot even be made.
        adds = (
            (lambda: Photograph(pictures[0], camera(0, (30, 40))), "is 40×30 pixels, but"),
            (lambda: Photograph(pictures[0], PosedCamera(bad_pose, f, 40, 30)), "not finite"),
            (lambda: Photograph(pictures[0], PosedCamera(2 * pose(5), f, 40, 30)), "last row"),
            (lambda: Photograph(pictures[0], PosedCamera(mirrored, f, 40, 30)), "mirrors"),
            (lambda: Photograph(pictures[1], camera(0, (60, 60)), "big"), "'big' has 60×60"),
            (lambda: photograph(0, size=(250, 2)), "when it is resized, more than"),
            (lambda: photograph(0, "twice"), "several photographs are called 'twice'"),
        )

        def check_adds():
            for bad, message in adds:
                with pytest.raises(ValueError, match=message):
                    session.add(make() for make in (lambda: photograph(4, "twice"), bad))

        check_adds()
        assert session.frame is None and not session.views
        with pytest.raises(ValueError, match="nothing to render from"):
            session.render(camera(7))
        with pytest.raises(ValueError, match="nothing to render from"):
            session.render_path([camera(7)])

        session.add([photograph(seed, f"p{seed}") for seed in range(3)])
        before, views, frame = session.render(camera(7)), session.views, session.frame
        check_adds()
        for call, message in (
            (lambda: session.add([good, photograph(1, "p1")]), "a view 'p1' already"),
            (lambda: session.add(far), "in the frame of the session, cameras.c2w has"),
            (lambda: session.replace("p0", far), "in the frame of the session"),
            (lambda: session.render(far.camera), "in the frame of the session"),
            (lambda: session.add([good] * 3), "full: 3 more .* 3 of at most 5: .* p0, p1, p2"),
            (lambda: session.replace("p3", good), "no view 'p3'; there are: p0, p1, p2"),
            (lambda: session.replace("p0", adds[4][0]()), "'big' has 60×60 pixels"),
            (lambda: session.remove("p0", "p3"), "no view 'p3'"),
            (lambda: session.remove("p0", "p1", "p0"), "a view is named twice"),
            (lambda: session.render(camera(7), height=12, width=16), "multiples of the patch"),
            (lambda: session.render(camera(7), height=16), "both height and width"),
            (lambda: session.render(camera(7), height=64, width=64), "more than max_pixels"),
        ):
            with pytest.raises(ValueError, match=message):
                call()
        assert session.frame is frame
        assert session.views == views
        np.testing.assert_array_equal(session.render(camera(7)), before)


@pytest.mark.parametrize("change", ["add", "replace", "remove"])
def test_a_change_that_is_interrupted_on_the_way(session, monkeypatch, change):
    """Even what has been given away to a program by then comes back."""
    session.add([photograph(seed) for seed in range(2)])
    session.remove("view-0")
    session.add(photograph(3))
    before, views = session.render(camera(7)), session.views
    function = {"add": "add_views", "replace": "replace_view", "remove": "remove_views"}[change]
    real, calls = getattr(view_cache, function), itertools.count()

    def interrupted(*arguments, **options):
        result = real(*arguments, **options)
        if next(calls) == (change != "replace"):  # in the middle of several
            raise KeyboardInterrupt
        return result

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(view_cache, function, interrupted)
        if change == "add":
            session.add([photograph(4), photograph(5)])
        elif change == "replace":
            session.replace("view-1", photograph(4))
        else:
            session.remove("view-1", "view-2")
    assert session.views == views
    np.testing.assert_array_equal(session.render(camera(7)), before)
    assert session.add(photograph(4)) == ["view-3"]


def test_other_sizes_of_renders(model, session):
    photographs = [photograph(seed) for seed in range(3)]
    session.add(photographs)
    wide = camera(7, (96, 64))
    # The same shape shows the whole picture, another its middle.
    assert_same_picture(session.render(wide), session.render(wide.cropped_to(*SIZE)))
    cut = wide.cropped_to(32, 16)
    ours = session.render(wide, height=32, width=16)
    assert ours.shape == (32, 16, 3)
    np.testing.assert_array_equal(ours, session.render(cut, height=32, width=16))
    np.testing.assert_allclose(cut.fxfycxcy, wide.fxfycxcy / 2 - [0, 0, 16, 0])
    frame = session.frame
    images = np.stack([view.picture for view in session.views.values()])[None] / np.float32(255)
    inputs = [view.camera.cropped_to(*SIZE) for view in session.views.values()]
    as_seen = [
        lvsm_jax.Cameras(
            frame.apply(np.stack([c.c2w for c in cameras]))[None],
            np.stack([c.fxfycxcy for c in cameras]).astype(np.float32)[None],
        )
        for cameras in (inputs, [cut])
    ]

    @jax.jit
    def render(images, inputs, targets):
        return model.decode(model.encode(images, inputs), targets, 32, 16)

    expected = render(images, *as_seen)
    assert_same_picture(ours, np.asarray(expected[0, 0]) * 255)


def test_a_path_sees_what_is_added_on_the_way(model):
    with open_session(model, targets_at_once=2) as session:
        session.add([photograph(seed) for seed in range(2)])
        cameras = [camera(seed) for seed in range(7, 12)]
        before = [session.render(shown) for shown in cameras]
        frames = session.render_path(cameras)
        for expected in before[:2]:
            assert_same_picture(next(frames), expected)
        session.add([photograph(2), photograph(3)])
        after = [session.render(shown) for shown in cameras[2:]]
        rest = list(frames)
        assert len(rest) == 3
        for ours, expected, old in zip(rest, after, before[2:], strict=True):
            assert_same_picture(ours, expected)
            assert np.abs(ours.astype(int) - old).max() > 5
        assert list(session.render_path([])) == []
        unfinished = session.render_path(cameras)
        next(unfinished), next(unfinished)
        session.close()
        with pytest.raises(RuntimeError, match="closed"):
            next(unfinished)


@pytest.mark.parametrize("committed", [False, True])
def test_nothing_compiles_again(model, committed):
    if committed:  # as `lvsm_jax.load` returns it
        model = jax.device_put(model, jax.devices()[0])
    programs = (
        view_cache._add_views,
        view_cache._replace_view,
        view_cache._remove_views,
        view_cache._render,
    )
    with open_session(model, targets_at_once=2) as session:

        def everything(seed, count):
            names = session.add([photograph(seed + i) for i in range(count)])
            session.replace(names[0], photograph(seed + 9))
            session.render(camera(seed))
            list(session.render_path([camera(seed + i) for i in range(count)]))
            session.render(camera(seed), height=16, width=16)
            session.remove(*names)

        everything(0, 1)
        sizes = [program._cache_size() for program in programs]
        for seed, count in ((1, 3), (2, 4), (3, 1), (4, 2)):
            everything(seed, count)
        assert [program._cache_size() for program in programs] == sizes


def test_threads(model, monkeypatch):
    """Several render while others add, replace and remove; the cache is used by one at a time."""
    busy = threading.Lock()

    def alone(function):
        def call(*arguments, **options):
            assert busy.acquire(blocking=False)
            try:
                return function(*arguments, **options)
            finally:
                busy.release()

        return call

    for name in ("add_views", "replace_view", "remove_views", "render"):
        monkeypatch.setattr(view_cache, name, alone(getattr(view_cache, name)))
    with open_session(model, targets_at_once=2) as session:
        session.add([photograph(seed, f"stays-{seed}") for seed in range(2)])
        expected = session.render(camera(7))
        list(session.render_path([camera(7)]))
        stop, errors = threading.Event(), []
        renders, changes = itertools.count(), itertools.count()

        def repeat(work):
            try:
                while not stop.is_set():
                    work()
            except BaseException as error:
                errors.append(error)
                stop.set()

        def render():
            assert session.render(camera(7)).shape == (*SIZE, 3)
            next(renders)

        def path():
            assert len(list(session.render_path([camera(7), camera(8), camera(9)]))) == 3
            assert set(session.views) >= {"stays-0", "stays-1"}
            assert session.memory and session.timings

        def change(seed):
            [name] = session.add(photograph(seed))
            session.replace(name, photograph(seed + 1))
            session.remove(name)
            next(changes)

        works = [render, render, path, lambda: change(10), lambda: change(20)]
        threads = [threading.Thread(target=repeat, args=(work,)) for work in works]
        for thread in threads:
            thread.start()
        time.sleep(1)
        stop.set()
        for thread in threads:
            thread.join()
        assert not errors
        assert next(renders) > 0 and next(changes) > 0
        assert list(session.views) == ["stays-0", "stays-1"]
        np.testing.assert_allclose(session.render(camera(7)).astype(int), expected, atol=1)


def test_close(model):
    session = open_session(model)
    session.add(photograph(0))
    keys = session._cache.store[0][0].data
    session.close()
    session.close()
    assert keys.is_deleted()
    for call in (
        lambda: session.add(photograph(1)),
        lambda: session.add([photograph(1)] * 9),
        lambda: session.replace("view-0", photograph(1)),
        lambda: session.remove("view-0"),
        lambda: session.render(camera(1)),
        lambda: session.render_path([camera(1)]),
        lambda: session.views,
        lambda: session.frame,
        lambda: session.memory,
        lambda: session.timings,
    ):
        with pytest.raises(RuntimeError, match="the session is closed"):
            call()
    with open_session(model) as another:  # the model is not the session's to free
        another.add(photograph(0))
        another.render(camera(1))


def test_memory(model, session):
    # 4 places · 2 · layers · tokens · width; int8 has 4 bytes of scale for 16 channels.
    numbers = 2 * 2 * 6 * 32
    assert session.memory == {"total": 4 * 4 * numbers, "per_view": 4 * numbers}
    config = dataclasses.replace(model.config, cache_dtype="int8")
    with open_session(from_named(abstract_model(config), named_leaves(model))) as smaller:
        assert smaller.memory == {"total": 4 * 1.25 * numbers, "per_view": 1.25 * numbers}


def test_timings(model):
    with open_session(model, targets_at_once=2) as session:
        assert session.timings == {}
        session.add(photograph(0))
        session.replace("view-0", photograph(1))
        session.render(camera(1))
        list(session.render_path([camera(1)]))
        session.remove("view-0")
        kinds = {"add", "replace", "render", "render_path", "remove"}
        assert session.timings.keys() == kinds
        assert all(seconds > 0 for seconds in session.timings.values())


def test_frame_and_scale(model, session):
    session.add(photograph(0))
    assert session.frame.scale == 1
    with open_session(model, scale=0.25) as other:
        # A world four times as large.
        def larger(c2w):
            return np.concatenate([c2w[:, :3], c2w[:, 3:] * [[4], [4], [4], [1]]], axis=1)

        other.add(photograph(0, world=larger))
        a, b = session.render(camera(7)), other.render(camera(7, world=larger))
        assert np.abs(a.astype(int) - b).max() <= 1
    with open_session(model, frame=session.frame) as other:
        other.add([photograph(1), photograph(0)])
        assert other.frame is session.frame
        other.remove("view-0")
        np.testing.assert_allclose(other.render(camera(7)).astype(int), a, atol=1)
        other.remove("view-1")
        assert other.frame is session.frame


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_height": 12}, "multiples of the patch"),
        ({"max_views": 0}, "max_views is 0"),
        ({"max_pixels": 0}, "max_pixels is 0"),
        ({"targets_at_once": 0}, "targets_at_once is 0"),
        ({"scale": 0.0}, "scale is 0.0"),
        ({"scale": 1.0, "frame": SceneFrame(np.eye(4), 1.0)}, "only one of frame and scale"),
    ],
)
def test_impossible_sessions_are_refused(model, options, message):
    with pytest.raises(ValueError, match=message):
        open_session(model, **options)


def test_other_models_have_no_sessions():
    config = lvsm_jax.LVSMDecoderOnlyConfig(num_layers=1, width=32, head_dim=16)
    with pytest.raises(ValueError, match="LVSMDecoderOnly has no keys and values"):
        open_session(lvsm_jax.LVSMDecoderOnly(config, rngs=nnx.Rngs(0)))


def test_a_render_that_is_not_finite_is_an_error(model):
    leaves = named_leaves(model)
    damaged = from_named(model, leaves | {"head.kernel": leaves["head.kernel"] * np.nan})
    with open_session(damaged) as session:
        session.add([photograph(seed) for seed in range(2)])
        with pytest.raises(UserError, match="the render is not finite at the position"):
            session.render(camera(7))
        with pytest.raises(UserError, match="not finite"):
            list(session.render_path([camera(7), camera(8)]))
        assert len(session.views) == 2


def test_pictures_of_a_size_that_no_device_holds(model):
    with pytest.raises(UserError, match="more than max_pixels"):
        open_session(model, image_height=8_000_000, image_width=8_000_000)
