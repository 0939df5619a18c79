"""Picture files of every kind that people have: the same pixels, or what is wrong."""

import importlib.util
import io

import numpy as np
import pytest
from PIL import Image

from lvsm_jax.common.colours import colour_of
from lvsm_jax.scenes.pictures import read_pixels

GRADIENT = np.stack(np.meshgrid(np.linspace(20, 220, 48), np.linspace(40, 180, 32)), -1)
PIXELS = np.rint(np.concatenate([GRADIENT, GRADIENT.mean(-1, keepdims=True)], -1)).astype(np.uint8)


def file_of(image, format="PNG", **options):
    data = io.BytesIO()
    image.save(data, format, **options)
    data.seek(0)
    return data


def with_tag(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_the_size_tells_whether_to_turn(orientation):
    """As viewers show it, by the table of the EXIF standard."""
    shown = {5: np.swapaxes(PIXELS, 0, 1), 6: np.rot90(PIXELS, -1), 8: np.rot90(PIXELS)}
    shown[7] = np.rot90(shown[5], 2)
    image = Image.fromarray(PIXELS)
    stored = file_of(image, exif=with_tag(orientation))
    np.testing.assert_array_equal(read_pixels(stored, (32, 48)), shown[orientation])
    np.testing.assert_array_equal(read_pixels(stored, (48, 32)), PIXELS)
    for size in ((40, 30), None):
        with pytest.raises(ValueError, match=f"EXIF orientation {orientation} would turn"):
            read_pixels(stored, size)
    square = file_of(Image.fromarray(PIXELS[:, :32]), exif=with_tag(orientation))
    with pytest.raises(ValueError, match="would turn"):
        read_pixels(square, (32, 32))


def test_transparency_is_put_on_the_background():
    alpha = np.full((32, 48, 1), 255, np.uint8)
    alpha[:8], alpha[8:16] = 0, 51
    transparent = file_of(Image.fromarray(np.concatenate([PIXELS, alpha], -1)))
    with pytest.raises(ValueError, match="--background=white"):
        read_pixels(transparent)
    for background in ((255, 255, 255), (0, 0, 0), (10, 200, 30)):
        ours = read_pixels(transparent, background=background)
        np.testing.assert_array_equal(ours[16:], PIXELS[16:])
        assert (ours[:8] == background).all()
        mixed = 0.2 * PIXELS[8:16] + 0.8 * np.array(background)
        np.testing.assert_allclose(ours[8:16], mixed, atol=0.51)


def test_colours_that_lie_on_the_background_already_are_kept():
    alpha = np.full((32, 48, 1), 255, np.uint8)
    alpha[:8], alpha[8:16] = 0, 51
    pixels = PIXELS.copy()
    pixels[:8] = 255
    file = file_of(Image.fromarray(np.concatenate([pixels, alpha], -1)))
    np.testing.assert_array_equal(read_pixels(file, background=(255, 255, 255)), pixels)
    assert (read_pixels(file, background=(0, 0, 0))[8:16] < pixels[8:16]).all()


def test_deep_and_grey_pictures():
    deep = np.linspace(0, 65535, 48 * 32).round().astype(np.uint16).reshape(32, 48)
    expected = np.repeat(np.rint(deep / 257).astype(np.uint8)[..., None], 3, axis=2)
    for format in ("PNG", "TIFF"):
        ours = read_pixels(file_of(Image.fromarray(deep), format))
        np.testing.assert_array_equal(ours, expected)
    grey = read_pixels(file_of(Image.fromarray(PIXELS[..., 0])))
    np.testing.assert_array_equal(grey, np.repeat(PIXELS[..., :1], 3, axis=2))
    floats = file_of(Image.fromarray(deep.astype(np.float32)), "TIFF")
    with pytest.raises(ValueError, match="pixels of type F, expected 8 or 16 bits"):
        read_pixels(floats)
    beyond = file_of(Image.fromarray(deep.astype(np.int32) * 9), "TIFF")
    with pytest.raises(ValueError, match=r"grey values from 0 to .*, expected 16 bits"):
        read_pixels(beyond)


def test_cmyk():
    cmyk = Image.fromarray(PIXELS).convert("CMYK")
    for format, tolerance in (("TIFF", 0), ("JPEG", 6)):
        ours = read_pixels(file_of(cmyk, format))
        np.testing.assert_allclose(ours.astype(int), PIXELS, atol=tolerance)


def test_heic():
    if importlib.util.find_spec("pillow_heif") is None:
        with pytest.raises(ValueError, match=r"pip install 'lvsm_jax\[heic\]'"):
            read_pixels(io.BytesIO(b"\0\0\0\x24ftypheic" + bytes(40)))
        pytest.skip("pillow-heif is not installed")
    import pillow_heif

    pillow_heif.register_heif_opener()
    file = file_of(Image.fromarray(PIXELS), "HEIF", quality=95)
    ours = read_pixels(file, (48, 32))
    assert np.abs(ours.astype(int) - PIXELS).mean() < 4
    # A turned one says so twice, as phones' do: the file itself, which is obeyed, and EXIF.
    for orientation, quarters in ((3, 2), (6, 3), (8, 1)):
        exif = Image.Exif()
        exif[0x0112] = orientation
        file = file_of(Image.fromarray(PIXELS), "HEIF", quality=95, exif=exif.tobytes())
        expected = np.rot90(PIXELS, quarters)
        ours = read_pixels(file, expected.shape[1::-1])
        assert np.abs(ours.astype(int) - expected).mean() < 4


@pytest.mark.parametrize(
    ("text", "colour"),
    [("white", (255,) * 3), ("black", (0,) * 3), ("#0a10ff", (10, 16, 255)), ("1,2,3", (1, 2, 3))],
)
def test_colours(text, colour):
    assert colour_of(text) == colour


@pytest.mark.parametrize("text", ["", "pink", "1,2", "1,2,256", "#12345", "1,2,-3"])
def test_no_colours(text):
    with pytest.raises(ValueError, match="is no colour: expected white"):
        colour_of(text)
