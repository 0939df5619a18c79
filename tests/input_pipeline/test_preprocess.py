"""Pixels, intrinsics and camera normalisation against the reference program's."""

import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from input_pipeline.preprocess import (
    Crop,
    FrameError,
    camera_to_world,
    crop_frame,
    preprocess_frame,
)
from lvsm_jax.scenes.photograph import Photograph, PosedCamera, ResizeCrop, resized_side
from lvsm_jax.scenes.scene_frame import SceneFrame


@pytest.fixture(scope="module")
def golden(goldens):
    with np.load(goldens / "preprocess.npz") as arrays:
        return dict(arrays)


def encoded(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    return file.getvalue()


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize(
    ("name", "height", "square"),
    [
        ("square64", 64, True),
        ("square256", 256, True),
        ("square512", 512, True),
        ("wide256", 256, False),
    ],
)
def test_frames_are_the_references_bit_for_bit(golden, name, height, square):
    expected = golden[f"{name}/image_uint8"]
    normalised = golden["fxfycxcy_pixels"] / [640, 360, 640, 360]
    for i in range(5):
        image, fxfycxcy = preprocess_frame(
            golden[f"jpeg_{i}"].tobytes(), normalised[i].astype(np.float32), height, square
        )
        np.testing.assert_allclose(fxfycxcy, golden[f"{name}/fxfycxcy"][i], rtol=2e-6)
        if i < len(expected):
            assert image.dtype == np.uint8
            np.testing.assert_array_equal(image, expected[i])


def test_camera_to_world_is_the_references(golden):
    for w2c, c2w in zip(golden["w2c"], golden["c2w_raw"], strict=True):
        np.testing.assert_allclose(camera_to_world(w2c[:3]), c2w, atol=1e-6)


@pytest.mark.parametrize(("views", "name"), [(5, "c2w_normalized"), (2, "c2w_normalized_first2")])
def test_scene_frame_is_the_references(golden, views, name):
    c2w = golden["c2w_raw"][:views]
    ours = SceneFrame.fit(c2w).apply(c2w)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, golden[name], atol=2e-6)


@pytest.mark.parametrize(
    ("width", "height", "size"),
    [
        (640, 360, 96),
        (640, 360, 256),
        (640, 360, 360),
        (641, 359, 128),
        (455, 256, 256),
        (640, 480, 224),
        (100, 75, 96),
        (512, 512, 64),
        (1280, 719, 56),
    ],
)
def test_leaving_out_cropped_columns_changes_no_bit(width, height, size):
    jpeg = encoded(noise(width, height))
    resized = ResizeCrop.cover((width, height), size, size).resized[0]
    left = (resized - size) // 2
    whole = Image.open(io.BytesIO(jpeg)).resize((resized, size), Image.Resampling.LANCZOS)
    ours, _ = preprocess_frame(jpeg, np.ones(4, np.float32), size, True)
    np.testing.assert_array_equal(ours, np.asarray(whole)[:, left : left + size])


@pytest.mark.parametrize("size", [(640, 360), (641, 359), (512, 512)])
def test_the_middle_square_is_the_published_one_bit_for_bit(size):
    jpeg, fxfycxcy = encoded(noise(*size)), np.array([0.9, 1.6, 0.5, 0.5], np.float32)
    published = preprocess_frame(jpeg, fxfycxcy, 96, True)
    for ours, theirs in zip(crop_frame(jpeg, fxfycxcy, Crop(96, 96)), published, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    "crop",
    [
        Crop(64, 64),
        Crop(48, 96),
        Crop(96, 48, place=(0.9, 0.1)),
        Crop(64, 64, 0.8, (0.0, 1.0)),
        Crop(56, 72, 0.6, (0.9, 0.7)),
        Crop(160, 120, 0.4, (0.3, 0.2)),
    ],
)
@pytest.mark.parametrize("size", [(160, 120), (90, 140)])
def test_a_point_is_seen_where_the_intrinsics_of_a_crop_project_it(size, crop):
    # Every pixel of the picture says in its colour where in the picture it is.
    (width, height), rng = size, np.random.default_rng(0)
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    picture = np.stack([x / width, y / height, 0 * x], -1) * 255
    file = io.BytesIO()
    Image.fromarray(picture.round().astype(np.uint8)).save(file, "JPEG", quality=100, subsampling=0)
    before = np.array([0.9, 1.2, 0.45, 0.52])
    image, after = crop_frame(file.getvalue(), before, crop)
    assert image.shape == (crop.height, crop.width, 3)

    # Points in front of the camera that fall on the middles of pixels, not at the very border.
    column, row = rng.integers(3, [crop.width - 3, crop.height - 3], (2000, 2)).T
    depth = rng.uniform(1, 9, 2000)
    pixels = np.stack([column, row], -1) + 0.5
    points = (pixels - after[2:]) / after[:2] * depth[:, None]
    in_picture = before[:2] * points / depth[:, None] + before[2:]
    seen = image[row, column, :2] / 255
    error = (seen - in_picture) * size  # in pixels of the picture
    for half in (column < crop.width / 2, column >= crop.width / 2):
        np.testing.assert_allclose(error[half].mean(0), 0, atol=0.08)
    assert np.abs(error).max() < 2  # JPEG may be off by some of the 256 levels


