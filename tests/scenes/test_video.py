"""Photographs from a video."""

import importlib.util

import numpy as np
import pytest
from PIL import Image

from lvsm_jax.scenes.video import extract_frames

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("imageio_ffmpeg") is None, reason="imageio-ffmpeg is not installed"
)


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """Thirty frames, each brighter than the one before."""
    import imageio_ffmpeg

    file = tmp_path_factory.mktemp("video") / "a clip.mp4"
    writer = imageio_ffmpeg.write_frames(str(file), (48, 32), fps=25, macro_block_size=1)
    writer.send(None)
    for i in range(30):
        writer.send(np.full((32, 48, 3), 20 + 7 * i, np.uint8).tobytes())
    writer.close()
    return file


def numbers(files):
    """By the names, which the pictures must bear out."""
    found = [int(file.stem.removeprefix("frame_")) for file in files]
    for file, number in zip(files, found, strict=True):
        brightness = np.asarray(Image.open(file)).mean()
        assert abs(brightness - (20 + 7 * number)) < 3.5
    return found


def test_every_nth_or_so_many(video, tmp_path):
    assert numbers(extract_frames(video, tmp_path / "a", every=7)) == [0, 7, 14, 21, 28]
    assert numbers(extract_frames(video, tmp_path / "b", count=4)) == [0, 10, 19, 29]
    assert numbers(extract_frames(video, tmp_path / "c", count=1)) == [0]
    assert numbers(extract_frames(video, tmp_path / "d", count=30)) == list(range(30))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c", "d"]


def test_what_cannot_be(video, tmp_path):
    with pytest.raises(ValueError, match="has 30 frames, fewer than 31"):
        extract_frames(video, tmp_path / "a", count=31)
    with pytest.raises(ValueError, match="expected one of them"):
        extract_frames(video, tmp_path / "a", every=2, count=2)
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(ValueError, match=r"text.mp4: no video that can be read"):
        extract_frames(tmp_path / "text.mp4", tmp_path / "a", every=2)
    with pytest.raises(FileNotFoundError):
        extract_frames(tmp_path / "missing.mp4", tmp_path / "a", every=2)
    with pytest.raises(FileExistsError):
        extract_frames(video, tmp_path, every=2)
    assert [path.name for path in tmp_path.iterdir()] == ["text.mp4"]
