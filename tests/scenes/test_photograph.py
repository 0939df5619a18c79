"""Posed cameras and photographs: what is refused, and the geometry of resizing and cropping."""

import numpy as np
import pytest
from PIL import Image

from lvsm_jax.scenes.photograph import Photograph, PosedCamera, ResizeCrop

F = (50.0, 52.0, 30.0, 21.0)


def rotation(seed: int = 0) -> np.ndarray:
    q, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((3, 3)))
    return q * np.sign(np.linalg.det(q))


def pose(seed: int = 0) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = rotation(seed)
    matrix[:3, 3] = np.random.default_rng(seed).uniform(-3, 3, 3)
    return matrix


def camera(width: int = 64, height: int = 48) -> PosedCamera:
    return PosedCamera(pose(), F, width, height)


def noise(width: int, height: int) -> np.ndarray:
    return np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize(
    ("source", "size", "resized", "corner"),
    [
        ((640, 360), (256, 256), (456, 256), (100, 0)),  # RealEstate10K
        ((360, 640), (256, 256), (256, 456), (0, 100)),
        ((640, 360), (512, 512), (912, 512), (200, 0)),
        ((640, 360), (64, 128), (128, 72), (0, 4)),
        ((300, 300), (64, 64), (64, 64), (0, 0)),
        ((299, 300), (64, 64), (64, 64), (0, 0)),
        ((40, 64), (32, 32), (32, 48), (0, 8)),
        ((120, 100), (20, 24), (24, 20), (0, 0)),  # the same shape: nothing is cut off
        ((21, 20), (20, 20), (24, 20), (2, 0)),
        ((20, 21), (20, 20), (20, 24), (0, 2)),
    ],
)
def test_how_pictures_are_resized_and_cropped(source, size, resized, corner):
    crop = ResizeCrop.cover(source, *size)
    assert crop.resized == resized
    assert crop.window == (*corner, corner[0] + size[1], corner[1] + size[0])


def test_the_window_is_inside_and_touches_two_sides():
    rng = np.random.default_rng(0)
    for _ in range(500):
        source = tuple(rng.integers(1, 400, 2).tolist())
        height, width = rng.integers(1, 40, 2).tolist()
        crop = ResizeCrop.cover(source, height, width)
        left, top, right, bottom = crop.window
        assert (right - left, bottom - top) == (width, height)
        assert left >= 0 and top >= 0
        assert right <= crop.resized[0] and bottom <= crop.resized[1]
        assert width == crop.resized[0] or height == crop.resized[1]
        # Hardly oblong: a side is off by rounding to a multiple of 8 or by less than that.
        x, y = np.array(crop.resized) / source
        assert abs(x * source[1] - y * source[1]) <= 8 or abs(x * source[0] - y * source[0]) <= 8


@pytest.mark.parametrize(
    "source", [(640, 360), (359, 641), (97, 61), (30, 200), (64, 64), (48, 32)]
)
@pytest.mark.parametrize("size", [(64, 64), (48, 80)])
def test_leaving_out_what_is_cropped_changes_no_bit(source, size):
    crop = ResizeCrop.cover(source, *size)
    image = Image.fromarray(noise(*source))
    whole = np.asarray(image.resize(crop.resized, Image.Resampling.LANCZOS))
    left, top, right, bottom = crop.window
    np.testing.assert_array_equal(crop.pixels(image), whole[top:bottom, left:right])


def colours_of_rays(camera: PosedCamera, strength: float) -> np.ndarray:
    """A picture whose red and green are where a ray goes in the camera's axes, x/z and y/z."""
    fx, fy, cx, cy = camera.fxfycxcy
    x, y = np.meshgrid(
        (np.arange(camera.width) + 0.5 - cx) / fx, (np.arange(camera.height) + 0.5 - cy) / fy
    )
    return 128 + strength * np.stack([x, y, (x - y) / 2], axis=-1)


