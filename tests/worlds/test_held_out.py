"""Evaluation on held-out worlds: which views, what is seen by whom, and what is reported."""

import csv
import dataclasses
import functools
import html
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import lvsm_jax
from configs import worlds_64
from lvsm_jax.batch import shard_batch
from lvsm_jax.common.config import DataConfig, EvalConfig
from lvsm_jax.common.errors import UserError
from lvsm_jax.common.tree import named_leaves
from lvsm_jax.evaluation.scoring import (
    COPY_NEAREST,
    EXACT_PSNR,
    MEAN_COLOR,
    MODEL,
    SEEN_BY,
    evaluate,
)
from lvsm_jax.parallel.mesh import MeshConfig, make_mesh
from lvsm_jax.programs import eval as eval_program
from lvsm_jax.programs.evaluation_run import evaluate_export
from lvsm_jax.programs.training_run import train
from lvsm_jax.worlds import stream
from lvsm_jax.worlds.config import WorldsConfig
from lvsm_jax.worlds.held_out import open_worlds, place_views
from tests.helpers.plain_worlds import use_plain_worlds
from tests.helpers.tiny_dataset import assert_same

DATA = DataConfig("", image_height=16)


@pytest.fixture(autouse=True)
def _plain(monkeypatch):
    use_plain_worlds(monkeypatch)


def settings(**changes):
    return EvalConfig(**{"worlds": 5, "world_views": 8, "batch_size": 2} | changes)


def test_targets_stay_where_they_are_and_inputs_are_others():
    for views in (4, 9, 16):
        targets = place_views(EvalConfig(world_views=views))[1] if views > 4 else (0, 2, 3)
        for inputs in range(1, views - 2):
            for where in ("spread", "contiguous"):
                evaluation = settings(world_views=views, num_inputs=inputs, world_inputs=where)
                shown, asked = place_views(evaluation)
                assert asked == targets and not set(shown) & set(asked)
                assert len(set(shown)) == inputs and list(shown) == sorted(shown)
    assert place_views(EvalConfig(world_views=16, num_inputs=2)) == ((0, 15), (2, 8, 13))
    assert place_views(EvalConfig(num_inputs=4, world_inputs="contiguous"))[0] == (5, 6, 7, 9)
    with pytest.raises(UserError, match=r"eval.num_inputs is 6, .* 8 views .* at most 5"):
        settings(num_inputs=6)
    with pytest.raises(UserError, match=r"eval.world_inputs is 'near'"):
        settings(world_inputs="near")
    assert EvalConfig(num_inputs=64).worlds == 0  # a dataset may have as many


def test_worlds_are_the_same_on_any_mesh_whatever_the_batches():
    def found(evaluation, **sizes):
        devices = int(np.prod(list(sizes.values())))
        mesh = make_mesh(MeshConfig(**sizes), jax.devices()[:devices])
        with jax.set_mesh(mesh):
            batches = list(open_worlds(DATA, WorldsConfig(), evaluation))
        rows = [jax.tree.map(lambda x, b=b: x[b.valid], b) for b in batches]
        return jax.tree.map(lambda *x: np.concatenate(x), *rows)

    one = found(settings(), data=1)
    assert one.scene.tolist() == [0, 1, 2, 3, 4]
    assert one.seen.shape == (5, 3, 16, 16) and one.seen.dtype == np.int8
    assert one.seen.max() == 2 and one.seen.min() == -1
    assert_same(found(settings(), data=2), one)
    assert_same(found(settings(batch_size=8), data=4, view=2), one)
    some = open_worlds(DATA, WorldsConfig(), settings(max_scenes=4), 3)
    assert (some.num_scenes, some.some([2, 0]).rows.tolist()) == (3, [2, 0])
    assert some.some([2, 0]).scenes.key[2] == "world-000002"
    # No training step shows them, of whatever seed.
    block = stream.Block(WorldsConfig(), 8, 16, 16)
    for seed in range(3):
        trained = np.asarray(
            stream.render(block, "training", seed, np.arange(8, dtype=np.int32)).images
        )
        assert not {x.tobytes() for x in trained[:, 0]} & {
            x.tobytes() for x in one.inputs.images[:, 0]
        }


def shifted(images, input_cameras, target_cameras):
    count = target_cameras.c2w.shape[1]
    return jnp.repeat(images[:, :1], count, axis=1) * 1.2 - 0.05


@pytest.mark.parametrize("devices", [1, 2])
def test_errors_are_those_of_the_pixels_that_so_many_inputs_see(devices):
    mesh = make_mesh(devices=jax.devices()[:devices])
    with jax.set_mesh(mesh):
        worlds = open_worlds(DATA, WorldsConfig(), settings())
        put = functools.partial(shard_batch, mesh)
        result = evaluate(shifted, worlds, put=put, progress=False)
        batches = list(worlds)
    summary = result.summary()
    errors = {name: [] for name in SEEN_BY}
    for batch in batches:
        target = batch.targets.images / 255
        shown = np.clip(
            np.float32(shifted(batch.inputs.images / 255, None, batch.targets.cameras)), 0, 1
        )
        squared = np.square(target - shown).mean(-1)
        groups = batch.seen == 0, batch.seen == 1, batch.seen >= 2
        for name, inside in zip(SEEN_BY, groups, strict=True):
            errors[name].append(squared[batch.valid][inside[batch.valid]])
    total = sum(len(x) for found in errors.values() for x in found)
    for name, found in errors.items():
        found = np.concatenate(found)
        told = summary["psnr_by_inputs_that_see"][name]
        assert told["psnr"] == pytest.approx(-10 * np.log10(found.mean()), abs=1e-3)
        assert told["share"] == pytest.approx(len(found) / total)
    for method in (COPY_NEAREST, MEAN_COLOR):
        groups = summary["baselines"][method]["psnr_by_inputs_that_see"]
        assert [group["share"] for group in groups.values()] == [
            group["share"] for group in summary["psnr_by_inputs_that_see"].values()
        ]
    assert result.scores.keys() == {MODEL, COPY_NEAREST, MEAN_COLOR}


