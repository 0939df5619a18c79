"""The example: photographs go in, a picture comes out."""

import pathlib
import runpy

import numpy as np
import pytest
from PIL import Image

import lvsm_jax
from tests.helpers.viewer_scene import make_model, write_scene

EXAMPLE = pathlib.Path(__file__).resolve().parent.parent / "examples" / "photos_to_picture.py"


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    folder = tmp_path_factory.mktemp("example") / "export"
    lvsm_jax.save(make_model(), folder)
    return folder


def check(monkeypatch, export, scene, out):
    monkeypatch.setattr("sys.argv", ["photos_to_picture.py", str(export), str(scene), str(out)])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    with Image.open(out) as picture:
        pixels = np.asarray(picture)
    assert pixels.shape == (64, 64, 3)
    assert pixels.std() > 5, "the picture is (nearly) constant"


def test_photographs_to_picture(export, tmp_path, monkeypatch):
    (tmp_path / "scene").mkdir()
    check(monkeypatch, export, write_scene(tmp_path / "scene"), tmp_path / "picture.png")


def test_without_an_export_the_shipped_weights_render(tmp_path, monkeypatch):
    (tmp_path / "scene").mkdir()
    scene, out = write_scene(tmp_path / "scene"), tmp_path / "picture.png"
    monkeypatch.setattr("sys.argv", ["photos_to_picture.py", str(scene), str(out)])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    with Image.open(out) as picture:
        assert picture.size == (64, 64)


def test_real_photographs_to_picture(export, shared_data, tmp_path, monkeypatch):
    check(monkeypatch, export, shared_data / "hololens_office", tmp_path / "picture.png")
