"""The pipeline end to end: what is in a batch, and that it is the same however it is made."""

import io
import json
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from etils import epath
from PIL import Image

from input_pipeline.loading import train_batches
from input_pipeline.preprocess import FrameError, preprocess_frame
from input_pipeline.storage import SplitReader
from lvsm_jax.batch import Batch
from lvsm_jax.common.config import DataConfig
from tests.helpers import tiny_dataset
from tests.helpers.tiny_dataset import (
    LENGTHS,
    assert_same,
    config_of,
    eval_batches,
    expected_cameras,
    rows_of,
)

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny")
    tiny_dataset.write_six_clips(path)
    return path


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    """Clip 1 of three holds nothing but a truncated JPEG from its second frame on."""
    path = tmp_path_factory.mktemp("damaged")
    jpegs = {position: tiny_dataset.photograph(1, position)[:300] for position in range(1, 40)}
    clips = [tiny_dataset.clip_of(i, 40, jpegs if i == 1 else {}) for i in range(3)]
    tiny_dataset.write_dataset(path, clips)
    return path


def take(count: int, batches) -> list[Batch]:
    taken = [batch for _, batch in zip(range(count), batches, strict=False)]
    batches.close()
    return taken


def test_batches_hold_the_frames_they_name(tiny):
    for batch in take(3, train_batches(config_of(tiny), batch_size=4, seed=0)):
        assert batch.inputs.images.shape == (4, 2, 16, 16, 3)
        assert batch.targets.images.shape == (4, 3, 16, 16, 3)
        assert batch.valid.all() and not batch.replaced.any()
        dtypes = [leaf.dtype for leaf in jax.tree.leaves(batch)]
        views = [np.uint8, np.float32, np.float32, np.int32]
        assert dtypes == [*views, *views, np.int32, np.bool_, np.int32]
        for views in (batch.inputs, batch.targets):
            for row, scene in enumerate(batch.scene):
                assert LENGTHS[scene] > 25
                for view, frame in enumerate(views.frame[row]):
                    seen = views.images[row, view].reshape(-1, 3).mean(0)
                    np.testing.assert_allclose(
                        seen, tiny_dataset.colour(int(scene), int(frame)), atol=3
                    )
        # 48 × 32 pixels, resized to 24 × 16, of which columns 4 to 20 are kept.
        np.testing.assert_allclose(
            batch.inputs.cameras.fxfycxcy, np.tile([18, 18, 8, 8], (4, 2, 1)), rtol=1e-6
        )


@pytest.mark.parametrize("mode", ["all_views", "input_views"])
def test_cameras_are_in_the_frame_of_the_mode(tiny, mode):
    # As many targets as views, so that the batch names them all.
    config = DataConfig(
        tiny, image_height=16, num_views=5, num_targets=5, camera_normalization=mode
    )
    [batch] = take(1, train_batches(config, batch_size=4, seed=0))
    for row, scene in enumerate(batch.scene):
        inputs, targets = batch.inputs.frame[row], batch.targets.frame[row]
        fitted = targets if mode == "all_views" else inputs
        np.testing.assert_allclose(
            batch.inputs.cameras.c2w[row], expected_cameras(scene, fitted, inputs), atol=1e-5
        )
        np.testing.assert_allclose(
            batch.targets.cameras.c2w[row], expected_cameras(scene, fitted, targets), atol=1e-5
        )


def test_an_epoch_shows_each_usable_clip_once_and_each_in_another_order(tiny):
    batches = take(12, train_batches(config_of(tiny), batch_size=4, seed=5))
    orders = [tuple(batch.scene) for batch in batches]
    assert all(sorted(order) == [0, 2, 3, 5] for order in orders)
    assert len(set(orders)) > 3
    frames = {tuple(batch.inputs.frame[order.index(5)]) for batch, order in zip(batches, orders)}  # noqa: B905
    assert len(frames) > 6  # views are drawn anew


def test_the_seed_decides(tiny):
    def batches(seed):
        return take(2, train_batches(config_of(tiny), batch_size=6, seed=seed))

    assert_same(batches(1), batches(1))
    assert rows_of(batches(1)) != rows_of(batches(2))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_resuming_gives_the_batches_of_the_uninterrupted_run(tiny, num_workers):
    straight = take(7, train_batches(config_of(tiny), batch_size=3, seed=9))
    config = config_of(tiny, num_workers=num_workers)
    assert_same(take(4, train_batches(config, batch_size=3, seed=9, start_step=3)), straight[3:])


