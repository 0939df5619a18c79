"""The panel: one change a row, on the same scenes and targets, against plain evaluations."""

import dataclasses
import functools
import html
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import lvsm_jax
from configs import worlds_64
from input_pipeline.loading import open_eval_set
from lvsm_jax.common.config import DataConfig, EvalConfig
from lvsm_jax.common.errors import UserError
from lvsm_jax.evaluation import panel
from lvsm_jax.evaluation.panel import SCALES
from lvsm_jax.models.architectures import new_model
from lvsm_jax.parallel.mesh import make_mesh
from lvsm_jax.programs import panel_run
from lvsm_jax.programs.evaluation_run import evaluate_export
from lvsm_jax.worlds.config import WorldsConfig
from lvsm_jax.worlds.generate import make_worlds
from lvsm_jax.worlds.held_out import LENSES, open_worlds
from tests.helpers.plain_worlds import use_plain_worlds
from tests.helpers.tiny_dataset import write_rooms

SMALL = {"num_layers": 1, "width": 16, "head_dim": 8}
DATA = DataConfig("", image_height=16)


@pytest.fixture
def config(monkeypatch):
    use_plain_worlds(monkeypatch)
    for module in (panel, panel_run):
        monkeypatch.setattr(module, "INPUTS", (1, 2))
    monkeypatch.setattr(panel_run, "WORLD_VIEWS", 8)
    config = worlds_64.get_config()
    config.data.image_height = 16
    config.eval.update(worlds=4, world_views=7, batch_size=8, lpips=False)
    return config


def save(path, **fields):
    model = new_model(lvsm_jax.EfficientLVSMConfig(**SMALL, **fields), nnx.Rngs(0))
    lvsm_jax.save(model, path)
    return path


@pytest.mark.slow
def test_the_panel_of_two_models_on_worlds(config, tmp_path):
    rays, relative = save(tmp_path / "rays"), save(tmp_path / "relative", camera_encoding="prope")
    out = tmp_path / "panel"
    told = panel_run.evaluate_panel(config, rays, out, beside=relative, command="lvsm eval")
    rows = {row["name"]: row for row in told["rows"]}
    first = told["rows"][0]
    assert json.loads((out / "panel.json").read_text())["rows"][0]["psnr"] == first["psnr"]

    # The first row is the plain evaluation, to the last digit, and two spread inputs are the first.
    config.eval.world_views = 8
    plain = evaluate_export(config, rays, tmp_path / "plain")
    same = ("psnr", "ssim", "psnr_by_inputs_that_see", "baselines", "num_images")
    assert {x: first[x] for x in same} == {x: plain[x] for x in same}
    assert {x: rows["2 inputs, spread"][x] for x in same} == {x: plain[x] for x in same}
    assert told["config"]["eval"]["world_views"] == told["worlds"]["views"] == 8

    # What does not look at cameras shows the same in any frame, and relative cameras in any turn.
    frame = [row for row in told["rows"] if row["change"] == "frame"]
    assert len(frame) == len(SCALES) + 2
    for row in frame:
        assert row["baselines"] == first["baselines"]
        assert row["psnr"] != first["psnr"]
    turned, rolled = (row["beside"]["psnr"] for row in frame[-2:])
    assert turned == pytest.approx(first["beside"]["psnr"], abs=1e-3)
    assert rolled == pytest.approx(first["beside"]["psnr"], abs=1e-3)

    wide, long = (row["psnr_by_inputs_that_see"] for row in told["rows"] if row["change"] == "lens")
    assert wide["none"]["share"] > long["none"]["share"]
    names = [row["name"] for row in told["rows"] if row["change"] == "inputs"]
    ways = [f"2 inputs, {way}" for way in ("spread", "contiguous")]
    assert names == ["1 input, the middle one", *ways]

    text, page = panel_run.table(told), html.unescape((out / "index.html").read_text())
    for name in rows:
        assert name in text and name in page
    line = next(line for line in text.splitlines() if line.startswith("world × 2"))
    gained = rows["world × 2"]["psnr"] - first["psnr"]
    assert f"{gained:+.2f}" in line and f"{rows['world × 2']['ssim']:.3f}" in line
    assert str(relative) in text and str(relative) in page
    assert page.count("<img ") == 3 * (2 + len(rows) * 4)
    with pytest.raises(FileExistsError, match="panel holds an evaluation; --overwrite replaces it"):
        panel_run.evaluate_panel(config, rays, out)
    config.mesh.view = 2
    with pytest.raises(UserError, match="1 input views"):
        panel_run.evaluate_panel(config, rays, tmp_path / "spread")


