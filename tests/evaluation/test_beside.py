"""Two exports side by side: scores, files, page, and what the two must share."""

import csv
import html
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import lvsm_jax
from configs import worlds_64
from lvsm_jax.common.errors import UserError
from lvsm_jax.evaluation.scoring import COPY_NEAREST, MEAN_COLOR
from lvsm_jax.models.architectures import new_model
from lvsm_jax.programs import eval as eval_program
from lvsm_jax.programs.evaluation_run import evaluate_export
from lvsm_jax.weights.shipped import SHIPPED
from tests.helpers.plain_worlds import use_plain_worlds
from tests.helpers.tiny_dataset import write_six_clips

SMALL = {"num_layers": 1, "width": 16, "head_dim": 8}


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    """Exports of several architectures and patches, and of a broken model."""
    folder = tmp_path_factory.mktemp("exports")
    data = {"path": "", "worlds_share": 1.0, "image_height": 16, "input_counts": (1, 2)}
    about = {"step": 1200, "config": {"data": data}}
    model = new_model(lvsm_jax.EfficientLVSMConfig(**SMALL), nnx.Rngs(0))
    lvsm_jax.save(model, folder / "trained", about=about)
    lvsm_jax.save(jax.tree.map(lambda x: x * jnp.nan, model), folder / "broken")
    other = new_model(lvsm_jax.LVSMDecoderOnlyConfig(patch_size=4, **SMALL), nnx.Rngs(1))
    lvsm_jax.save(other, folder / "other", about={"name": "plain and small"})
    for name, patch in {"odd": 12, "coarse": 16}.items():
        coarser = new_model(lvsm_jax.EfficientLVSMConfig(patch_size=patch, **SMALL), nnx.Rngs(2))
        lvsm_jax.save(coarser, folder / name)
    return folder


@pytest.fixture
def config(monkeypatch):
    use_plain_worlds(monkeypatch)
    config = worlds_64.get_config()
    config.data.image_height = 16
    config.eval.update(worlds=4, world_views=8, batch_size=8, lpips=False)
    return config


def test_an_export_beside_itself_equals_itself(config, exports, tmp_path):
    summary = evaluate_export(
        config, exports / "trained", tmp_path, beside=exports / "trained", command="lvsm eval"
    )
    same = ("psnr", "ssim", "without_context_targets", "psnr_by_inputs_that_see", "weights", "step")
    assert {x: summary["beside"][x] for x in same} == {x: summary[x] for x in same}


def test_files_and_page_say_what_is_what(config, exports, tmp_path):
    alone = evaluate_export(config, exports / "other", tmp_path / "alone")
    assert alone["beside"] is None
    summary = evaluate_export(
        config, exports / "trained", tmp_path / "both", beside=exports / "other"
    )
    told = json.loads((tmp_path / "both" / "summary.json").read_text())
    beside = told["beside"]
    scores = ("psnr", "ssim", "psnr_by_inputs_that_see")
    assert {x: beside[x] for x in scores} == {x: alone[x] for x in scores}
    assert set(told["baselines"]) == {COPY_NEAREST, MEAN_COLOR}
    assert (told["architecture"], beside["architecture"]) == ("EfficientLVSM", "LVSMDecoderOnly")
    assert beside["weights"].startswith("plain and small (LVSMDecoderOnly, 0.0 M parameters")
    assert told["weights"].startswith(f"{exports / 'trained'} (EfficientLVSM, ")
    assert "trained on worlds at 16 px with 1 to 2 inputs for 1,200 steps" in told["weights"]

    rows = list(csv.DictReader((tmp_path / "both" / "per_image.csv").open()))
    single = list(csv.DictReader((tmp_path / "alone" / "per_image.csv").open()))
    assert [row["beside_psnr"] for row in rows] == [row["psnr"] for row in single]
    assert np.mean([float(row["psnr"]) for row in rows]) == pytest.approx(told["psnr"], abs=1e-5)

    text = eval_program.table(summary)
    assert f"{beside['label']}: {beside['weights']}" in text and beside["label"].endswith("other")
    table = [line for line in text.splitlines() if line.startswith(beside["label"] + "  ")]
    assert len(table) == 2 and f"{beside['psnr']:.2f}" in table[0]
    assert beside["label"] not in eval_program.table(alone)

    pages = [(tmp_path / name / "index.html").read_text() for name in ("alone", "both")]
    cards = 3  # best, median and worst, of 3 targets each, from 2 inputs
    assert [page.count("<img ") for page in pages] == [cards * (2 + 3 * 4), cards * (2 + 3 * 5)]
    assert told["weights"] in html.unescape(pages[1]) and beside["weights"] in pages[1]
    assert "Two models" in pages[1] and "Two models" not in pages[0]


def test_the_weights_of_the_package_stand_beside_a_model(config, exports, tmp_path, capsys):
    config.run.cpu_devices = 8  # as there are
    config_file, fields = tmp_path / "config.py", config.to_json()
    config_file.write_text(
        "import json, ml_collections\n\n\ndef get_config():\n"
        f"    return ml_collections.ConfigDict(json.loads({fields!r}))\n"
    )
    command = [f"--config={config_file}", f"--checkpoint={exports / 'trained'}", "--beside"]
    eval_program.main([*command, f"--output={tmp_path / 'out'}"])
    told = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert told["beside"]["checkpoint"] == str(SHIPPED)
    out = capsys.readouterr().out
    assert f"\nshipped weights: {told['beside']['weights']}\n" in out
    assert "shipped weights" in (tmp_path / "out" / "index.html").read_text()


def test_refuses_what_cannot_be_shown_the_same(config, exports, tmp_path):
    def beside(name, error, message):
        with pytest.raises(error, match=message):
            evaluate_export(config, exports / "trained", tmp_path / "out", beside=exports / name)
        assert not (tmp_path / "out").exists()

    beside("none", FileNotFoundError, r"none is no export: .*config\.json is missing")
    beside("odd", UserError, "odd: data.image_height 16 is not a multiple of patch_size 12")
    beside("broken", UserError, "12 of 12 renders of the model beside are not finite")
    config.mesh.view = 2
    beside("other", UserError, "other: mesh.view is 2, but in LVSMDecoderOnly the tokens of all")


def test_refuses_wide_pictures_that_do_not_suit_both(config, exports, tmp_path):
    """48 × 32 pixels are 24 wide at height 16: three patches of 8, but no number of 16."""
    write_six_clips(tmp_path / "clips")
    index = {f"clip{clip}": {"context": [0, 9], "target": [3, 5, 7]} for clip in (0, 3)}
    (tmp_path / "index.json").write_text(json.dumps(index))
    config.data.update(path=str(tmp_path / "clips"), square_crop=False)
    config.eval.update(worlds=0, split="train", index=str(tmp_path / "index.json"))
    with pytest.raises(
        UserError, match="24 pixels wide at height 16: not a multiple of patch_size 16"
    ):
        evaluate_export(config, exports / "trained", tmp_path / "out", beside=exports / "coarse")
    assert not (tmp_path / "out").exists()