@pytest.mark.parametrize("process_count", [2, 3])
def test_the_global_batch_is_the_same_for_any_number_of_processes(tiny, process_count):
    def batches(start_step=0, **process):
        options = {"batch_size": 6, "seed": 4, "start_step": start_step}
        return take(4 - start_step, train_batches(config_of(tiny), **options, **process))

    whole = batches()
    for start_step in (0, 2):
        parts = [
            batches(start_step, process_index=index, process_count=process_count)
            for index in range(process_count)
        ]
        for step, shares in enumerate(zip(*parts, strict=True)):
            assert all(len(share.scene) == 6 // process_count for share in shares)
            assert rows_of(shares) == rows_of([whole[start_step + step]])


VARYING = {
    "input_counts": (1, 2, 3),
    "aspect_ratios": (1.0, 2.0),
    "smallest_crop": 0.5,
    "scale_jitter": 2.0,
    "frame_turn": 40.0,
}


def test_steps_vary_alike_in_all_processes_and_workers_and_after_resuming(tiny):
    def batches(start_step=0, num_workers=0, **process):
        config = config_of(tiny, num_workers=num_workers, **VARYING)
        options = {"batch_size": 6, "seed": 4, "start_step": start_step}
        return take(8 - start_step, train_batches(config, **options, **process))

    whole = batches()
    shapes = [batch.inputs.images.shape[1:4] for batch in whole]
    assert {views for views, _, _ in shapes} == {1, 2, 3}
    assert {shape[1:] for shape in shapes} == {(16, 16), (8, 24)}
    assert_same(batches(start_step=3, num_workers=2), whole[3:])
    parts = [batches(process_index=index, process_count=2) for index in range(2)]
    for step, shares in enumerate(zip(*parts, strict=True)):
        assert rows_of(shares) == rows_of([whole[step]])
    # The same views of the same clips as without: only more or fewer of them are inputs.
    plain = take(8, train_batches(config_of(tiny), batch_size=6, seed=4))
    for ours, theirs in zip(whole, plain, strict=True):
        np.testing.assert_array_equal(ours.scene, theirs.scene)
        np.testing.assert_array_equal(ours.inputs.frame[:, 0], theirs.inputs.frame[:, 0])


def test_crops_differ_between_samples_and_intrinsics_follow(tmp_path):
    x, y = np.meshgrid(np.arange(96) + 0.5, np.arange(64) + 0.5)  # colours say where a pixel is
    picture = Image.fromarray((np.stack([2 * x, 3 * y, 0 * x], -1)).round().astype(np.uint8))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=100, subsampling=0)
    jpegs = dict.fromkeys(range(30), file.getvalue())
    tiny_dataset.write_dataset(tmp_path, [tiny_dataset.clip_of(i, 30, jpegs) for i in range(4)])
    batches = take(6, train_batches(config_of(tmp_path, **VARYING), batch_size=4, seed=1))
    centres = set()
    for batch in batches:
        height, width = batch.inputs.images.shape[2:4]
        for views in (batch.inputs, batch.targets):
            fxfycxcy = views.cameras.fxfycxcy
            assert (fxfycxcy == batch.inputs.cameras.fxfycxcy[:, :1]).all()
            seen = views.images[..., :2].mean((2, 3)) / [2, 3]  # mean place in the picture
            ray = ([width / 2, height / 2] - fxfycxcy[..., 2:]) / fxfycxcy[..., :2]
            expected = ray * [0.75 * 96, 1.125 * 64] + [48, 32]
            np.testing.assert_allclose(seen, expected, atol=0.4)
        centres |= {tuple(camera[0, 2:]) for camera in batch.inputs.cameras.fxfycxcy}
    assert len(centres) > 20  # of 24; at 16 pixels some are alike


