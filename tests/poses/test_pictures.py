"""Photographs as they are reconstructed from: upright, reduced, grouped by camera."""

import numpy as np
import pytest
from PIL import ExifTags, Image

from lvsm_jax.common.errors import UserError
from lvsm_jax.poses import pictures
from lvsm_jax.poses.pairs import pairs_to_match
from lvsm_jax.scenes.pictures import read_upright


def with_exif(path, size, *, orientation=None, model="A", focal_35=None, mode="RGB"):
    image = Image.new(mode, size)
    image.putpixel((0, 0), (255,) * len(image.getbands()))  # the upper left one
    exif = image.getexif()
    exif[ExifTags.Base.Make], exif[ExifTags.Base.Model] = "M", model
    if orientation:
        exif[ExifTags.Base.Orientation] = orientation
    if focal_35:
        exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.FocalLengthIn35mmFilm] = focal_35
    image.save(path, exif=exif)


@pytest.mark.parametrize(
    ("orientation", "size", "corner"),
    [(None, (6, 4), (0, 0)), (3, (6, 4), (3, 5)), (6, (4, 6), (0, 3)), (8, (4, 6), (5, 0))],
)
def test_pixels_are_turned_once(tmp_path, orientation, size, corner):
    with_exif(tmp_path / "a.png", (6, 4), orientation=orientation)
    with open(tmp_path / "a.png", "rb") as file:
        pixels, _ = read_upright(file)
    assert pixels.shape[1::-1] == size and pixels[corner].tolist() == [255] * 3
    upright = pictures.write_upright(tmp_path / "a.png", tmp_path / "0.jpg", "a.jpg", max_size=1600)
    with Image.open(tmp_path / "0.jpg") as image:
        assert image.size == upright.size == size
        assert ExifTags.Base.Orientation not in image.getexif()


def test_reduced_with_the_focal_length_of_exif(tmp_path):
    with_exif(tmp_path / "a.jpg", (3000, 2000), focal_35=36)
    upright = pictures.write_upright(tmp_path / "a.jpg", tmp_path / "0.jpg", "a.jpg", max_size=900)
    assert upright.size == (900, 600)
    assert upright.focal == pytest.approx(900)  # 36 mm on a film that is 36 mm wide


def test_one_camera_for_each_make_zoom_and_size(tmp_path):
    kinds = {
        "a": {},
        "same": {},
        "model": {"model": "B"},
        "zoom": {"focal_35": 50},
        "lies": {"orientation": 6},
    }
    groups = {}
    for name, options in kinds.items():
        path = tmp_path / f"{name}.jpg"
        with_exif(path, (60, 40), **options)
        upright = pictures.write_upright(path, tmp_path / "0.jpg", name, max_size=1600)
        groups[name] = upright.group
    assert groups["a"] == groups["same"] and len(set(groups.values())) == 4


def test_transparent_pictures_need_a_background(tmp_path):
    Image.new("RGBA", (60, 40), (0, 0, 0, 0)).save(tmp_path / "a.png")
    arguments = tmp_path / "a.png", tmp_path / "0.jpg", "a.jpg"
    with pytest.raises(UserError, match=r"a.png: .*background"):
        pictures.write_upright(*arguments, max_size=1600)
    pictures.write_upright(*arguments, max_size=1600, background=(255, 255, 255))
    with Image.open(tmp_path / "0.jpg") as image:
        assert np.asarray(image).min() == 255


def test_names_stay_apart_and_numbers_are_in_their_order(tmp_path):
    for name in ("b10.jpg", "b2.PNG", "b2.jpg", ".hidden.jpg", "notes.txt"):
        (tmp_path / name).touch()
    found = pictures.list_photographs(tmp_path)
    assert [file.name for file in found] == ["b2.PNG", "b2.jpg", "b10.jpg"]
    assert list(pictures.name_uprights(found)) == ["b2.PNG.jpg", "b2.jpg.jpg", "b10.jpg"]


def test_what_changed_is_named():
    before = {"a": "1", "b": "2", "c": "3"}
    assert not pictures.what_changed(before, before)
    changes = pictures.what_changed(before, {"a": "1", "b": "9", "d": "4"})
    assert changes == ["1 new (d)", "1 gone (c)", "1 changed (b)"]


def test_pairs_of_many_photographs_are_a_choice_with_places_seen_again():
    assert len(pairs_to_match(20, in_order=False)) == 190
    pairs = pairs_to_match(200, in_order=True)
    assert len(pairs) == len(set(pairs)) < 2500
    assert all((i, i + step) in pairs for i in range(190) for step in (1, 2, 8))
    assert (0, 199) in pairs
    assert all(0 <= i < j < 200 for i, j in pairs)