@pytest.mark.parametrize(
    ("frame", "height", "square", "expected"),
    [
        ((640, 360), 256, True, (456, 100, 356)),
        ((640, 360), 256, False, (456, 0, 456)),
        ((640, 360), 512, True, (912, 200, 712)),
        ((300, 300), 64, True, (64, 0, 64)),
    ],
)
def test_resized_width_and_kept_columns(frame, height, square, expected):
    crop = ResizeCrop.cover(frame, height, height if square else resized_side(*frame, height))
    assert crop.resized[1] == height
    assert (crop.resized[0], crop.window[0], crop.window[2]) == expected


def test_the_size_is_the_images_own_and_colour_is_made_of_grey():
    jpeg = encoded(noise(96, 64).convert("L"))
    image, fxfycxcy = preprocess_frame(jpeg, np.array([1, 1, 0.5, 0.5], np.float32), 32, False)
    assert image.shape == (32, 48, 3)
    np.testing.assert_array_equal(image[..., 0], image[..., 2])
    np.testing.assert_allclose(fxfycxcy, [48, 32, 24, 16])


@pytest.mark.parametrize(
    ("jpeg", "reason"),
    [
        (b"", "not a JPEG or PNG"),
        (b"GIF89a no photograph at all", "not a JPEG or PNG"),
        (encoded(noise(64, 64))[:1500], "truncated"),
        (encoded(noise(64, 64))[:100], "cannot be decoded"),
    ],
)
def test_bad_frames_are_refused_with_a_reason(jpeg, reason):
    with pytest.raises(FrameError, match=reason):
        preprocess_frame(jpeg, np.ones(4, np.float32), 32, True)


def test_an_upright_frame_is_cut_as_it_is_rendered():
    jpeg, fxfycxcy = encoded(noise(40, 64)), np.array([30, 30, 19, 33])
    shares = (fxfycxcy / [40, 64, 40, 64]).astype(np.float32)
    image, intrinsics = preprocess_frame(jpeg, shares, 32, True)
    camera = PosedCamera(np.eye(4), fxfycxcy, 40, 64)
    photograph = Photograph.decode(jpeg, camera, "upright")
    np.testing.assert_array_equal(image, photograph.cropped_to(32, 32))
    np.testing.assert_allclose(intrinsics, camera.cropped_to(32, 32).fxfycxcy, rtol=1e-6)
    with pytest.raises(FrameError, match="a frame of 4×64 pixels is 0 pixels wide at height 32"):
        preprocess_frame(encoded(noise(4, 64)), shares, 32, False)


@pytest.mark.parametrize(
    ("w2c", "reason"),
    [(np.full((3, 4), np.nan), "not finite"), (np.zeros((3, 4)), "no inverse")],
)
def test_bad_cameras_are_refused_with_a_reason(w2c, reason):
    with pytest.raises(FrameError, match=reason):
        camera_to_world(w2c)