def test_the_cameras_of_a_sample_are_turned_and_scaled_alike_and_nothing_else_changes(tiny):
    def batches(**fields):
        config = config_of(tiny, smallest_crop=0.5, **fields)
        return take(3, train_batches(config, batch_size=4, seed=1))

    scales, angles = [], []
    plain, changed = batches(), batches(scale_jitter=2.0, frame_turn=40.0)
    for off, on in zip(plain, changed, strict=True):
        for row in range(4):
            before, after = (
                np.concatenate([v.cameras.c2w[row] for v in (b.inputs, b.targets)]).astype(float)
                for b in (off, on)
            )
            turn = after[0, :3, :3] @ before[0, :3, :3].T
            positions = before[:, :3, 3] @ turn.T
            scale = np.linalg.norm(after[:, :3, 3]) / np.linalg.norm(positions)
            # Where cameras are to one another, in float32: rotations stay, distances scale.
            relative = np.linalg.inv(before[0]) @ before
            relative[:, :3, 3] *= scale
            np.testing.assert_allclose(np.linalg.inv(after[0]) @ after, relative, atol=1e-6)
            np.testing.assert_allclose(after[:, :3, 3], scale * positions, atol=1e-6)
            scales.append(scale)
            angles.append(np.rad2deg(np.arccos((np.trace(turn) - 1) / 2)))
        for views, others in ((off.inputs, on.inputs), (off.targets, on.targets)):
            others.cameras.c2w[:] = views.cameras.c2w
        assert_same(on, off)
    assert 0.5 <= min(scales) < 0.8 and 1.2 < max(scales) <= 2
    assert 0 <= min(angles) < 15 and 25 < max(angles) <= 40


def test_evaluation_takes_no_part_in_augmentation(tiny, tmp_path):
    index = tmp_path / "index.json"
    index.write_text(json.dumps({"clip0": {"context": [2, 20], "target": [5, 9]}}))
    plain, varying = (
        list(eval_batches(config_of(tiny, **fields), index=index, batch_size=1))
        for fields in ({}, VARYING)
    )
    assert_same(varying, plain)


def test_shares_of_a_batch_must_be_equal(tiny):
    with pytest.raises(ValueError, match="batch_size 6 cannot be divided among 4 processes"):
        train_batches(config_of(tiny), batch_size=6, seed=0, process_count=4)
    with pytest.raises(ValueError, match="process_index 2 is not one of 2"):
        train_batches(config_of(tiny), batch_size=6, seed=0, process_index=2, process_count=2)


def test_clips_that_cannot_be_sampled_are_counted(tiny, caplog):
    with caplog.at_level("INFO", logger="absl"):
        train_batches(config_of(tiny), batch_size=1, seed=0)
    assert "2 of 6 clips are rejected" in caplog.text


def test_a_split_without_usable_clips_is_an_error(tiny):
    with pytest.raises(ValueError, match=r"no usable clip: none of 6 .* 70 to 192 .* 60 frames"):
        train_batches(config_of(tiny, min_span=70), batch_size=1, seed=0)


def test_the_full_width_must_be_a_multiple_of_the_patch(tiny):
    config = config_of(tiny, square_crop=False)
    [batch] = take(1, train_batches(config, batch_size=1, seed=0))
    assert batch.inputs.images.shape == (1, 2, 16, 24, 3)
    with pytest.raises(ValueError, match=r"24 pixels wide at height 16: .* patch_size 16"):
        train_batches(config_of(tiny, square_crop=False, patch_size=16), batch_size=1, seed=0)


def test_clips_of_any_shape_train_together(tmp_path):
    upright = {i: tiny_dataset.photograph(1, i, (32, 48)) for i in range(30)}
    clips = [tiny_dataset.clip_of(0, 30), tiny_dataset.clip_of(1, 30, upright)]
    tiny_dataset.write_dataset(tmp_path, clips)
    for fields in ({}, {"aspect_ratios": (0.5, 1.0, 2.0)}, {"smallest_crop": 0.5}):
        for batch in take(3, train_batches(config_of(tmp_path, **fields), batch_size=2, seed=0)):
            assert set(batch.scene) == {0, 1}
            for scene, views in zip(batch.scene, batch.inputs.images, strict=True):
                red = 20 + 40 * int(scene)
                np.testing.assert_allclose(views[..., 0].mean(), red, atol=3)
    # Of full width a batch has one shape.
    batches = train_batches(config_of(tmp_path, square_crop=False), batch_size=2, seed=0)
    with pytest.raises(FrameError, match=r"scene clip1, .* 8 pixels wide at height 16, where"):
        next(batches)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_bad_frame_stops_the_run_and_is_named(damaged, num_workers):
    batches = train_batches(config_of(damaged, num_workers=num_workers), batch_size=3, seed=0)
    with pytest.raises(FrameError) as error:
        next(batches)
    message = str(error.value)
    assert str(damaged) in message
    assert "scene clip1, frame " in message
    assert "array_record-00000-of-00002" in message
    assert "cannot be decoded (300 bytes)" in message