def test_rows_of_worlds_change_one_thing(config):
    evaluation = EvalConfig(worlds=4, world_views=8, batch_size=8)
    with jax.set_mesh(make_mesh()):
        rows = panel_run.panel_rows(open_worlds(DATA, WorldsConfig(), evaluation))
        (plain,), *others = (list(row.views) for row in rows)
    by_name = {row.name: batch for row, (batch,) in zip(rows[1:], others, strict=True)}
    for name, batch in by_name.items():
        if "input" not in name:
            np.testing.assert_array_equal(batch.inputs.images, plain.inputs.images)
        if "focal" not in name:
            np.testing.assert_array_equal(batch.targets.images, plain.targets.images)
            np.testing.assert_array_equal(batch.targets.frame, plain.targets.frame)
    doubled = by_name["world × 2"].targets.cameras.c2w
    np.testing.assert_array_equal(doubled[..., :3, 3], 2 * plain.targets.cameras.c2w[..., :3, 3])
    turned = by_name["world turned 90°"].inputs.cameras.c2w
    axes = plain.inputs.cameras.c2w[..., :3, 2]
    np.testing.assert_allclose(
        turned[..., :3, 2], axes[..., [2, 1, 0]] * np.array([1, 1, -1]), atol=1e-6
    )
    for lens in LENSES:
        zoomed = by_name[f"targets' focal length × {lens:g}"].targets
        focal = zoomed.cameras.fxfycxcy / plain.targets.cameras.fxfycxcy
        np.testing.assert_allclose(focal, np.broadcast_to([lens, lens, 1, 1], focal.shape))
        np.testing.assert_array_equal(zoomed.cameras.c2w, plain.targets.cameras.c2w)
        assert (zoomed.images != plain.targets.images).any()


def test_rows_of_clips_and_what_photographs_cannot_show(tmp_path, monkeypatch):
    monkeypatch.setattr(panel_run, "INPUTS", (1, 2, 4, 16))
    write_rooms(tmp_path)
    data = dataclasses.replace(DATA, path=str(tmp_path))
    rows = panel_run.panel_rows(open_eval_set(data, EvalConfig(batch_size=4)))
    views = {row.name: row.views for row in rows}
    assert views["2 inputs, spread"] is views["unchanged"]
    assert views["targets' focal length × 0.7"] == "photographs show nothing beyond their edges"
    reason = "scene room-test-000000: 16 inputs, but a window has 8 views beside its targets"
    assert views["16 inputs, spread"] == reason
    (plain,), (four,) = views["unchanged"], views["4 inputs, contiguous"]
    np.testing.assert_array_equal(four.inputs.frame, [[3, 4, 8, 9]] * 4)
    np.testing.assert_array_equal(four.targets.images, plain.targets.images)
    (long,) = views["targets' focal length × 1.4"]
    np.testing.assert_array_equal(long.inputs.images, plain.inputs.images)
    focal = long.targets.cameras.fxfycxcy[..., 0] / plain.targets.cameras.fxfycxcy[..., 0]
    np.testing.assert_allclose(focal, 1.4, rtol=0.1)  # windows are of whole pixels

    found = panel.evaluate_panel(
        lambda images, _, cameras: jnp.zeros((len(images), cameras.shape[1], *images.shape[2:])),
        rows,
        metrics={"psnr": lambda target, shown: -jnp.square(target - shown).mean((1, 2, 3))},
        put=jax.device_put,
        progress=False,
    )
    told = panel.summarize(rows, found)
    left_out = [row["name"] for row in told if row["left_out"]]
    assert left_out == [
        "targets' focal length × 0.7",
        "16 inputs, spread",
        "16 inputs, contiguous",
    ]
    assert [row["name"] for row in told if "psnr" in row] == [
        row.name for row in rows if row.name not in left_out
    ]


@pytest.mark.long
@pytest.mark.slow
def test_further_pictures_leave_the_path_as_it_is():
    """Bit by bit, and a factor of 1 shows what the path shows there."""
    config = WorldsConfig(boxes=12, ellipsoids=4, cylinders=4, bulbs=1, samples=1, path_tries=2)
    make = functools.partial(make_worlds, config=config, views=3, height=16, width=16)
    keys = jax.random.split(jax.random.key(0), 8)
    plain = jax.jit(make)(keys)
    more = jax.jit(functools.partial(make, zooms=((1, 1.0), (2, 1.5))))(keys)
    path = jax.tree.map(lambda x: x[:, :3], more)
    jax.tree.map(np.testing.assert_array_equal, path, plain)
    np.testing.assert_array_equal(more.images[:, 3], plain.images[:, 1])
    focal = more.cameras.fxfycxcy[:, 4] / plain.cameras.fxfycxcy[:, 2]
    np.testing.assert_allclose(focal, [[1.5, 1.5, 1, 1]] * 8)
    nearer = more.depth[:, 4, 4:12, 4:12].min((1, 2)) / plain.depth[:, 2].min((1, 2))
    assert (nearer > 0.99).all()
