"""Evaluation sets: the rules of the index, padding, and shares of processes."""

import dataclasses
import io
import json

import numpy as np
import pytest
from PIL import Image

from input_pipeline.loading import open_eval_set
from input_pipeline.preprocess import FrameError, camera_to_world
from lvsm_jax.batch import Views
from lvsm_jax.common.config import EvalConfig
from lvsm_jax.scenes.scene_frame import SceneFrame
from tests.helpers import tiny_dataset
from tests.helpers.tiny_dataset import (
    assert_same,
    config_of,
    eval_batches,
    expected_cameras,
    rows_of,
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny")
    tiny_dataset.write_six_clips(path)
    return path


def write_index(path, entries) -> str:
    (path / "index.json").write_text(json.dumps(entries))
    return str(path / "index.json")


INDEX = {
    "clip0": {"context": [2, 27], "target": [3, 10, 27]},
    "clip1": None,
    "clip5": {"context": [0, 59], "target": [20, 30, 40]},
    "clip4": {"context": [0, 2], "target": [0, 1, 2]},
    "clip2": {"context": [5, 40], "target": [6, 7, 8]},
    "clip3": {"context": [1, 21], "target": [6, 7, 8]},
}


def test_evaluation_pads_the_last_batch_and_drops_nothing(tiny, tmp_path):
    index = write_index(tmp_path, INDEX)
    clips = eval_batches(config_of(tiny), index=index, batch_size=2)
    assert (clips.num_scenes, clips.num_skipped_null, clips.num_missing) == (5, 1, 0)
    assert clips.keys == ["clip0", "clip5", "clip4", "clip2", "clip3"]
    batches = list(clips)
    assert len(clips) == len(batches) == 3
    rows = [(int(s), bool(v)) for b in batches for s, v in zip(b.scene, b.valid, strict=True)]
    assert rows == [(0, True), (5, True), (4, True), (2, True), (3, True), (3, False)]
    assert not any(batch.replaced.any() for batch in batches)
    assert batches[0].inputs.frame.tolist() == [[2, 27], [0, 59]]
    assert batches[0].targets.frame.tolist() == [[3, 10, 27], [20, 30, 40]]
    # The published frame counts frame 27, a target that is also an input, twice.
    np.testing.assert_allclose(
        batches[0].targets.cameras.c2w[0],
        expected_cameras(0, [2, 27, 3, 10, 27], [3, 10, 27]),
        atol=1e-5,
    )
    assert_same(list(clips), batches)  # a second evaluation sees the same
    workers = eval_batches(config_of(tiny, num_workers=2), index=index, batch_size=2)
    assert_same(list(workers), batches)


def test_clips_with_fewer_targets_are_filled_up(tiny, tmp_path):
    fewer = {"clip4": {"context": [0, 2], "target": [1]}}
    index = write_index(tmp_path, fewer | {"clip0": INDEX["clip0"]})
    [batch] = eval_batches(config_of(tiny), index=index, batch_size=2)
    assert batch.targets.frame.tolist() == [[1, -1, -1], [3, 10, 27]]
    assert (batch.targets.images[0] == batch.targets.images[0, :1]).all()
    # Neither those nor the other clip touch the frame of the first.
    [alone] = eval_batches(config_of(tiny), index=write_index(tmp_path, fewer), batch_size=1)
    np.testing.assert_array_equal(batch.inputs.cameras.c2w[:1], alone.inputs.cameras.c2w)
    np.testing.assert_array_equal(batch.targets.cameras.c2w[:1, :1], alone.targets.cameras.c2w)


def test_evaluation_is_shared_by_processes(tiny, tmp_path):
    index = write_index(tmp_path, INDEX)
    whole = list(eval_batches(config_of(tiny), index=index, batch_size=4))
    parts = [
        list(
            eval_batches(
                config_of(tiny), index=index, batch_size=4, process_index=i, process_count=2
            )
        )
        for i in range(2)
    ]
    for batch, shares in zip(whole, zip(*parts, strict=True), strict=True):
        assert rows_of(shares) == rows_of([batch])


@pytest.mark.parametrize(
    ("num_inputs", "expected"),
    [(1, [0]), (4, [0, 20, 39, 59]), (9, [0, 7, 15, 22, 30, 37, 44, 52, 59])],
)
def test_evaluation_takes_any_number_of_inputs(tiny, tmp_path, num_inputs, expected):
    index = write_index(tmp_path, {"clip5": INDEX["clip5"]})
    config = config_of(tiny, num_inputs=num_inputs, camera_normalization="input_views")
    [batch] = eval_batches(config, index=index, batch_size=1)
    assert batch.inputs.frame.tolist() == [expected]
    assert batch.inputs.images.shape[1] == num_inputs
    np.testing.assert_allclose(
        batch.targets.cameras.c2w[0], expected_cameras(5, expected, [20, 30, 40]), atol=1e-5
    )


def test_missing_clips_are_an_error_unless_allowed(tiny, tmp_path):
    index = write_index(tmp_path, INDEX | {"elsewhere": INDEX["clip0"]})
    with pytest.raises(ValueError, match=r"1 of the 6 clips .* not in split 'train' .*elsewhere"):
        eval_batches(config_of(tiny), index=index, batch_size=2)
    clips = eval_batches(
        config_of(tiny), index=index, batch_size=2, allow_missing=True, max_scenes=3
    )
    assert (clips.num_scenes, clips.num_missing) == (3, 1)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (
            {"clip4": {"context": [0, 3], "target": [1]}},
            r"scene clip4: positions \[3\] .* 3 frames",
        ),
        (
            {"clip4": {"context": [0, 1, 2], "target": [1]}},
            "scene clip4: num_inputs is 2 and the index names 3 context views",
        ),
        ({"clip0": None}, "names no clip of split 'train'"),
    ],
)
def test_indices_that_do_not_fit_are_refused(tiny, tmp_path, entries, message):
    with pytest.raises(ValueError, match=message):
        eval_batches(config_of(tiny), index=write_index(tmp_path, entries), batch_size=1)


