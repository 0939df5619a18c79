"""Properties of the drawn views, and the rules of evaluation."""

import dataclasses
import json

import numpy as np
import pytest

from input_pipeline.preprocess import Crop
from input_pipeline.sampling import (
    IndexEntry,
    StepChoices,
    evaluation_views,
    read_index,
    sample_crop,
    sample_reframing,
    sample_views,
    step_choices,
    usable_clips,
)
from lvsm_jax.common.config import DataConfig


def draws(num_frames: int, config: DataConfig, count: int = 2000):
    rng = np.random.default_rng(7)
    return [sample_views(num_frames, config, config.num_inputs, rng) for _ in range(count)]


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
    sample_views(shortest_clip, dataclasses.replace(config, num_targets=2), 2, rng())
    with pytest.raises(ValueError, match=f"a clip of {shortest_clip - 1} frames"):
        sample_views(shortest_clip - 1, config, 2, rng())


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_inputs": 9}, "num_inputs is 9, more than the num_views 8"),
        ({"input_counts": (2, 9)}, r"input_counts is \(2, 9\), more than the num_views 8"),
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
        (
            {"camera_normalization": "nobody"},
            r"'nobody', expected one of \('all_views', 'input_views', 'none'\)",
        ),
        ({"on_bad_frame": "skip"}, r"'skip', expected one of \('error', 'replace'\)"),
        ({"input_counts": (2, 0)}, r"input_counts is \(2, 0\), expected at least 1 each"),
        ({"aspect_ratios": (1.0, -2.0)}, r"aspect_ratios is \(1.0, -2.0\), expected positive"),
        ({"aspect_ratios": (1.0,), "square_crop": False}, "exclude each other"),
        ({"smallest_crop": 1.5}, "smallest_crop is 1.5, expected 0 to 1"),
        ({"scale_jitter": 0.5}, "scale_jitter is 0.5, expected at least 1"),
        ({"scale_jitter": float("nan")}, "scale_jitter is nan, expected at least 1"),
        ({"scale_jitter": float("inf")}, "scale_jitter is inf, expected at least 1"),
        ({"frame_turn": -1.0}, "frame_turn is -1.0, expected 0 to 180 degrees"),
        ({"frame_turn": 181.0}, "frame_turn is 181.0, expected 0 to 180 degrees"),
    ],
)
def test_impossible_configurations_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        DataConfig("", **fields)


def test_each_step_draws_inputs_and_shape_by_seed_and_step_alone():
    config = DataConfig("", input_counts=(1, 4, 4, 8), aspect_ratios=(0.75, 1.0))
    steps = [step_choices(config, 3, step) for step in range(2000)]
    assert steps == [step_choices(config, 3, step) for step in range(2000)]
    assert steps[:40] != [step_choices(config, 4, step) for step in range(40)]
    drawn = [(one.num_inputs, one.aspect_ratio) for one in steps]
    expected = {(n, ratio): share for ratio in (0.75, 1.0) for n, share in _SHARES.items()}
    assert set(drawn) == set(expected)
    for kind, share in expected.items():
        assert abs(drawn.count(kind) - 2000 * share) < 5 * np.sqrt(2000 * share)
    # A list more leaves the other's draws as they are.
    alone = dataclasses.replace(config, aspect_ratios=())
    assert [one.num_inputs for one in steps] == [
        step_choices(alone, 3, step).num_inputs for step in range(2000)
    ]
    assert step_choices(DataConfig(""), 3, 0) == StepChoices(num_inputs=2)


_SHARES = {1: 1 / 8, 4: 1 / 4, 8: 1 / 8}  # of the steps, for two aspect ratios


def test_the_views_of_a_sample_do_not_depend_on_its_number_of_inputs():
    few, many = (
        sample_views(100, DataConfig(""), count, np.random.default_rng(5)) for count in (1, 4)
    )
    np.testing.assert_array_equal(few.all_views, many.all_views)
    np.testing.assert_array_equal(few.targets, many.targets)
    np.testing.assert_array_equal(few.inputs, many.inputs[:1])


@pytest.mark.parametrize(
    ("ratio", "shape"), [(1.0, (256, 256)), (16 / 9, (192, 344)), (0.5, (360, 184))]
)
def test_shapes_of_an_aspect_ratio_have_about_as_many_pixels(ratio, shape):
    assert DataConfig("").image_shape(ratio) == shape
    assert abs(shape[0] * shape[1] / 256**2 - 1) < 0.02


def test_crops_are_drawn_where_that_is_asked_for():
    assert sample_crop((16, 24), DataConfig(""), None, rng()) is None
    wide = DataConfig("", image_height=64, aspect_ratios=(2.0,))
    assert sample_crop((64, 64), wide, 2.0, rng()) == Crop(wide.image_shape(2.0)[0], 88)
    config, generator = DataConfig("", smallest_crop=0.5), rng()
    crops = [sample_crop((16, 24), config, None, generator) for _ in range(2000)]
    assert {(crop.height, crop.width) for crop in crops} == {(16, 24)}
    assert_uniform([int((crop.share - 0.5) * 20) for crop in crops], 0, 9)
    for axis in (0, 1):
        assert_uniform([int(crop.place[axis] * 10) for crop in crops], 0, 9)
    largest = sample_crop((16, 16), DataConfig("", smallest_crop=1.0), None, rng())
    assert largest.share == 1 and largest.place != (0.5, 0.5)


def angle_and_axis(turn: np.ndarray) -> tuple[float, np.ndarray]:
    """In degrees, and a vector along the axis."""
    twice_the_sine = (turn - turn.T)[[2, 0, 1], [1, 2, 0]]
    return np.rad2deg(np.arccos((np.trace(turn) - 1) / 2)), twice_the_sine


def test_turn_and_scale_are_drawn_where_that_is_asked_for():
    generator = rng()
    assert sample_reframing(DataConfig(""), generator) is None
    assert generator.random() == rng().random()  # nothing was drawn
    config = DataConfig("", scale_jitter=4.0, frame_turn=90.0)
    drawn = [sample_reframing(config, generator) for _ in range(2000)]
    assert_uniform([int((np.log2(one.scale) + 2) * 2.5) for one in drawn], 0, 9)
    angles, axes = zip(*(angle_and_axis(one.turn) for one in drawn), strict=True)
    assert_uniform([int(angle / 9) for angle in angles], 0, 9)
    # On a sphere the coordinates of uniform points are uniform.
    for coordinate in np.stack([axis / np.linalg.norm(axis) for axis in axes]).T:
        assert_uniform([int((x + 1) * 5) for x in coordinate], 0, 9)
    for one in drawn[:50]:
        np.testing.assert_allclose(one.turn @ one.turn.T, np.eye(3), atol=1e-14)
        assert np.linalg.det(one.turn) > 0


def test_turn_and_scale_do_not_depend_on_one_another():
    both = sample_reframing(DataConfig("", scale_jitter=2.0, frame_turn=30.0), rng())
    scaled = sample_reframing(DataConfig("", scale_jitter=2.0), rng())
    turned = sample_reframing(DataConfig("", frame_turn=30.0), rng())
    assert (scaled.scale, turned.scale) == (both.scale, 1)
    np.testing.assert_array_equal(turned.turn, both.turn)
    np.testing.assert_array_equal(scaled.turn, np.eye(3))


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
        ("[1]", "a list, expected an object"),
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