def path_of_cameras(views: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    c2w = np.tile(np.eye(4), (views, 1, 1))
    for matrix in c2w:
        q, r = np.linalg.qr(np.eye(3) + 0.2 * rng.standard_normal((3, 3)))
        matrix[:3, :3] = q * np.sign(np.diag(r))
    c2w[:, :3, 3] = rng.standard_normal((views, 3))
    return c2w


def test_a_scene_frame_does_not_depend_on_the_worlds_axes_origin_or_unit():
    c2w = path_of_cameras(6)
    moved = path_of_cameras(1, seed=1)[0] @ c2w
    moved[:, :3, 3] = 7.5 * moved[:, :3, 3] + [100, -3, 20]
    ours = SceneFrame.fit(c2w).apply(c2w)
    np.testing.assert_allclose(SceneFrame.fit(moved).apply(moved), ours, atol=1e-5)
    np.testing.assert_allclose(np.abs(ours[:, :3, 3]).max(), 1 / 1.35, rtol=1e-6)
    np.testing.assert_allclose(ours[:, :3, 3].mean(0), 0, atol=1e-6)


@pytest.mark.parametrize("origin", [[448e3, 5.41e6, 67], [4.2e6, 6.3e5, 4.8e6], [1e9, 0, -1e9]])
def test_a_scene_frame_does_not_depend_on_an_origin_far_away(origin):
    """Of UTM, of ECEF, and beyond: cameras a few units apart, in float64."""
    c2w, local = path_of_cameras(6), path_of_cameras(6)
    c2w[:, :3, 3] += origin
    ours = SceneFrame.fit(local).apply(local)
    np.testing.assert_allclose(SceneFrame.fit(c2w).apply(c2w), ours, atol=1e-6)
    c2w[:, :3, 3] = np.array(origin) + 1e-7
    assert SceneFrame.fit(c2w).scale == 1


def test_a_single_input_has_scale_one_unless_given():
    inputs, targets = path_of_cameras(1), path_of_cameras(3, seed=2)
    frame = SceneFrame.fit(inputs)
    assert frame.scale == 1
    np.testing.assert_allclose(frame.apply(inputs)[0], np.eye(4), atol=1e-6)
    relative = np.linalg.inv(inputs[0]) @ targets
    np.testing.assert_allclose(frame.apply(targets), relative, atol=1e-5)
    relative[:, :3, 3] *= 0.5
    np.testing.assert_allclose(
        SceneFrame.fit(inputs, scale=0.5).apply(targets), relative, atol=1e-5
    )


def test_cameras_in_one_place_far_from_the_origin_have_scale_one():
    c2w = path_of_cameras(3)
    c2w[:, :3, 3] = [1000.1, -200.2, 0.3]
    assert SceneFrame.fit(c2w).scale == 1


def test_cameras_that_face_opposite_ways_use_the_first_cameras_axes():
    c2w = np.stack([np.eye(4), np.diag([-1.0, 1, -1, 1])])
    c2w[1, :3, 3] = [0, 0, 4]
    ours = SceneFrame.fit(c2w).apply(c2w)
    assert np.isfinite(ours).all()
    np.testing.assert_allclose(ours[0, :3, :3], np.eye(3), atol=1e-7)
    np.testing.assert_allclose(ours[:, 2, 3], [-1 / 1.35, 1 / 1.35], rtol=1e-6)


def test_scene_frames_of_impossible_cameras_are_refused():
    c2w = path_of_cameras(4)
    c2w[2, 0, 3] = np.inf
    with pytest.raises(ValueError, match=r"views \[2\] are not finite"):
        SceneFrame.fit(c2w)
    with pytest.raises(ValueError, match="at least one camera"):
        SceneFrame.fit(c2w[:0])


def test_what_worker_processes_run_imports_no_jax_and_no_tensorflow():
    """The modules of all functions that workers are sent, and what a use of them imports."""
    program = """
import sys
import input_pipeline.examples, input_pipeline.re10k.import_chunks, input_pipeline.workers
heavy = "jax jaxlib flax optax orbax clu grain tensorflow tensorflow_datasets torch".split()
print([name for name in heavy if name in sys.modules])
"""
    assert subprocess.check_output([sys.executable, "-c", program], text=True) == "[]\n"