def test_a_bad_frame_stops_an_evaluation_even_where_training_replaces(tmp_path):
    jpegs = {5: tiny_dataset.photograph(0, 5)[:300]}
    tiny_dataset.write_dataset(tmp_path, [tiny_dataset.clip_of(0, 9, jpegs)], num_shards=1)
    index = write_index(tmp_path, {"clip0": {"context": [0, 8], "target": [5]}})
    config = config_of(tmp_path, on_bad_frame="replace")
    with pytest.raises(FrameError, match="scene clip0, frame 5: cannot be decoded"):
        list(eval_batches(config, index=index, batch_size=1))


SIZE = (192, 128)  # of the photographs of a point
POINT = np.array([1.2, 0.44, 4.96])  # in the world, before the camera of frame 6


def photograph_of_the_point(position: int) -> bytes:
    """A blurred spot in the dark."""
    x, y = np.meshgrid(np.arange(SIZE[0]) + 0.5, np.arange(SIZE[1]) + 0.5)
    w2c = tiny_dataset.camera(0, position)
    u, v = projected(w2c, np.array([0.75, 1.125, 0.5, 0.5]) * (SIZE * 2), POINT)
    spot = 255 * np.exp(-((x - u) ** 2 + (y - v) ** 2) / (2 * 3**2))
    file = io.BytesIO()
    Image.fromarray(spot.round().astype(np.uint8)).save(file, "JPEG", quality=100)
    return file.getvalue()


def projected(w2c: np.ndarray, fxfycxcy: np.ndarray, point: np.ndarray) -> np.ndarray:
    """Column and row at which a camera sees a point."""
    x, y, z = w2c[:3, :3] @ point + w2c[:3, 3]
    return fxfycxcy[:2] * [x / z, y / z] + fxfycxcy[2:]


