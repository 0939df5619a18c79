"""Evaluation sets: the rules of the index, padding, and shares of processes."""

import json

import numpy as np
import pytest
import tiny_dataset
from tiny_dataset import assert_same, config_of, expected_cameras, rows_of

from input_pipeline.loading import eval_batches
from input_pipeline.preprocess import FrameError


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
            {"clip0": INDEX["clip0"], "clip4": {"context": [0, 2], "target": [1]}},
            "scene clip4: 1 targets, where the first clip has 3",
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
