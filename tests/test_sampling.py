"""Properties of the drawn views, and the rules of evaluation."""

import json

import numpy as np
import pytest

from input_pipeline.config import DataConfig
from input_pipeline.sampling import (
    IndexEntry,
    evaluation_views,
    read_index,
    sample_views,
    usable_clips,
)


def draws(num_frames: int, config: DataConfig, count: int = 2000):
    rng = np.random.default_rng(7)
    return [sample_views(num_frames, config, rng) for _ in range(count)]


def assert_uniform(values, low: int, high: int) -> None:
    """Chi-square of counts over [low, high], within five standard deviations of its mean."""
    counts = np.bincount(np.array(values) - low, minlength=high - low + 1)
    assert len(counts) == high - low + 1
    expected = len(values) / len(counts)
    degrees = len(counts) - 1
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert abs(chi_square - degrees) < 5 * np.sqrt(2 * degrees)


@pytest.mark.parametrize(
    ("num_frames", "shortest", "longest"), [(26, 25, 25), (100, 25, 99), (280, 25, 192)]
)
def test_views_follow_the_rules(num_frames, shortest, longest):
    config = DataConfig("", num_views=8, num_inputs=3, num_targets=6)
    for views in draws(num_frames, config, 500):
        first, last = views.all_views[:2]
        assert shortest <= last - first <= longest
        assert first >= 0 and last < num_frames
        others = views.all_views[2:]
        assert len(set(others)) == 6 and (others > first).all() and (others < last).all()
        np.testing.assert_array_equal(views.inputs, views.all_views[:3])
        assert len(set(views.targets)) == 6 and set(views.targets) <= set(views.all_views)


def test_every_choice_is_uniform():
    samples = draws(60, DataConfig("", min_span=50, num_views=4, num_targets=2), 5000)
    spans = [s.all_views[1] - s.all_views[0] for s in samples]
    assert_uniform(spans, 50, 59)
    longest_but_four = [
        s.all_views[0] for s, span in zip(samples, spans, strict=True) if span == 55
    ]
    assert_uniform(longest_but_four, 0, 4)
    inner = [
        s.all_views[2] - s.all_views[0] for s, d in zip(samples, spans, strict=True) if d == 52
    ]
    assert_uniform(inner, 1, 51)
    ranks = [list(s.all_views).index(t) for s in samples for t in s.targets]
    assert_uniform(ranks, 0, 3)
    assert 0.4 < np.mean([s.all_views[2] < s.all_views[3] for s in samples]) < 0.6


def test_the_span_is_at_least_the_number_of_views():
    config = DataConfig("", min_span=3, max_span=20, num_views=12)
    assert min(s.all_views[1] - s.all_views[0] for s in draws(40, config, 300)) == 12


@pytest.mark.parametrize(
    ("config", "shortest_clip"),
    [
        (DataConfig(""), 26),
        (DataConfig("", min_span=2, num_views=12), 13),
        (DataConfig("", min_span=2, num_views=2), 3),
    ],
)
def test_usable_clips_are_those_that_can_be_sampled(config, shortest_clip):
    counts = np.arange(1, 40)
    usable = usable_clips(counts, config)
    np.testing.assert_array_equal(usable, counts >= shortest_clip)
    sample_views(shortest_clip, config.__class__(**{**vars(config), "num_targets": 2}), rng())
    with pytest.raises(ValueError, match=f"a clip of {shortest_clip - 1} frames"):
        sample_views(shortest_clip - 1, config, rng())


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_inputs": 9}, "num_inputs is 9, more than the num_views 8"),
        ({"num_views": 4, "num_targets": 5}, "num_targets is 5, more than the num_views 4"),
        ({"num_views": 30, "max_span": 29}, "num_views 30 is larger than data.max_span 29"),
    ],
)
def test_impossible_numbers_of_views_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        DataConfig("", **fields).check_training()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_height": 100}, "image_height 100 is not a multiple of patch_size 8"),
        ({"min_span": 30, "max_span": 29}, "min_span 30 is larger than max_span 29"),
        ({"num_views": 1}, "num_views is 1, expected at least 2"),
        ({"num_workers": -1}, "num_workers is -1"),
        ({"camera_normalization": "none"}, "'none', expected one of 'all_views', 'input_views'"),
        ({"on_bad_frame": "skip"}, "'skip', expected one of 'error', 'replace'"),
    ],
)
def test_impossible_configurations_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        DataConfig("", **fields)


@pytest.mark.parametrize(
    ("num_inputs", "expected"),
    [(1, [10]), (2, [10, 60]), (3, [10, 35, 60]), (4, [10, 27, 43, 60])],
)
def test_any_number_of_inputs_from_two_contexts(num_inputs, expected):
    views = evaluation_views(IndexEntry((10, 60), (16, 33, 60)), num_inputs)
    assert views.inputs.tolist() == expected
    assert views.targets.tolist() == [16, 33, 60]
    # The published scene frame counts a target that is also an input twice.
    assert views.all_views.tolist() == [*expected, 16, 33, 60]


def test_inputs_that_the_index_does_not_determine_are_refused():
    entry = IndexEntry((1, 5, 9), (3,))
    assert evaluation_views(entry, 3).inputs.tolist() == [1, 5, 9]
    assert evaluation_views(entry, 1).inputs.tolist() == [1]
    with pytest.raises(ValueError, match="from context 3 to 5 there are only 3 frames"):
        evaluation_views(IndexEntry((3, 5), (4,)), 4)
    with pytest.raises(ValueError, match="num_inputs is 2 and the index names 3 context views"):
        evaluation_views(entry, 2)


def test_read_index(tmp_path):
    path = tmp_path / "index.json"
    path.write_text(json.dumps({"a": {"context": [1, 9], "target": [3, 9]}, "b": None}))
    assert read_index(path) == {"a": IndexEntry((1, 9), (3, 9)), "b": None}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[1]", "holds a list, not an object"),
        ('{"a": {"context": [1, 2]}}', "scene a: target is None"),
        ('{"a": {"context": [1.5, 2], "target": [1]}}', "scene a: context is"),
        ('{"a": {"context": [], "target": [1]}}', "scene a: context is"),
        ('{"a": 3}', "scene a: context is None"),
    ],
)
def test_malformed_indices_are_refused(tmp_path, text, message):
    path = tmp_path / "index.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_index(path)
