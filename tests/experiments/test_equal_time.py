"""The four models on the same worlds for the same time."""

import dataclasses
import json

import numpy as np
import pytest

from experiments import equal_time
from lvsm_jax.models.gs_lrm import GSLRMConfig
from tests.helpers.plain_worlds import use_plain_worlds


def test_the_table_has_a_row_for_each_model_and_for_copying():
    row = {"parameters": 1_500_000, "steps": 200, "cpu_seconds": 50.0, "psnr": {1: 15.0, 2: 18.5}}
    report = {
        "hardware": "a core",
        "jax": "0",
        "options": vars(equal_time._parser().parse_args([])),
        "models": {"EfficientLVSM": row, "GSLRM": row | {"psnr": {1: 14.0, 2: 19.25}}},
        "copy_nearest": {1: 13.0, 2: 16.0},
    }
    table = " ".join(equal_time.tables(report).split())
    assert "| GS-LRM | 1.50 M | 200 | 250 | 14.00 | 19.25 |" in table
    assert "| copy of the nearest input | – | – | – | 13.00 | 16.00 |" in table


def test_sizes_are_alike_and_nothing_copies():
    options = equal_time._parser().parse_args(["--size=32"])
    configs = {
        name: equal_time.training_config(name, options).model for name in options.architectures
    }
    assert {config.width for config in configs.values()} == {128}
    assert not configs["EfficientLVSM"].copy_head
    assert configs["LVSMEncoderDecoder"].num_latents == 48
    assert configs["GSLRM"].distance_space == "inverse"


@pytest.mark.long
@pytest.mark.slow
def test_models_are_trained_and_scored(monkeypatch, tmp_path, capsys):
    use_plain_worlds(monkeypatch)
    whole = equal_time.training_config

    def small(name, options):
        config = whole(name, options)
        sizes = {"num_layers": 1, "width": 32, "head_dim": 16}
        return dataclasses.replace(config, model=dataclasses.replace(config.model, **sizes))

    monkeypatch.setattr(equal_time, "training_config", small)
    output, worlds = tmp_path / "x.json", tmp_path / "worlds.npz"
    sizes = ["--size=16", "--worlds=20", "--held-out=9", "--batch=2", "--train-inputs=2"]
    given = [*sizes, "--inputs", "1", "2", "--seconds=0.05", f"--keep={worlds}"]
    equal_time.main([*given, "--architectures", "EfficientLVSM", "GSLRM", f"--output={output}"])
    assert "GS-LRM" in capsys.readouterr().out
    report = json.loads(output.read_text())
    for row in report["models"].values():
        assert row["steps"] >= 1 and row["cpu_seconds"] >= 0.05
        assert all(5 < score < 50 for score in row["psnr"].values())
    assert report["copy_nearest"].keys() == {"1", "2"}
    assert isinstance(small("GSLRM", equal_time._parser().parse_args(given)).model, GSLRMConfig)
    with np.load(worlds) as kept:
        assert kept["images"].shape == (20, 12, 16, 16, 3)