@pytest.mark.parametrize("source", [(640, 360), (360, 640), (300, 300), (97, 131), (41, 200)])
@pytest.mark.parametrize("size", [(64, 64), (48, 80)])
def test_a_pixel_keeps_its_ray(source, size):
    """The picture after resizing is that of the camera after resizing."""
    width, height = source
    focal = 0.9 * max(source)
    before = PosedCamera(pose(), (focal, 1.1 * focal, 0.4 * width, 0.55 * height), width, height)
    after = before.cropped_to(*size)
    assert (after.height, after.width) == size
    np.testing.assert_array_equal(after.c2w, before.c2w)
    strength = 180.0
    picture = np.rint(colours_of_rays(before, strength))
    assert picture.min() >= 0 and picture.max() <= 255
    ours = ResizeCrop.cover(source, *size).pixels(Image.fromarray(picture.astype(np.uint8)))
    error = (ours - colours_of_rays(after, strength))[8:-8, 8:-8]  # borders lack half the filter
    assert np.abs(error).max() < 1.6
    quarter_of_a_pixel = 0.25 * strength / after.fxfycxcy[:2]
    assert (np.abs(error.mean(axis=(0, 1)))[:2] < quarter_of_a_pixel).all()


@pytest.mark.parametrize("size", [(64, 64), (40, 96)])
def test_a_point_keeps_its_place(size):
    before = PosedCamera(pose(3), (300, 310, 200, 90), 400, 200)
    after = before.cropped_to(*size)
    crop = ResizeCrop.cover((400, 200), *size)
    point = before.c2w @ [0.1, -0.2, 3, 1]

    def project(camera):
        x, y, z = (camera.w2c @ point)[:3]
        fx, fy, cx, cy = camera.fxfycxcy
        return np.array([fx * x / z + cx, fy * y / z + cy])

    scaled = project(before) * crop.resized / [400, 200]
    np.testing.assert_allclose(project(after), scaled - crop.window[:2], atol=1e-9)


def test_cameras_from_either_matrix():
    c2w = pose(1)
    ours = PosedCamera.from_w2c(np.linalg.inv(c2w)[:3], F, 64, 48)
    np.testing.assert_allclose(ours.c2w, c2w, atol=1e-12)
    np.testing.assert_allclose(ours.w2c @ c2w, np.eye(4), atol=1e-12)


def test_cameras_are_copies_that_cannot_be_written():
    c2w, fxfycxcy = pose(), np.array(F)
    ours = PosedCamera(c2w, fxfycxcy, 64, 48)
    c2w[0, 0] = fxfycxcy[0] = np.nan
    assert np.isfinite(ours.c2w).all() and np.isfinite(ours.fxfycxcy).all()
    with pytest.raises(ValueError, match="read-only"):
        ours.c2w[0, 0] = 0
    assert ours.c2w.dtype == ours.fxfycxcy.dtype == np.float64


def changed(row, column, value):
    matrix = pose()
    matrix[row, column] = value
    return matrix


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"c2w": np.eye(3)}, r"c2w has shape \(3, 3\)"),
        ({"c2w": changed(0, 3, np.nan)}, "c2w is not finite"),
        ({"c2w": changed(1, 1, np.inf)}, "c2w is not finite"),
        ({"c2w": changed(3, 0, 0.1)}, "last row of c2w"),
        ({"c2w": pose() @ np.diag([1.01, 1.01, 1.01, 1])}, "not orthonormal: .* by 0.02"),
        ({"c2w": pose() @ np.diag([1, 1, -1, 1])}, "mirrors"),
        ({"c2w": np.zeros((4, 4))}, "last row"),
        ({"fxfycxcy": F[:3]}, r"fxfycxcy has shape \(3,\)"),
        ({"fxfycxcy": (np.inf, 1, 1, 1)}, "fxfycxcy is not finite"),
        ({"fxfycxcy": (50, -50, 1, 1)}, "focal lengths"),
        ({"fxfycxcy": (1e-42, 50, 1, 1)}, "focal lengths"),
        ({"fxfycxcy": (1e30, 50, 1, 1)}, r"focal lengths \[1e\+30, 50.0\], expected 0.001 to"),
        ({"fxfycxcy": (50, 50, 1e9, 15)}, r"principal point \[1000000000.0, 15.0\]"),
        ({"fxfycxcy": (50, 50, 32, -1e6)}, "principal point"),
        ({"c2w": changed(0, 3, 1e13)}, r"c2w has a coordinate of 1e\+13, expected at most 1e\+12"),
        ({"fxfycxcy": (0.9, 1.4, 0.5, 0.5)}, "expected pixels, not shares"),
        ({"width": 0}, "width is 0"),
        ({"height": 48.5}, "height is 48.5"),
    ],
)
def test_impossible_cameras_are_refused(arguments, message):
    possible = {"c2w": pose(), "fxfycxcy": F, "width": 64, "height": 48}
    with pytest.raises(ValueError, match=message):
        PosedCamera(**(possible | arguments))


