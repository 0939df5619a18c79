"""Evaluation: the baselines, what counts how, the page, and `eval.py` as a program."""

import csv
import dataclasses
import functools
import html.parser
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import lvsm_jax
from lvsm_jax.batch import Batch, Views, shard_batch
from lvsm_jax.common.errors import MissingWeightsError, UserError
from lvsm_jax.evaluation import report, scoring
from lvsm_jax.evaluation.scoring import (
    BESIDE,
    COPY_NEAREST,
    EXACT_PSNR,
    MEAN_COLOR,
    METRICS,
    MODEL,
    evaluate,
)
from lvsm_jax.frozen.lpips import load_lpips
from lvsm_jax.models.architectures import new_model
from lvsm_jax.models.cameras import Cameras
from lvsm_jax.parallel.mesh import MeshConfig, make_mesh
from lvsm_jax.programs.evaluation_run import evaluate_export

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]


@dataclasses.dataclass(frozen=True)
class Table:
    key: np.ndarray


@dataclasses.dataclass(frozen=True)
class Scenes:
    """Scenes in memory, given in batches like those of `eval_batches`."""

    all: Batch
    batch_size: int

    @property
    def scenes(self) -> Table:
        return Table(np.array([f"scene {row}" for row in range(self.num_scenes)]))

    @property
    def rows(self) -> np.ndarray:
        return self.all.scene

    @property
    def num_scenes(self) -> int:
        return len(self.all.scene)

    def __iter__(self) -> Iterator[Batch]:
        for start in range(0, self.num_scenes, self.batch_size):
            rows = np.arange(start, start + self.batch_size)
            valid = rows < self.num_scenes
            last = np.minimum(rows, self.num_scenes - 1)
            batch = jax.tree.map(lambda x, last=last: x[last], self.all)
            yield dataclasses.replace(batch, valid=valid)


def random_scenes(count: int, *, size: int = 16, num_inputs: int = 2, seed: int = 0) -> Batch:
    """Scenes of noise; the first target of scenes 0, 3, 6, … is their last input view."""
    rng = np.random.default_rng(seed)

    def views(number: int, first_frame: int) -> Views:
        c2w = np.tile(np.eye(4, dtype=np.float32), (count, number, 1, 1))
        c2w[..., :3, :3] = np.linalg.qr(rng.normal(size=(count, number, 3, 3)))[0]
        c2w[..., :3, 3] = rng.normal(size=(count, number, 3))
        return Views(
            images=rng.integers(0, 256, (count, number, size, size + 4, 3), np.uint8),
            cameras=Cameras(c2w, np.ones((count, number, 4), np.float32)),
            frame=np.tile(first_frame + np.arange(number, dtype=np.int32), (count, 1)),
        )

    inputs, targets = views(num_inputs, 0), views(3, 100)
    for old, new in zip(jax.tree.leaves(targets), jax.tree.leaves(inputs), strict=True):
        old[::3, 0] = new[::3, -1]
    rows = np.arange(count, dtype=np.int32)
    return Batch(inputs, targets, rows, np.ones(count, bool), np.zeros(count, np.int32))


def first_input(images, input_cameras, target_cameras):
    return jnp.repeat(images[:, :1], target_cameras.c2w.shape[1], axis=1)


def nearest_input(images, input_cameras, target_cameras):
    """The baseline, written as a model."""
    offsets = input_cameras.c2w[:, None, :, :3, 3] - target_cameras.c2w[:, :, None, :3, 3]
    index = jnp.square(offsets).sum(-1).argmin(-1)
    return jnp.take_along_axis(images, index[..., None, None, None], axis=1)


@pytest.fixture(scope="module")
def metrics():
    try:
        return {**METRICS, "lpips": load_lpips()}
    except MissingWeightsError:
        return METRICS


def assert_same_scores(a, b, **tolerance):
    assert (a.scenes, a.scores.keys()) == (b.scenes, b.scores.keys())
    np.testing.assert_array_equal(a.is_context, b.is_context)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a.scores, b.scores)


def test_copying_as_a_model_scores_as_the_baseline(metrics):
    result = evaluate(nearest_input, Scenes(random_scenes(5), 2), metrics=metrics, progress=False)
    assert list(result.scores[MODEL]) == list(metrics)
    for metric, scores in result.scores[MODEL].items():
        np.testing.assert_array_equal(scores, result.scores[COPY_NEAREST][metric])
        assert len(np.unique(scores)) > 10