def test_groups_without_pixels_and_without_errors():
    mesh = make_mesh(devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        worlds = open_worlds(DATA, WorldsConfig(), settings(num_inputs=1, worlds=2))
        batches = [dataclasses.replace(b, targets=b.inputs, seen=b.seen[:, :1]) for b in worlds]

        class Same:
            scenes, rows, num_scenes = worlds.scenes, worlds.rows, worlds.num_scenes

            def __iter__(self):
                return iter(batches)

        seen = evaluate(shifted, Same(), progress=False).summary()["baselines"][COPY_NEAREST]
    groups = seen["psnr_by_inputs_that_see"]
    assert groups["several"] == {"psnr": None, "share": 0.0}
    assert groups["one"]["psnr"] == EXACT_PSNR


@pytest.fixture
def config():
    config = worlds_64.get_config()
    config.model.update(num_layers=1, width=16, head_dim=8, remat="none")
    config.data.update(image_height=16, num_views=8, input_counts=(1, 2), num_targets=2)
    config.run.update(num_steps=6, batch_size=8, eval_every=0, image_every=0, layers_every=0)
    config.optimizer.update(warmup_steps=0)
    config.eval.update(worlds=4, world_views=8, batch_size=8, lpips=False)
    return config


@pytest.mark.slow
def test_the_summary_the_table_and_the_page_say_that_it_is_worlds(config, tmp_path):
    model = lvsm_jax.EfficientLVSMConfig(num_layers=1, width=16, head_dim=8)
    lvsm_jax.save(lvsm_jax.EfficientLVSM(model, rngs=nnx.Rngs(0)), tmp_path / "export")
    config.eval.world_inputs = "contiguous"
    summary = evaluate_export(config, tmp_path / "export", tmp_path / "out")
    told = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert told["dataset"] == "worlds" and told["num_context_targets"] == 0
    assert told["worlds"]["count"] == told["num_scenes"] == 4
    assert told["worlds"]["inputs"] == "contiguous" and len(told["worlds"]["input_positions"]) == 2
    groups = told["psnr_by_inputs_that_see"]
    assert list(groups) == list(SEEN_BY)
    assert sum(group["share"] for group in groups.values()) == pytest.approx(1)
    text = eval_program.table(summary)
    assert "PSNR by inputs that see a pixel" in text and f"{groups['one']['psnr']:.2f}" in text
    page = html.unescape((tmp_path / "out" / "index.html").read_text())
    assert "held-out worlds, made and not photographed, inputs contiguous" in page
    assert "PSNR by how many inputs see" in page and "split “" not in page
    rows = list(csv.DictReader((tmp_path / "out" / "per_image.csv").open()))
    assert {row["scene"] for row in rows} == {f"world-{i:06d}" for i in range(4)}


def test_a_model_of_worlds_is_scored_on_a_dataset(config, rooms, tmp_path):
    model = lvsm_jax.EfficientLVSMConfig(num_layers=1, width=16, head_dim=8)
    lvsm_jax.save(lvsm_jax.EfficientLVSM(model, rngs=nnx.Rngs(0)), tmp_path / "export")
    config.eval.worlds = 0
    config.data.path = str(rooms)
    summary = evaluate_export(config, tmp_path / "export", tmp_path / "out")
    assert summary["worlds"] is None and summary["dataset"] == str(rooms)
    assert "psnr_by_inputs_that_see" not in summary
    page = (tmp_path / "out" / "index.html").read_text()
    assert "held-out worlds" not in page and "by how many inputs" not in page


def test_a_dataset_that_is_needed_is_named(config, tmp_path):
    config.eval.worlds = 0
    config.run.eval_every = 3
    with pytest.raises(UserError, match=r"data.path is empty: .*--config.eval.worlds=64"):
        train(config, tmp_path)
    config.data.worlds_share = 0.5
    config.run.eval_every = 0
    with pytest.raises(UserError, match=r"data.path is empty: .*--config.data.worlds_share=1"):
        train(config, tmp_path)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("share", [0.5, 1.0])
def test_a_run_on_worlds_resumes_bit_identical(config, rooms, tmp_path, share, capsys):
    config.data.update(worlds_share=share, path=str(rooms) if share < 1 else "")
    config.data.update(min_span=8, max_span=11)
    config.worlds.update(steps_per_world=2, complexity_steps=4)
    config.run.update(eval_every=3, image_every=6, layers_every=6, checkpoint_every=3)
    train(config, tmp_path / "straight")
    assert len(list((tmp_path / "straight" / "images").iterdir())) == 1
    rows = list(csv.DictReader((tmp_path / "straight" / "metrics.csv").open()))
    scores = [float(row["eval/psnr"]) for row in rows if row.get("eval/psnr")]
    assert len(scores) == 2 and np.isfinite(scores).all()

    # What is left of a run that was killed after step 3, in the middle of a block of worlds.
    shutil.copytree(tmp_path / "straight", tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed" / "checkpoints" / "6")
    shutil.rmtree(tmp_path / "resumed" / "export")
    train(config, tmp_path / "resumed")
    assert "resuming from step 3" in capsys.readouterr().out
    ours, expected = (
        named_leaves(lvsm_jax.load(tmp_path / run / "export")) for run in ("resumed", "straight")
    )
    for name, leaf in expected.items():
        np.testing.assert_array_equal(ours[name], leaf, err_msg=name)
