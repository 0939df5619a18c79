"""A run of `train.py` with all losses, through networks that are read from files."""

import csv

import numpy as np
import pytest
from safetensors.numpy import save_file

import lvsm_jax
from configs import quickstart
from lvsm_jax.common.errors import MissingWeightsError
from lvsm_jax.common.tree import named_leaves
from lvsm_jax.frozen import dino
from lvsm_jax.parallel.mesh import make_mesh
from lvsm_jax.programs.training_run import train
from lvsm_jax.training import frozen_networks
from lvsm_jax.training.checkpoints import Checkpoints
from lvsm_jax.training.settings import Settings, check_start
from lvsm_jax.training.train_state import TrainingConfig, abstract_state
from tests.helpers.frozen_networks import narrow_perceptual


@pytest.fixture
def config(rooms, goldens, tmp_path, monkeypatch):
    """Small, with a teacher of three blocks in a file and a narrow VGG."""
    golden = np.load(goldens / "dinov3.npz")
    prefix = "state_dict/"
    weights = {k.removeprefix(prefix): golden[k] for k in golden.files if k.startswith(prefix)}
    save_file(weights, tmp_path / "teacher.safetensors")
    tiny = dino.DinoConfig(num_layers=3, width=96, head_dim=32, image_size=32)
    monkeypatch.setitem(dino.TEACHERS, "dinov3_vits16", tiny)
    monkeypatch.setattr(frozen_networks, "load_perceptual", lambda path: narrow_perceptual())
    (tmp_path / "vgg.mat").touch()

    config = quickstart.get_config()
    config.model.update(num_layers=2, width=32, head_dim=16, dtype="bfloat16", copy_head=False)
    config.data.update(path=str(rooms), image_height=32)
    config.run.update(num_steps=2, batch_size=8, log_every=1, eval_every=0, image_every=0)
    config.run.checkpoint_every = 1
    config.loss.update(perceptual=0.5, perceptual_start=1, vgg_weights=str(tmp_path / "vgg.mat"))
    config.repa.update(weight=0.5, encoder="1:2", decoder="2:1", hidden=8, stop_step=1)
    config.repa.update(teacher="dinov3_vits16", teacher_weights=f"{tmp_path}/teacher.safetensors")
    return config


@pytest.mark.slow
def test_a_run_with_all_losses(config, tmp_path):
    settings = Settings.of(config)
    check_start(settings, tmp_path / "run")
    train(config, tmp_path / "run")
    rows = list(csv.DictReader((tmp_path / "run" / "metrics.csv").open()))
    perceptual, repa = ([float(row[f"loss/{x}"]) for row in rows] for x in ("perceptual", "repa"))
    assert perceptual[0] == 0 and perceptual[1] > 0
    assert repa[0] > 0 and repa[1] == 0

    exported = named_leaves(lvsm_jax.load(tmp_path / "run" / "export"))
    state = abstract_state(TrainingConfig.of(config), make_mesh())
    assert exported.keys() == named_leaves(state.model).keys()
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints", keep_last=None)
    saved = checkpoints.restore(state, 2)
    checkpoints.close()
    assert named_leaves(saved.projectors)["third.kernel"].shape == (2, 8, 96)
    assert all(
        name.partition(".")[0] not in ("teacher", "perceptual") for name in named_leaves(saved)
    )

    (tmp_path / "vgg.mat").unlink()
    with pytest.raises(MissingWeightsError, match=r"vgg\.mat is missing"):
        check_start(settings, tmp_path / "other")