def test_poses_written_with_three_decimals_are_taken():
    for seed in range(100):
        PosedCamera(np.round(pose(seed), 3), F, 64, 48)


@pytest.mark.parametrize(
    ("pixels", "name", "message"),
    [
        (noise(48, 64), None, "is 48×64 pixels, but its camera is of a picture of 64×48"),
        (noise(64, 48) / 255, "a", r"photograph 'a' is float64 of shape \(48, 64, 3\)"),
        (noise(64, 48)[..., :1], None, "expected uint8"),
        (noise(64, 48), "", "expected some text"),
    ],
)
def test_impossible_photographs_are_refused(pixels, name, message):
    with pytest.raises(ValueError, match=message):
        Photograph(pixels, camera(), name)


def test_pictures_are_read(tmp_path):
    pixels = noise(64, 48)
    grey, palette = Image.fromarray(pixels[..., 0]), Image.fromarray(pixels).quantize(16)
    opaque = np.concatenate([pixels, np.full((48, 64, 1), 255, np.uint8)], axis=2)
    for name, image, expected in (
        ("colour.png", Image.fromarray(pixels), pixels),
        ("colour.ppm", Image.fromarray(pixels), pixels),
        ("opaque.png", Image.fromarray(opaque), pixels),
        ("grey.png", grey, np.repeat(pixels[..., :1], 3, axis=2)),
        ("palette.png", palette, np.asarray(palette.convert("RGB"))),
    ):
        image.save(tmp_path / name)
        ours = Photograph.open(tmp_path / name, camera(), name)
        np.testing.assert_array_equal(ours.pixels, expected)
        assert ours.name == name


def with_tag(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def test_pictures_that_need_guessing_are_refused(tmp_path):
    pixels = noise(64, 48)
    image = Image.fromarray(pixels)
    transparent = image.convert("RGBA")
    transparent.putpixel((5, 5), (1, 2, 3, 254))
    image.save(tmp_path / "upright.jpg", exif=with_tag(1))
    Photograph.open(tmp_path / "upright.jpg", camera())
    image.save(tmp_path / "unknown.jpg", exif=with_tag(0))
    Photograph.open(tmp_path / "unknown.jpg", camera())
    image.save(tmp_path / "turned.jpg", exif=with_tag(3))
    transparent.save(tmp_path / "transparent.png")
    image.quantize(16).save(tmp_path / "key.png", transparency=3)
    image.resize((32, 24)).save(tmp_path / "small.png")
    image.save(tmp_path / "whole.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:1500])
    (tmp_path / "text.jpg").write_text("no picture")
    for name, message in (
        ("turned.jpg", "turned.jpg: EXIF orientation 3 would turn"),
        ("transparent.png", "transparent in places"),
        ("key.png", "transparent in places"),
        ("small.png", "small.png: the photograph is 32×24 pixels, but"),
        ("cut.jpg", "cut.jpg: .*truncated"),
        ("text.jpg", "text.jpg: not a picture"),
    ):
        with pytest.raises(ValueError, match=message):
            Photograph.open(tmp_path / name, camera())
    with pytest.raises(ValueError, match="64×48 pixels are more than 3000"):
        Photograph.open(tmp_path / "whole.jpg", camera(), max_pixels=3000)
    with pytest.raises(FileNotFoundError):
        Photograph.open(tmp_path / "missing.jpg", camera())