def test_a_model_beside_scores_as_it_would_alone():
    scenes = Scenes(random_scenes(5), 2)
    result = evaluate(first_input, scenes, beside=nearest_input, progress=False)
    assert list(result.scores) == [MODEL, BESIDE, COPY_NEAREST, MEAN_COLOR]
    alone = {MODEL: first_input, BESIDE: nearest_input}
    alone = {k: evaluate(x, scenes, progress=False).scores[MODEL] for k, x in alone.items()}
    for method, scores in alone.items():
        jax.tree.map(np.testing.assert_array_equal, result.scores[method], scores)
    assert not np.array_equal(result.scores[MODEL]["psnr"], result.scores[BESIDE]["psnr"])
    summary = result.summary()
    assert summary["beside"] == summary["baselines"][COPY_NEAREST]
    assert BESIDE not in summary["baselines"]
    pictures = scoring.render_scenes(first_input, scenes, beside=nearest_input)["scene 1"]
    np.testing.assert_allclose(pictures.beside, pictures.nearest / 255, rtol=1e-6)


def test_scores_are_the_metrics_of_each_image():
    batch = random_scenes(4)
    result = evaluate(first_input, Scenes(batch, 4), progress=False)
    targets, first = (
        x.astype(np.float32) / 255 for x in (batch.targets.images, batch.inputs.images)
    )
    mean = first.mean(axis=(1, 2, 3), keepdims=True) * np.ones_like(targets)
    for t in range(3):
        for name, metric in METRICS.items():
            for method, image in ((MODEL, first[:, 0]), (MEAN_COLOR, mean[:, t])):
                expected = metric(targets[:, t], image)
                actual = result.scores[method][name][:, t]
                np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=2e-6)


def test_every_image_counts_once_however_batches_are_filled():
    scenes = random_scenes(7)
    whole = evaluate(first_input, Scenes(scenes, 7), progress=False)
    padded = evaluate(first_input, Scenes(scenes, 4), progress=False)
    assert whole.scenes == tuple(f"scene {i}" for i in range(7))
    assert_same_scores(whole, padded, rtol=1e-6)


def test_devices_share_a_batch():
    scenes = Scenes(random_scenes(11), 8)
    mesh = make_mesh(MeshConfig(data=4, fsdp=2))
    with jax.set_mesh(mesh):
        put = functools.partial(shard_batch, mesh)
        shared = evaluate(first_input, scenes, put=put, progress=False)
    assert_same_scores(evaluate(first_input, scenes, progress=False), shared, rtol=1e-5, atol=1e-6)


def test_devices_share_the_views_alone():
    batch = random_scenes(2)
    four = jax.tree.map(lambda x: np.concatenate([x, x[:, :1]], axis=1), batch.targets)
    scenes = Scenes(dataclasses.replace(batch, targets=four), 2)

    def gray(images, input_cameras, target_cameras):
        return jnp.full((*target_cameras.c2w.shape[:2], *images.shape[2:]), 0.5)

    mesh = make_mesh(MeshConfig(view=2), jax.devices()[:2])
    with jax.set_mesh(mesh):
        put = functools.partial(shard_batch, mesh)
        shared = evaluate(gray, scenes, put=put, progress=False)
    assert_same_scores(evaluate(gray, scenes, progress=False), shared, rtol=1e-5, atol=1e-6)


def test_means_are_over_targets_then_scenes_with_and_without_context():
    batch = random_scenes(4)
    result = evaluate(first_input, Scenes(batch, 4), progress=False)
    np.testing.assert_array_equal(result.is_context[:, 0], [True, False, False, True])
    assert not result.is_context[:, 1:].any()
    psnr = result.scores[MODEL]["psnr"].astype(np.float64)
    assert result.mean("psnr") == pytest.approx(psnr.mean(axis=1).mean())
    others = [psnr[0, 1:].mean(), psnr[1].mean(), psnr[2].mean(), psnr[3, 1:].mean()]
    assert result.mean("psnr", context=False) == pytest.approx(np.mean(others))
    summary = result.summary()
    assert summary["psnr"] == result.mean("psnr")
    assert summary["without_context_targets"]["psnr"] == result.mean("psnr", context=False)
    assert (summary["num_scenes"], summary["num_images"]) == (4, 12)
    assert summary["num_context_targets"] == 2


