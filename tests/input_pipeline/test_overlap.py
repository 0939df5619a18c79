"""Views by what they have in common: overlaps, samples, and evaluation indexes by rule."""

import json

import jax
import numpy as np
import pytest

from input_pipeline import make_index
from input_pipeline.camera_table import CameraTable, write_camera_table
from input_pipeline.loading import open_eval_set, train_batches
from input_pipeline.overlap import nearest_views, overlaps, sample_by_overlap
from input_pipeline.storage import SplitReader
from input_pipeline.view_index import spread_views
from lvsm_jax.common.config import DataConfig, EvalConfig
from tests.helpers import tiny_dataset
from tests.helpers.tiny_dataset import assert_same, config_of, rows_of


def table(c2w) -> CameraTable:
    w2c = np.linalg.inv(np.asarray(c2w, np.float64))[:, :3].astype(np.float32)
    return CameraTable(w2c, np.tile(np.float32([1, 1, 0.5, 0.5]), (len(w2c), 1)))


def looking(position, at) -> np.ndarray:
    forward = np.subtract(at, position) / np.linalg.norm(np.subtract(at, position))
    right = np.cross([0, 1.0, 0], forward)
    right /= np.linalg.norm(right)
    c2w = np.eye(4)
    c2w[:3] = np.stack([right, np.cross(forward, right), forward, position], axis=1)
    return c2w


def orbit(count: int, at=(0.0, 0, 0)) -> list:
    angles = 2 * np.pi * np.arange(count) / count
    return [looking(np.add(at, (3 * np.sin(a), 0.5, 3 * np.cos(a))), at) for a in angles]


def test_overlap_falls_around_an_object_to_nothing_behind_it():
    shared = overlaps(table(orbit(12)), 0)
    assert shared[0] == 1
    np.testing.assert_allclose(shared[1:], shared[:0:-1], atol=0.08)  # the same both ways
    assert (np.diff(shared[:5]) < 0).all() and shared[1] > 0.5
    assert shared[3:10].max() < 0.1


def test_overlap_does_not_depend_on_the_worlds_axes_origin_or_unit():
    cameras = np.stack(orbit(7))
    moved = looking((3, 1, 2), (0, 5, 1)) @ cameras
    moved[:, :3, 3] *= 40
    np.testing.assert_allclose(overlaps(table(moved), 2), overlaps(table(cameras), 2), atol=1e-4)


def test_views_that_look_elsewhere_have_nothing_in_common():
    here = [looking((0.1 * i, 0, 0), (0.1 * i, 0, 5)) for i in range(4)]
    away = [looking((0.1 * i, 0, 0), (0.1 * i, 0, -5)) for i in range(4)]
    order, shared = nearest_views(table([*here, *away]), 1)
    assert set(order[:3]) == {0, 2, 3} and shared[:3].min() > 0.2
    assert shared[3:].max() == 0
    assert order[3:].tolist() == [5, 4, 6, 7]  # by distance then
    assert overlaps(table(here[:1]), 0).tolist() == [1]


