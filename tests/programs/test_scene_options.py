"""Scenes of the command line that have no cameras: they are found first, and used again."""

import argparse
import json
import shutil

import pytest
from PIL import Image

from lvsm_jax import poses
from lvsm_jax.programs.scene_options import open_posed
from lvsm_jax.scenes.readers import NoCamerasError
from tests.helpers import photographed_room


@pytest.fixture
def photographs(tmp_path):
    """A folder of photographs without cameras."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    for name in ("a.jpg", "b.jpg"):
        Image.new("RGB", (48, 36)).save(folder / name)
    return folder


def given(scene, images=None):
    return argparse.Namespace(scene=str(scene), images=images)


def test_poses_are_found_for_a_folder_without_cameras(photographs, monkeypatch, capsys):
    def find_poses(folder, *, background, progress):
        progress(poses.Progress("features", 1, 2, 3.0))
        found = poses.output_of(folder)
        reused = found.exists()
        found.mkdir(exist_ok=True)
        frames = []
        for name, camera in zip("ab", photographed_room.cameras(2), strict=True):
            shutil.copy(folder / f"{name}.jpg", found)
            frames.append((name, camera))
        write_scene(found, frames)
        return poses.PosesFound(found, ["a.jpg", "b.jpg"], {"c.jpg": "why"}, ["a note"], reused)

    monkeypatch.setattr("lvsm_jax.poses.find_poses", find_poses)
    scene = open_posed(given(photographs), None)
    told = capsys.readouterr()
    assert [one.name for one in scene.photographs] == ["a.jpg", "b.jpg"]
    assert "has no cameras: they are found first, by lvsm poses" in told.out
    assert "a note" in told.out and f"cameras kept: {photographs}/lvsm_poses" in told.out
    assert "without a place are c.jpg" in told.err and "features: 1/2" in told.err
    open_posed(given(photographs), None)
    told = capsys.readouterr()
    assert "found first" not in told.out and "found before, of these photographs" in told.out


def write_scene(folder, frames):
    content = [
        {"file": f"{name}.jpg", "w": 48, "h": 36, "fxfycxcy": [40, 40, 24, 18]}
        | {"c2w": camera.c2w.tolist()}
        for name, camera in frames
    ]
    (folder / "cameras.json").write_text(json.dumps({"frames": content}))


def test_cameras_that_are_there_are_used(photographs, monkeypatch):
    monkeypatch.setattr("lvsm_jax.poses.find_poses", lambda *_, **__: pytest.fail("looked for"))
    write_scene(photographs, list(zip("ab", photographed_room.cameras(2), strict=True)))
    assert len(open_posed(given(photographs), None).photographs) == 2


def test_another_folder_of_images_does_not_bring_cameras(photographs):
    with pytest.raises(NoCamerasError):
        open_posed(given(photographs, images=str(photographs)), None)