def test_targets_that_only_fill_up_count_nowhere():
    """Scenes of 1, 3 and 2 targets, filled up to 3: the scores of each as if it were alone."""
    batch, counts = random_scenes(3), [1, 3, 2]
    seen = np.random.default_rng(1).integers(-1, 4, batch.targets.images.shape[:-1], np.int8)
    batch = dataclasses.replace(batch, seen=seen)
    targets = jax.tree.map(np.copy, batch.targets)
    for s, count in enumerate(counts):
        targets.frame[s, count:] = -1
        targets.images[s, count:] = targets.images[s, 0]  # an exact copy of it must not be counted
        targets.cameras.fxfycxcy[s, count:] = np.nan
    filled = dataclasses.replace(batch, targets=targets)

    def spoilt_where_the_camera_is(images, input_cameras, target_cameras):
        here = first_input(images, input_cameras, target_cameras)
        return here + 0 * target_cameras.fxfycxcy[..., :1, None, None]

    result = evaluate(spoilt_where_the_camera_is, Scenes(filled, 2), progress=False)
    result.check_finite()
    alone = evaluate(first_input, Scenes(batch, 3), progress=False)
    for method in (COPY_NEAREST, MODEL):
        for metric in METRICS:
            kept = [alone._counted(metric, method)[s, :n] for s, n in enumerate(counts)]
            expected = [scores.mean() for scores in kept]
            np.testing.assert_allclose(result.scene_means(metric, method), expected, rtol=1e-6)
            assert result.mean(metric, method) == pytest.approx(np.mean(expected))
            context = [
                scores[s == 0 :].mean() for s, scores in enumerate(kept) if s or len(scores) > 1
            ]
            assert result.mean(metric, method, context=False) == pytest.approx(np.mean(context))
    counted = np.arange(3) < np.array(counts)[:, None]
    pixels = alone.seen.pixels[counted].sum(0)
    for method, found in {MODEL: result.summary(), **result.summary()["baselines"]}.items():
        groups = found["psnr_by_inputs_that_see"].values()
        np.testing.assert_allclose([g["share"] for g in groups], pixels / pixels.sum())
        psnr = -10 * np.log10(alone.seen.errors[method][counted].sum(0) / pixels)
        np.testing.assert_allclose([g["psnr"] for g in groups], psnr, rtol=1e-6)
    assert (result.summary()["num_images"], result.summary()["num_context_targets"]) == (6, 1)
    rows = [(row["scene"], row["target_frame"]) for row in result.rows()]
    assert rows == [
        (f"scene {s}", 100 + t if (s, t) != (0, 0) else 1)
        for s, n in enumerate(counts)
        for t in range(n)
    ]
    pictures = scoring.render_scenes(first_input, Scenes(filled, 3))
    cards = [report._card(result, s, pictures[f"scene {s}"]) for s in range(3)]
    assert [card["num_targets"] for card in cards] == [len(c["targets"]) for c in cards] == counts


def test_an_exact_copy_counts_as_rounding_to_8_bits():
    result = evaluate(first_input, Scenes(random_scenes(1), 1), progress=False)
    copied = result.scores[COPY_NEAREST]["psnr"]
    assert np.isinf(copied[0]).tolist() == [True, False, False]
    expected = (EXACT_PSNR + copied[0, 1:].sum()) / 3
    assert result.mean("psnr", COPY_NEAREST) == pytest.approx(expected)
    values = np.random.default_rng(0).uniform(size=100_000)
    rounding = np.mean((values - np.round(values * 255) / 255) ** 2)
    assert pytest.approx(-10 * np.log10(rounding), abs=0.1) == EXACT_PSNR


def test_without_context_targets_nothing_may_be_left():
    result = evaluate(first_input, Scenes(random_scenes(1), 1), baselines=False, progress=False)
    assert result.scores.keys() == {MODEL}
    only_context = dataclasses.replace(result, is_context=np.ones_like(result.is_context))
    assert only_context.mean("psnr", context=False) is None


def test_ties_of_distance_go_to_the_least_turned_input():
    def turned(angle: float, x: float) -> np.ndarray:
        c, s = np.cos(angle), np.sin(angle)
        return np.array([[c, 0, s, x], [0, 1, 0, 0], [-s, 0, c, 0], [0, 0, 0, 1]], np.float32)

    inputs = np.stack([turned(0.5, 0.1), turned(-0.2, 0.1 + 1e-7), turned(0, 3)])[None]
    targets = np.stack([turned(0, 0), turned(0.6, 0), turned(0, 2.9), turned(0.5, 0.1)])[None]
    np.testing.assert_array_equal(scoring.nearest_input(inputs, targets), [[1, 0, 2, 0]])


