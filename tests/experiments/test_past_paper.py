"""What goes past the paper: equal FLOPs, two sets of worlds, means over seeds."""

import json
import re

import pytest

from experiments import past_paper
from experiments.configs import beyond_arms, law
from experiments.configs.arms import step_flops
from tests.helpers.plain_worlds import use_plain_worlds


@pytest.mark.parametrize("arm", sorted(beyond_arms.ARMS.keys() - {"published_longer"}))
def test_arms_take_the_flops_of_the_published_recipe(arm):
    published, config = map(beyond_arms.get_config, ("published", arm))
    flops = [c.run.num_steps * step_flops(c) for c in (published, config)]
    assert flops[1] == pytest.approx(flops[0], rel=5 / config.run.num_steps)


@pytest.mark.parametrize("size", ["64x0.5", "192x2"])
def test_sizes_of_the_law_take_the_flops_they_say(size):
    base, config = beyond_arms.get_config("copies"), law.get_config(size)
    width, share = size.split("x")
    flops = config.run.num_steps * step_flops(config)
    wanted = float(share) * base.run.num_steps * step_flops(base)
    assert config.model.width == int(width)
    assert flops == pytest.approx(wanted, rel=5 / config.run.num_steps)
    assert law.get_config("128x1") == base


def means(psnr: float, seen: float) -> dict:
    groups = dict.fromkeys(("none", "one", "several"), seen)
    return {"psnr": psnr, "ssim": 0.5, "lpips": psnr / 100, "seen": groups}


def scores(psnr: float) -> dict:
    names = ["1 input", *(f"{count} inputs" for count in (2, 4, 8, 16))]
    found = {name: {**means(psnr, 18.0), past_paper.COPY: means(17.0, 16.0)} for name in names}
    frame = {**means(psnr - 0.25, 18.0), past_paper.COPY: means(17.0, 16.0)}
    return found | {"world × 2": frame}


def test_tables_have_means_over_seeds_and_their_spread():
    seeds = {f"seed_{i}": {"choice": scores(20.0 + i)} for i in (0, 1)}
    arm = {"parameters": 1_520_000, "steps": 100, "training_flops": 3e12, "seeds": seeds}
    report = {
        "hardware": "a core",
        "timing": {"source": "as logged", "step_seconds": {"copies": 0.5}},
        "sets": {"choice": [0, 47]},
        "arms": {"copies": arm},
    }
    table = re.sub(" +", " ", past_paper.tables(report))
    assert "| copies | 1.52 M | 100 | 3.0 | 50 |" in table
    assert "Choice: worlds 0 to 47" in table
    assert "| copies |" + 5 * " 20.50 (1.00) |" + 2 * " 0.205 (0.010) |" in table
    assert "| copy of the nearest input |" + 5 * " 17.00 |" + 2 * " 0.170 |" in table
    assert "| copies | 18.00 (0.00) | 18.00 (0.00) | 18.00 (0.00) | -0.25 (0.00) |" in table


@pytest.mark.long
@pytest.mark.slow
def test_arms_are_trained_and_scored_on_two_sets(monkeypatch, tmp_path, capsys):
    use_plain_worlds(monkeypatch)
    tiny = [
        *("--config.model.width=32", "--config.model.num_layers=1", "--config.run.num_steps=2"),
        *("--config.run.batch_size=2", "--config.eval.batch_size=2"),
        *("--config.worlds.boxes=12", "--config.worlds.path_weights=(1.0, 0.0, 0.0, 0.0)"),
    ]
    given = [str(tmp_path), "--arms", "copies", "published", "--seeds", "0", "--worlds", "2", "3"]
    monkeypatch.setattr(past_paper, "_VIEWS", 20)
    past_paper.main([*given, "--train-flags", *tiny])
    report = json.loads((tmp_path / "past_paper.json").read_text())
    assert report["sets"] == {"choice": [0, 1], "confirmation": [2, 4]}
    assert list(report["arms"]) == ["published", "copies"]
    for arm in report["arms"].values():
        for of_set in arm["seeds"]["seed_0"].values():
            assert len(of_set) == 9
            assert all(5 < row["psnr"] < 50 for row in of_set.values())
            assert [name for name, row in of_set.items() if row["lpips"]] == [
                "2 inputs",
                "8 inputs",
            ]
    # What is scored is not scored again.
    monkeypatch.setattr(past_paper.panel, "evaluate_panel", None)
    capsys.readouterr()
    past_paper.main([*given, "--no-train"])
    assert "Confirmation: worlds 2 to 4" in capsys.readouterr().out
    assert json.loads((tmp_path / "past_paper.json").read_text()) == report