def test_samples_are_of_views_that_have_something_in_common():
    # Two objects far apart, their photographs in turn: neighbours in the list look elsewhere.
    pairs = zip(orbit(20), orbit(20, at=(50.0, 0, 0)), strict=True)
    cameras = table([c2w for pair in pairs for c2w in pair])
    config = DataConfig("", num_views=5, num_inputs=2, num_targets=2, sampling="overlap")
    draws = [sample_by_overlap(cameras, config, 2, np.random.default_rng(i)) for i in range(300)]
    again = sample_by_overlap(cameras, config, 2, np.random.default_rng(7))
    np.testing.assert_array_equal(again.all_views, draws[7].all_views)
    for views in draws:
        assert len(set(views.all_views)) == 5
        assert len({view % 2 for view in views.all_views}) == 1  # one object
        assert not set(views.inputs) & set(views.targets)
        assert len(views.inputs) == len(views.targets) == 2
    assert {int(view) for views in draws for view in views.targets} == set(range(40))
    spans = [np.ptp(np.unwrap(2 * np.pi * (v.all_views // 2) / 20)) for v in draws]
    assert np.std(spans) > 0.2  # near and far
    # With too few that overlap, the nearest are taken.
    lonely = DataConfig("", num_views=12, num_inputs=2, num_targets=10, min_overlap=0.9)
    assert len(sample_by_overlap(cameras, lonely, 2, np.random.default_rng(0)).all_views) == 12


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """The six tiny clips, with a table of their cameras."""
    path = tmp_path_factory.mktemp("photographs")
    tiny_dataset.write_six_clips(path)
    reader = SplitReader(path, "train")
    frames = reader.frames(range(len(reader)))
    w2c = np.stack([frame.w2c for frame in frames])
    shares = np.stack([frame.normalized_fxfycxcy for frame in frames])
    write_camera_table(path, "train", CameraTable(w2c, shares))
    return path


def take(count, batches):
    taken = [batch for _, batch in zip(range(count), batches, strict=False)]
    batches.close()
    return taken


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_by_overlap_are_a_function_of_seed_and_step(photographs, num_workers):
    def batches(start_step=0, workers=0, **process):
        config = config_of(photographs, num_workers=workers)
        options = {"batch_size": 6, "seed": 4, "start_step": start_step}
        return take(5 - start_step, train_batches(config, **options, **process))

    whole = batches()
    assert_same(batches(start_step=3, workers=num_workers), whole[3:])
    parts = [batches(process_index=index, process_count=2) for index in range(2)]
    for step, shares in enumerate(zip(*parts, strict=True)):
        assert rows_of(shares) == rows_of([whole[step]])
    scenes = set(np.concatenate([batch.scene for batch in whole]).tolist())
    assert scenes == {0, 1, 2, 3, 5}  # 12 photographs are enough, 3 are not
    for batch in whole:
        for inputs, targets in zip(batch.inputs.frame, batch.targets.frame, strict=True):
            assert not set(inputs.tolist()) & set(targets.tolist())
    jax.tree.map(lambda x: np.testing.assert_array_equal(np.isfinite(x), True), whole[0].inputs)


def test_which_sampling_is_said_or_known_by_the_table(photographs, tmp_path):
    def rows(path, **fields):
        return rows_of(take(2, train_batches(config_of(path, **fields), batch_size=4, seed=0)))

    assert rows(photographs) == rows(photographs, sampling="overlap")
    plain = tmp_path / "plain"
    tiny_dataset.write_six_clips(plain)
    assert rows(plain) == rows(photographs, sampling="span") != rows(photographs)
    with pytest.raises(ValueError, match=r"has no table of cameras, cameras-train\.npz"):
        train_batches(config_of(plain, sampling="overlap"), batch_size=4, seed=0)
    for fields, message in (
        ({"num_inputs": 3}, "num_views is 5, but a sample of photographs has up to 3 inputs"),
        ({"num_views": 80}, "none of 6 has 80 photographs .* lower --config.data.num_views"),
    ):
        fields = {"num_views": 5, "num_targets": 3} | fields
        config = DataConfig(photographs, image_height=16, **fields)
        with pytest.raises(ValueError, match=message):
            train_batches(config, batch_size=4, seed=0)


def test_inputs_of_an_index_are_spread_and_targets_held_out():
    cameras = table(orbit(24))
    entry = spread_views(cameras, 3, 4)
    assert entry == spread_views(cameras, 3, 4)
    inputs, targets = set(entry.context), set(entry.target)
    assert (len(inputs), len(targets)) == (3, 4) and not inputs & targets
    steps = np.diff([*sorted(inputs)])
    assert steps.min() >= 2  # not neighbours
    # Every target has more in common with some input than with none.
    assert min(overlaps(cameras, view)[list(inputs)].max() for view in targets) > 0.3
    few = spread_views(table(orbit(4)), 3, 3)
    assert len(few.context) == 3 and len(few.target) == 1


def test_an_index_as_a_command(photographs, capsys):
    make_index.main([str(photographs), "--split=train", "--inputs=4", "--targets=5"])
    told = capsys.readouterr().out
    assert "evaluation_index.json: 5 clips" in told and "null: clip4" in told
    assert "Evaluate with --config.eval.num_inputs=4" in told
    index = json.loads((photographs / "evaluation_index.json").read_text())
    assert index["clip4"] is None and len(index["clip0"]["target"]) == 5
    evaluation = EvalConfig(split="train", num_inputs=4)
    some = open_eval_set(config_of(photographs), evaluation)
    assert some.num_scenes == 5
    assert all(not set(views.inputs) & set(views.targets) for views in some.views)
    for more, message in (
        ([], "exists; choose another path"),
        (["--overwrite", "--seed=1"], "nothing is drawn"),
        (["--overwrite", "--by=span", "--targets=4"], "by span there are 3"),
        (["--overwrite", "--inputs=90"], "no clip of split 'train' .* the largest has 60"),
    ):
        with pytest.raises(SystemExit, match=f"error: .*{message}"):
            make_index.main([str(photographs), "--split=train", *more])


def test_datasets_are_mixed_by_weights(photographs, tmp_path):
    other = tmp_path / "other"
    tiny_dataset.write_dataset(other, [tiny_dataset.clip_of(i, 40) for i in range(3)])

    def batches(start_step=0, workers=0, weights=(1.0, 2.0), **process):
        fields = {"mix": (str(other),), "mix_weights": weights, "num_workers": workers}
        options = {"batch_size": 6, "seed": 4, "start_step": start_step}
        count = 6 - start_step
        return take(count, train_batches(config_of(photographs, **fields), **options, **process))

    whole = batches()
    scenes = np.concatenate([batch.scene for batch in whole])
    assert (scenes >= 6).sum() == 24  # two thirds; clips of the second are numbered from 6 on
    assert set(scenes[scenes >= 6]) == {6, 7, 8}
    counts = np.unique(scenes[scenes >= 6], return_counts=True)[1]
    assert counts.tolist() == [8, 8, 8]  # an epoch shows each once
    assert_same(batches(start_step=4, workers=2), whole[4:])
    parts = [batches(process_index=index, process_count=3) for index in range(3)]
    for step, shares in enumerate(zip(*parts, strict=True)):
        assert rows_of(shares) == rows_of([whole[step]])
    equal = np.concatenate([batch.scene for batch in batches(weights=())])
    assert (equal >= 6).sum() == 18
    # Photographs by overlap, frames by span, each as its dataset has it.
    for batch in whole:
        for scene, inputs in zip(batch.scene, batch.inputs.frame, strict=True):
            assert scene < 6 or inputs[1] - inputs[0] >= 25


def test_bad_mixes_are_told(photographs):
    for fields, message in (
        ({"mix": ("",)}, "one names nothing"),
        ({"mix": ("a",), "mix_weights": (1.0,)}, "expected 2 positive numbers"),
        ({"mix": ("a",), "mix_weights": (1.0, 0.0)}, "expected 2 positive numbers"),
        ({"mix_weights": (1.0, 2.0)}, "expected 1 positive numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            config_of(photographs, **fields)
    with pytest.raises(ValueError, match="no dataset directory /none"):
        train_batches(config_of(photographs, mix=("/none",)), batch_size=2, seed=0)
