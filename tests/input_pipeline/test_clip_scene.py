"""A clip of a dataset, opened as a scene."""

import dataclasses

import numpy as np
import pytest

from input_pipeline import storage
from input_pipeline.clip_scene import open_scene
from lvsm_jax.scenes.readers import SceneError
from tests.helpers import tiny_dataset


def test_clip_of_a_dataset(rooms):
    reader = storage.SplitReader(rooms, "test")
    key = str(reader.scenes.key[2])
    scene = open_scene(f"{rooms}/test:{key}")
    assert len(scene.photographs) == reader.scenes.num_frames[2]
    assert scene.photographs[1].name == "frame-1"
    (frame,) = reader.frames([int(reader.scenes.first_frame[2]) + 1])
    camera = scene["frame-1"].camera
    assert (camera.width, camera.height) == (32, 32)
    np.testing.assert_allclose(camera.w2c[:3], frame.w2c, atol=1e-6)
    np.testing.assert_array_equal(camera.fxfycxcy, frame.normalized_fxfycxcy * np.float64(32))
    assert scene["frame-1"].load().pixels.std() > 5


def test_no_such_clip(rooms):
    with pytest.raises(SceneError, match=r"is a dataset: name a clip as .*'test', 'train'"):
        open_scene(rooms)
    with pytest.raises(SceneError, match="no clip 'nobody' in split 'test'; it has"):
        open_scene(f"{rooms}/test:nobody")
    with pytest.raises(storage.DatasetError, match="no split 'dev'"):
        open_scene(f"{rooms}/dev:nobody")
    with pytest.raises(SceneError, match="no such file or folder"):
        open_scene(f"{rooms}/nowhere")
    with pytest.raises(SceneError, match="holds its images itself"):
        open_scene(f"{rooms}/test:nobody", images=rooms)


def test_keys_may_hold_slashes_and_colons(tmp_path):
    key = "a/b:c/../d\x1b[2J"
    clip = dataclasses.replace(tiny_dataset.clip_of(0, 2), key=key)
    tiny_dataset.write_dataset(tmp_path / "set", [clip], "train", num_shards=1)
    assert len(open_scene(f"{tmp_path}/set/train:{key}").photographs) == 2
    with pytest.raises(SceneError, match="no such file or folder"):
        open_scene(f"{tmp_path}/set/train")