def test_refuses_an_empty_set():
    with pytest.raises(ValueError, match="no batches"):
        evaluate(first_input, Scenes(random_scenes(0), 2), progress=False)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 9, 30])
def test_shown_scenes_are_the_best_median_and_worst(count):
    psnr = np.random.default_rng(count).permutation(count)[:, None].astype(np.float32)
    result = scoring.Evaluation(
        scenes=tuple(map(str, range(count))),
        frames=np.zeros((count, 1), int),
        is_context=np.zeros((count, 1), bool),
        scores={MODEL: {"psnr": psnr}},
    )
    shown = report.choose_scenes(result)
    ranks = {name: [int(psnr[s, 0]) for s in scenes] for name, scenes in shown.items()}
    everything = sum(ranks.values(), [])  # noqa: RUF017
    number = min(3, max(1, count // 3))
    assert len(everything) == len(set(everything)) == min(count, 3 * number)
    assert ranks["best"] == list(range(count - 1, count - 1 - number, -1))
    if count > number:
        assert ranks["worst"] == list(range(min(number, count - number)))
    if count == 30:
        assert ranks["median"] == [15, 14, 13]


class Page(html.parser.HTMLParser):
    """Collects the tags of a page and what they refer to."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.references = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.references += [value for name, value in attributes if name in ("src", "href")]


def test_page_is_self_contained_and_escapes_what_it_shows():
    scenes = Scenes(random_scenes(3), 2)
    result = evaluate(first_input, scenes, progress=False)
    pictures = scoring.render_scenes(first_input, scenes)
    name = "<script>alert(1)</script>"
    result = dataclasses.replace(result, scenes=(name, *result.scenes[1:]))
    pictures[name] = pictures.pop("scene 0")
    summary = {
        **result.summary(),
        "lpips_skipped": "eval.lpips is False",
        "checkpoint": name,
        "step": None,
        "architecture": "None",
        "dataset": "rooms",
        "worlds": None,
        "split": "test",
        "index": "index.json",
        "num_skipped_null": 720,
        "num_missing": 0,
        "camera_normalization": "all_views",
        "command": "python eval.py",
        "config": {"data": {"path": name}},
    }
    text = report.render_page(result, summary, pictures, report.choose_scenes(result))
    page = Page(text)
    assert page.tags.count("script") == 1  # the page's own
    assert page.tags.count("section") == 3
    assert page.tags.count("img") == 3 * (2 + 3 * 4)
    assert all(reference.startswith("data:image/png;base64,") for reference in page.references)
    assert "∞" in text
    assert "http" not in text


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    config = lvsm_jax.EfficientLVSMConfig(num_layers=1, width=16, head_dim=8)
    path = tmp_path_factory.mktemp("model") / "export"
    lvsm_jax.save(lvsm_jax.EfficientLVSM(config, rngs=nnx.Rngs(0)), path, about={"step": 7})
    return path


@pytest.fixture
def config(monkeypatch, rooms):
    monkeypatch.syspath_prepend(REPOSITORY)
    from configs import quickstart

    config = quickstart.get_config()
    config.data.update(path=str(rooms), image_height=32)
    config.eval.update(batch_size=8, lpips=False)
    return config


def test_program_writes_summary_table_and_page(rooms, export, tmp_path):
    output = tmp_path / "evaluation"
    command = [
        sys.executable,
        "eval.py",
        "--config=configs/quickstart.py",
        f"--checkpoint={export}",
        f"--output={output}",
        f"--config.data.path={rooms}",
        "--config.data.image_height=32",
        "--config.eval.batch_size=3",
        "--config.eval.num_inputs=4",
        "--config.eval.lpips=False",
    ]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert str(output / "index.html") in done.stdout
    assert "evaluating: 100%" in done.stderr
    assert sorted(os.listdir(output)) == ["index.html", "per_image.csv", "summary.json"]

    summary = json.loads((output / "summary.json").read_text())
    assert (summary["num_scenes"], summary["num_images"], summary["step"]) == (4, 12, 7)
    assert summary["lpips"] is None
    assert summary["lpips_skipped"] == "eval.lpips is False"
    assert summary["num_inputs"] == summary["config"]["eval"]["num_inputs"] == 4
    assert f"{summary['psnr']:.2f}" in done.stdout

    rows = list(csv.DictReader((output / "per_image.csv").open()))
    assert len(rows) == 12
    for column, mean in (
        ("psnr", summary["psnr"]),
        ("ssim", summary["ssim"]),
        ("mean_color_psnr", summary["baselines"]["mean_color"]["psnr"]),
    ):
        assert np.mean([float(row[column]) for row in rows]) == pytest.approx(mean, abs=1e-5)
    context = [row["is_context"] == "True" for row in rows]
    assert sum(context) == summary["num_context_targets"]
    assert Page((output / "index.html").read_text()).tags.count("section") == 3


@pytest.mark.parametrize(
    "model_config",
    [
        lvsm_jax.LVSMDecoderOnlyConfig(num_layers=1, width=16, head_dim=8),
        lvsm_jax.LVSMEncoderDecoderConfig(num_layers=1, width=16, head_dim=8, num_latents=4),
    ],
    ids=["decoder_only", "encoder_decoder"],
)
def test_program_takes_the_baselines(config, tmp_path, model_config):
    lvsm_jax.save(new_model(model_config, nnx.Rngs(0)), tmp_path / "export")
    summary = evaluate_export(config, tmp_path / "export", tmp_path / "output")
    assert summary["architecture"].startswith("LVSM")
    assert summary["num_images"] == 12
    assert 3 < summary["psnr"] < 30


def test_program_needs_a_free_place(config, export, tmp_path):
    (tmp_path / "summary.json").write_text("{}")
    with pytest.raises(FileExistsError, match="--overwrite"):
        evaluate_export(config, export, tmp_path)
    with pytest.raises(UserError, match=r"--output=.*summary\.json/x cannot be written: Not a dir"):
        evaluate_export(config, export, tmp_path / "summary.json" / "x")
    summary = evaluate_export(config, export, tmp_path, overwrite=True)
    assert json.loads((tmp_path / "summary.json").read_text())["psnr"] == summary["psnr"]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("data.path", "/none", "/none"),
        ("data.image_height", 36, "image_height 36 is not a multiple of patch_size 8"),
        ("eval.index", "/none.json", "/none.json"),
        (
            "eval.batch_size",
            3,
            "section eval: 3 scenes do not divide over mesh.data × mesh.fsdp = 8",
        ),
        ("eval.lpips_weights", "/none.ckpt", "no LPIPS weights at /none.ckpt"),
        ("eval.camera_normalization", "some", "camera_normalization is 'some'"),
        ("eval.crop_share", 0.0, "eval.crop_share is 0.0, expected above 0, at most 1"),
        ("eval.crop_share", 1.5, "eval.crop_share is 1.5, expected above 0, at most 1"),
        ("eval.crop_place", (0.5,), r"eval.crop_place is \(0.5,\), expected two of 0 to 1"),
        ("eval.crop_place", (0, 2), r"eval.crop_place is \(0.0, 2.0\), expected two of 0 to 1"),
    ],
)
def test_program_says_what_is_wrong_before_it_starts(
    config, export, tmp_path, field, value, message
):
    section, name = field.split(".")
    config.eval.lpips = name == "lpips_weights"
    config[section][name] = value
    with pytest.raises((ValueError, OSError), match=message):
        evaluate_export(config, export, tmp_path / "output")
    assert not (tmp_path / "output").exists()


def test_program_needs_an_export(config, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none is no export: .*config\.json is missing"):
        evaluate_export(config, tmp_path / "none", tmp_path / "output")


def test_program_names_a_render_that_is_not_finite(config, tmp_path):
    model_config = lvsm_jax.EfficientLVSMConfig(num_layers=1, width=16, head_dim=8)
    model = lvsm_jax.EfficientLVSM(model_config, rngs=nnx.Rngs(0))
    broken = jax.tree.map(lambda x: x * jnp.nan, model)
    lvsm_jax.save(broken, tmp_path / "broken")
    with pytest.raises(UserError, match=r"12 of 12 renders .* of scene room-test-000000"):
        evaluate_export(config, tmp_path / "broken", tmp_path / "output")
    assert not (tmp_path / "output").exists()
