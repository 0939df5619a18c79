"""The model card: views by rule, scores beside the copy, and a card that says what they are of."""

import io
import json
import pathlib

import numpy as np
import pytest
from PIL import Image

import lvsm_jax
from experiments import model_card
from experiments.card_sets import photo_sets
from lvsm_jax.common.config import DataConfig
from lvsm_jax.common.errors import UserError
from lvsm_jax.scenes.placing import place_inputs
from tests.helpers.tiny_export import save_tiny_export

LENGTHS = {"castle": 21, "fountain": 9}  # two windows of ten, and none


def photo(i):
    """One colour, which tells the photograph."""
    file = io.BytesIO()
    Image.new("RGB", (24, 16), (10 * i, 100, 50)).save(file, "JPEG", quality=95)
    return file.getvalue()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Cameras in a row, as the pictures of strecha lie."""
    root = tmp_path_factory.mktemp("data")
    for name, length in LENGTHS.items():
        folder, frames = root / "strecha" / name, []
        folder.mkdir(parents=True)
        for i in range(length):
            (folder / f"{i:02d}.jpg").write_bytes(photo(i))
            c2w = np.eye(4)
            c2w[0, 3] = i
            camera = {"w": 24, "h": 16, "fxfycxcy": [20, 20, 12, 8], "c2w": c2w.tolist()}
            frames.append({"file": f"{i:02d}.jpg", **camera})
        (folder / "cameras.json").write_text(json.dumps({"frames": frames}))
    return root


def test_inputs_are_spread_or_neighbours():
    free = [0, 1, 2, 4, 5, 7, 8, 9]
    assert place_inputs(free, 2, "spread") == [0, 9]
    assert place_inputs(free, 4, "spread") == [0, 2, 7, 9]
    assert place_inputs(free, 2, "contiguous") == [4, 5]
    assert place_inputs(free, 4, "contiguous") == [2, 4, 5, 7]
    assert place_inputs(free, 1, "spread") == place_inputs(free, 1, "contiguous") == [4]
    assert place_inputs(free, 8, "spread") == place_inputs(free, 8, "contiguous") == free
    for count in (0, 9):
        with pytest.raises(UserError, match=f"{count} inputs, but a window has 8 views"):
            place_inputs(free, count, "spread")


def test_photographs_become_windows(data, tmp_path):
    (one,) = photo_sets(data, tmp_path, DataConfig("", image_height=16))
    views = one.open("spread", 2)
    assert views.keys == ["castle-0", "castle-10"]
    (batch,) = views
    np.testing.assert_array_equal(batch.inputs.frame[:2], [[0, 9], [0, 9]])
    np.testing.assert_array_equal(batch.targets.frame[:2], [[3, 6], [3, 6]])
    red = batch.targets.images[:2, :, 8, 8, 0].astype(int)
    np.testing.assert_allclose(red, [[30, 60], [130, 160]], atol=6)
    assert batch.targets.images.shape[2:] == (16, 16, 3)
    with pytest.raises(UserError, match="holds none of re10k_sample, hololens_office and strecha"):
        list(photo_sets(tmp_path, tmp_path, DataConfig("", image_height=16)))


def test_pixels_by_inputs_that_see_them():
    seen = {"none": None, "one": 12.345, "several": 20.0}
    of = {model_card._SEEN: seen}
    row = {"arrangement": "spread", "inputs": 2, "model": of, "copy_nearest": of}
    *_, line = model_card.seen_table([row]).splitlines()
    assert [c.strip() for c in line.strip("|").split("|")][2:] == [
        *"––",
        *["12.35"] * 2,
        *["20.00"] * 2,
    ]


@pytest.mark.slow
def test_card(data, tmp_path, capsys):
    full, small, out = tmp_path / "full", tmp_path / "small", tmp_path / "card"
    save_tiny_export(full)
    about = {"name": "a tiny model", "step": 7, "config": {"run": {"seed": 5}}}
    lvsm_jax.save(lvsm_jax.load(full), small, dtype="int8", about=about)
    (tmp_path / "text.md").write_text("## Data\n\nNoise.\n")
    flags = [
        "--inputs",
        "1",
        "8",
        "--worlds=0",
        "--size=16",
        "--no-lpips",
        "--cpu-devices=8",
        f"--full={full}",
    ]
    model_card.main(
        [str(small), f"--data={data}", f"--text={tmp_path / 'text.md'}", f"--output={out}", *flags]
    )
    card, scores = (out / "README.md").read_text(), json.loads((out / "scores.json").read_text())
    assert card in capsys.readouterr().out
    for told in ("a tiny model", "Apache-2.0", "## Data\n\nNoise.", "seed 5", "as int8", "strecha"):
        assert told in card
    rows = scores["scores"]
    assert [(row["arrangement"], row["inputs"]) for row in rows] == [
        ("spread", 1),
        ("spread", 8),
        ("contiguous", 8),
    ]
    assert all(row["targets"] == 4 and row["model"].keys() == {"psnr", "ssim"} for row in rows)
    assert all(0 < abs(row["full"] - row["model"]["psnr"]) < 0.01 for row in rows)
    one, eight, _ = (row["copy_nearest"]["psnr"] for row in rows)
    assert eight > one + 2  # now the neighbours of both targets are inputs
    assert f"{eight:.2f}" in card and str(pathlib.Path(tmp_path)) not in json.dumps(scores)
