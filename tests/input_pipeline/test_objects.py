"""Objects in the pipeline: their own frame, views by rule, a background, and the object's mask."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from absl import logging

from input_pipeline import alpha, make_index, sampling
from input_pipeline.camera_table import CameraTable
from input_pipeline.loading import open_eval_set, train_batches
from input_pipeline.objects import __main__ as import_objects
from input_pipeline.orbit import gso_views, nearest_views, sample_structured
from input_pipeline.storage import Clip, Frame
from lvsm_jax.batch import Batch
from lvsm_jax.common.config import DataConfig, EvalConfig
from lvsm_jax.evaluation import report, scoring
from lvsm_jax.models.cameras import Cameras
from tests.helpers.objects import ball, gso_poses, orbit_pose, png, write_object
from tests.helpers.tiny_dataset import write_dataset

OBJECT = {"camera_normalization": "none", "sampling": "random", "image_height": 16}
OBJECT |= {"num_views": 12, "num_inputs": 4, "num_targets": 8, "patch_size": 4}


def table_of(poses) -> CameraTable:
    w2c = np.linalg.inv(np.stack(poses))[:, :3].astype(np.float32)
    return CameraTable(w2c, np.tile(np.float32([1, 1, 0.5, 0.5]), (len(poses), 1)))


@pytest.fixture(scope="module")
def objects(tmp_path_factory):
    """A ball seen from all 64 places of the rig, as one object to train on and one held out."""
    folder = tmp_path_factory.mktemp("objects")
    for name in ("ball", "other"):
        write_object(folder / "in" / name, "opencv_cameras", gso_poses(), size=24)
    import_objects.run(folder / "in", folder / "out", test_objects=["other"])
    make_index.main([str(folder / "out"), "--by=gso"])
    return folder / "out"


def test_cameras_stay_in_the_objects_frame_and_views_are_any(objects):
    config = DataConfig(objects, **OBJECT)
    batch = next(train_batches(config, batch_size=4, seed=0))
    assert batch.inputs.images.shape == (4, 4, 16, 16, 3)
    assert batch.targets.images.shape == (4, 8, 16, 16, 3) and batch.mask is None
    poses = np.stack(gso_poses())
    for views in (batch.inputs, batch.targets):
        np.testing.assert_allclose(views.cameras.c2w, poses[views.frame], atol=1e-5)
    views = np.concatenate([batch.inputs.frame, batch.targets.frame], axis=1)
    assert all(len(set(row)) == 12 for row in views.tolist())
    assert len(set(views.ravel().tolist())) > 25  # of all of them, not of a neighbourhood
    assert (batch.inputs.images[:, :, 0, 0] == 255).all()
    black = next(
        train_batches(DataConfig(objects, background="black", **OBJECT), batch_size=4, seed=0)
    )
    np.testing.assert_array_equal(black.inputs.frame, batch.inputs.frame)
    assert (black.inputs.images[:, :, 0, 0] == 0).all()
    for field, value in (("num_targets", 9), ("num_views", 65)):
        with pytest.raises(ValueError, match="num_views"):
            train_batches(DataConfig(objects, **OBJECT | {field: value}), batch_size=4, seed=0)
    with pytest.raises(ValueError, match=r"data\.background: 'tartan' is no colour"):
        DataConfig(objects, background="tartan")


def test_structured_inputs_stand_around_the_object(objects):
    config = DataConfig(objects, **OBJECT | {"sampling": "structured"})
    cameras = table_of(gso_poses())
    for seed in range(20):
        views = sample_structured(cameras, config, 4, np.random.default_rng(seed))
        rows, columns = np.divmod(views.inputs, 16)
        assert len(set(rows.tolist())) == 1
        np.testing.assert_array_equal((columns - columns[0]) % 16, [0, 4, 8, 12])
        assert len(views.targets) == 8 and not set(views.inputs) & set(views.targets)
    batch = next(train_batches(config, batch_size=4, seed=0))
    assert ((batch.inputs.frame // 16) == (batch.inputs.frame[:, :1] // 16)).all()
    chosen, beside = nearest_views(cameras, 20.0, (50.0, 50.0))
    assert chosen.tolist() == [18, 19] and beside[0] < 5 < beside[1]


def test_the_rule_of_gso_and_its_draw(objects, tmp_path, capsys):
    index = sampling.read_index(objects / "evaluation_index.json")
    (entry,) = index.values()
    assert entry.context == (18, 22, 26, 30)
    assert len(set(entry.target)) == 10 and not set(entry.target) & set(entry.context)
    cameras = table_of(gso_poses())
    assert gso_views(cameras, "other", 10, 0) == entry
    assert gso_views(cameras, "other", 10, 1).target != entry.target
    assert gso_views(cameras, "another", 10, 0).target != entry.target
    few = table_of([orbit_pose(20, a) for a in range(0, 360, 15)])
    assert gso_views(few, "a", 10, 0).context == (3, 9, 15, 21)
    with pytest.raises(ValueError, match="13 views, too few for 4 inputs and 10"):
        gso_views(table_of(gso_poses()[:13]), "a", 10, 0)
    with pytest.raises(ValueError, match=r"no view within 5° of elevation 20° and azimuth \d+°"):
        gso_views(table_of(gso_poses()[:16]), "a", 10, 0)
    make_index.main([str(objects), "--by=gso", f"--output={tmp_path}/i.json", "--targets=3"])
    assert "lvsm-gso, 4 inputs, 3 targets, seed 0: no published index" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="--inputs=2, but by gso there are 4"):
        make_index.main([str(objects), "--by=gso", f"--output={tmp_path}/j.json", "--inputs=2"])


def shows(colour: float):
    """A model that renders one grey."""

    def model(images, cameras, targets: Cameras):
        shape = (*targets.c2w.shape[:2], *images.shape[2:])
        return jnp.full(shape, colour, jnp.float32)

    return model


def test_scores_are_of_the_whole_picture_and_of_the_object(objects):
    evaluation = EvalConfig(num_inputs=4, camera_normalization="none", batch_size=1)
    eval_set = open_eval_set(DataConfig(objects, **OBJECT), evaluation)
    (batch,) = eval_set
    assert batch.mask.shape == (1, 10, 16, 16) and batch.mask.dtype == bool
    white = scoring.evaluate(shows(1.0), eval_set, progress=False)
    errors = np.square(batch.targets.images[0] / 255 - 1.0).mean(-1)
    whole = -10 * np.log10(errors.mean((1, 2)))
    masked = np.array(
        [-10 * np.log10(e[m].mean()) for e, m in zip(errors, batch.mask[0], strict=True)]
    )
    np.testing.assert_allclose(white.scores["model"]["psnr"][0], whole, rtol=1e-5)
    np.testing.assert_allclose(white.scores["model"][scoring.OBJECT][0], masked, rtol=1e-5)
    summary = white.summary()
    np.testing.assert_allclose(summary[scoring.OBJECT], masked.mean(), rtol=1e-5)
    assert summary[scoring.OBJECT] < summary["psnr"] - 2  # the background was right
    assert summary["baselines"]["copy_nearest"][scoring.OBJECT] > 0
    assert next(iter(white.rows()))[scoring.OBJECT] == pytest.approx(masked[0], rel=1e-4)
    black = dataclasses.replace(evaluation, background="black")
    (batch,) = open_eval_set(DataConfig(objects, **OBJECT), black)
    assert (batch.targets.images[:, :, 0, 0] == 0).all()


def test_targets_without_the_object_count_for_the_picture_alone():
    scores = {scoring.OBJECT: np.array([[10.0, np.inf, 20.0]]), "psnr": np.array([[1.0, 2.0, 3.0]])}
    evaluation = scoring.Evaluation(
        ("a",),
        np.array([[0, 1, 2]]),
        np.zeros((1, 3), bool),
        {"model": scores},
        with_object=np.array([[True, False, True]]),
    )
    assert evaluation.mean(scoring.OBJECT) == 15.0 and evaluation.mean("psnr") == 2.0
    assert evaluation.scene_means(scoring.OBJECT).tolist() == [15.0]
    assert [row[scoring.OBJECT] for row in evaluation.rows()] == [10.0, None, 20.0]
    assert report._number(float("nan"), scoring.OBJECT) == "–"


def test_pictures_of_which_nobody_said_the_background_are_on_white(tmp_path, monkeypatch):
    frames = [
        Frame(
            png(ball(pose)),
            np.float32([1, 1, 0.5, 0.5]),
            np.linalg.inv(pose)[:3].astype(np.float32),
            0,
        )
        for pose in gso_poses()[:16]
    ]
    write_dataset(tmp_path, [Clip("ball", "", frames)], num_shards=1)
    said = []
    monkeypatch.setattr(logging, "warning", lambda text, *_: said.append(text))
    alpha.default_alpha.cache_clear()
    config = DataConfig(tmp_path, **OBJECT)
    batch: Batch = next(train_batches(config, batch_size=1, seed=0))
    assert (batch.inputs.images[:, :, 0, 0] == 255).all()
    assert len(said) == 1 and "states no background: they are put on white" in said[0]