def seen(image: np.ndarray) -> np.ndarray:
    """Column and row of the middle of the spot."""
    light = np.maximum(image.mean(-1) - 40, 0)
    columns, rows = light.sum(0), light.sum(1)
    return np.array([x @ (np.arange(len(x)) + 0.5) / x.sum() for x in (columns, rows)])


@pytest.fixture(scope="module")
def spots(tmp_path_factory):
    path = tmp_path_factory.mktemp("spots")
    jpegs = {position: photograph_of_the_point(position) for position in range(12)}
    tiny_dataset.write_dataset(path, [tiny_dataset.clip_of(0, 12, jpegs)], "test", num_shards=1)
    write_index(path, {"clip0": {"context": [3, 10], "target": [4, 6, 9]}})
    (path / "index.json").rename(path / "evaluation_index.json")
    return path


def windows(spots, **fields) -> tuple[Views, Views]:
    """Inputs and targets of the one scene, in one batch."""
    data = {name: fields.pop(name) for name in ("square_crop", "num_workers") if name in fields}
    config = dataclasses.replace(config_of(spots, **data), image_height=64)
    [batch] = open_eval_set(config, EvalConfig(batch_size=1, **fields))
    return batch.inputs, batch.targets


@pytest.mark.parametrize("square_crop", [True, False])
@pytest.mark.parametrize(
    ("share", "place"),
    [
        (1.0, (0.5, 0.5)),
        (1.0, (0.25, 1.0)),
        (0.8, (0.5, 0.5)),
        (2 / 3, (0.3, 0.2)),
        (0.5, (0.5, 0.375)),
    ],
)
def test_evaluation_shows_a_window_of_each_frame(spots, square_crop, share, place):
    inputs, targets = windows(spots, square_crop=square_crop, crop_share=share, crop_place=place)
    whole, _ = windows(spots, square_crop=square_crop)
    assert inputs.images.shape == whole.images.shape == (1, 2, 64, 64 if square_crop else 96, 3)

    # The intrinsics of the frame, in pixels of the window, which has a side of `side` of its rows.
    side = share * SIZE[1]
    left = place[0] * (SIZE[0] - side * inputs.images.shape[3] / 64)
    top = place[1] * (SIZE[1] - side)
    expected = np.array([144, 144, SIZE[0] / 2 - left, SIZE[1] / 2 - top]) * 64 / side
    for views in (inputs, targets):
        # Sides are whole numbers of pixels, columns even of eights.
        got = views.cameras.fxfycxcy[0]
        np.testing.assert_allclose(got, np.tile(expected, (len(got), 1)), rtol=0.03, atol=1)

    frames = [3, 10, 4, 6, 9]
    c2w = np.stack([camera_to_world(tiny_dataset.camera(0, frame)) for frame in frames])
    there = np.eye(4)
    there[:3, 3] = POINT
    point = SceneFrame.fit(c2w).apply(there)[:3, 3]
    for views in (inputs, targets):
        for image, pose, intrinsics in zip(
            views.images[0], views.cameras.c2w[0], views.cameras.fxfycxcy[0], strict=True
        ):
            at = projected(np.linalg.inv(pose), intrinsics, point)
            np.testing.assert_allclose(seen(image), at, atol=0.1)


def test_the_largest_window_in_the_middle_is_the_published_preprocessing(spots):
    index = spots / "evaluation_index.json"
    config = dataclasses.replace(config_of(spots, split="test"), image_height=64)
    for square_crop in (True, False):
        plain = dataclasses.replace(config, square_crop=square_crop)
        [batch] = eval_batches(plain, index=index, batch_size=1)
        same = windows(spots, square_crop=square_crop, crop_share=1.0, crop_place=(0.5, 0.5))
        assert_same(same, (batch.inputs, batch.targets))


def test_windows_are_the_same_in_worker_processes(spots):
    window = {"crop_share": 0.8, "crop_place": (0.3, 0.9)}
    assert_same(windows(spots, num_workers=2, **window), windows(spots, **window))