def test_bad_frames_are_replaced_on_demand_and_counted(damaged):
    def batches(start_step=0):
        config = config_of(damaged, on_bad_frame="replace")
        options = {"batch_size": 3, "seed": 0, "start_step": start_step}
        return take(6 - start_step, train_batches(config, **options))

    straight = batches()
    assert all(set(batch.scene) <= {0, 2} for batch in straight)
    # Each epoch of three clips draws the bad one once, and may draw it again as a replacement.
    assert all((batch.replaced > 0).sum() == 1 for batch in straight)
    assert_same(batches(start_step=4), straight[4:])


def test_a_dataset_of_bad_frames_is_given_up(tmp_path):
    jpegs = dict.fromkeys(range(30), b"nothing")
    tiny_dataset.write_dataset(tmp_path, [tiny_dataset.clip_of(0, 30, jpegs)], num_shards=1)
    config = config_of(tmp_path, on_bad_frame="replace")
    with pytest.raises(FrameError, match="100 samples in a row had bad frames"):
        next(train_batches(config, batch_size=1, seed=0))


def test_a_record_damaged_on_disk_is_named(tmp_path):
    [clip] = [tiny_dataset.clip_of(0, 27)]
    tiny_dataset.write_dataset(tmp_path, [clip], num_shards=1)
    [shard] = epath.Path(tmp_path).glob("*.array_record-*")
    content = bytearray(shard.read_bytes())
    at = content.find(clip.frames[26].image[-200:])
    content[at : at + 100] = bytes(100)
    shard.write_bytes(bytes(content))
    # Every sample of the clip ends with its frame 26 or 25, so a few draws meet the damage.
    with pytest.raises(FrameError, match="scene clip0, frame 26: cannot read"):
        take(20, train_batches(config_of(tmp_path), batch_size=1, seed=0))


def test_real_photographs(shared_data, tmp_path):
    command = [sys.executable, "-m", "input_pipeline.re10k", shared_data / "re10k_sample"]
    subprocess.run([*command, tmp_path], cwd=REPOSITORY, check=True, capture_output=True)
    index = shared_data / "re10k_sample" / "evaluation_index.json"
    config = DataConfig(tmp_path, split="test", image_height=64, square_crop=False)
    clips = eval_batches(config, index=index, batch_size=2, allow_missing=True)
    assert (clips.num_scenes, clips.num_missing) == (3, 4)

    reader = SplitReader(tmp_path, "test")
    for batch in clips:
        for scene, views in [(s, v) for v in (batch.inputs, batch.targets) for s in range(2)]:
            assert np.abs(views.cameras.c2w[scene, :, :3, 3]).max() <= 1 / 1.35 + 1e-5
            first = reader.scenes.first_frame[batch.scene[scene]]
            for view, frame in enumerate(reader.frames((first + views.frame[scene]).tolist())):
                image, fxfycxcy = preprocess_frame(
                    frame.image, frame.normalized_fxfycxcy, 64, False
                )
                np.testing.assert_array_equal(views.images[scene, view], image)
                np.testing.assert_array_equal(views.cameras.fxfycxcy[scene, view], fxfycxcy)

    [batch] = take(1, train_batches(DataConfig(tmp_path, image_height=64), batch_size=7, seed=0))
    assert sorted(batch.scene) == list(range(7))
    assert batch.inputs.images.shape == (7, 2, 64, 64, 3)
    assert (batch.inputs.images.reshape(7, -1).std(1) > 10).all()


def test_the_benchmark_measures_the_pipeline(tiny, tmp_path):
    options = ["--image-height=16", "--samples=8", "--batch-size=2", "--rounds=1", "--workers", "0"]
    command = [sys.executable, "-m", "benchmarks.data", tiny, "--output", tmp_path / "data.json"]
    subprocess.run([*command, *options], cwd=REPOSITORY, check=True, capture_output=True)
    report = json.loads((tmp_path / "data.json").read_text())
    [speed] = report["samples_per_second"]
    assert speed["num_workers"] == 0
    assert min(speed["pipeline"], speed["pillow"], speed["prepared"]) > 0
    traffic = report["bytes_per_sample"]
    assert traffic["read"] > traffic["views"] > traffic["decoded"] > 0
