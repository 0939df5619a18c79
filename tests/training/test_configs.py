"""Every experiment in configs/ can be trained, and is of the size it says."""

import importlib
import json
import pathlib

import jax
import ml_collections
import pytest

from lvsm_jax.common.command_line import read_config_file
from lvsm_jax.common.config import DataConfig, EvalConfig, RunConfig, section
from lvsm_jax.common.errors import MissingWeightsError
from lvsm_jax.models.architectures import CONFIGS, abstract_model, architecture_of
from lvsm_jax.training.frozen_networks import find_frozen
from lvsm_jax.training.train_state import TrainingConfig

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
CONFIG_FILES = [
    file
    for folder in ("configs", "experiments/configs")
    for file in sorted((REPOSITORY / folder).glob("[a-z]*.py"))
]


@pytest.mark.parametrize(
    ("name", "architecture", "millions"),
    [
        ("base", "EfficientLVSM", 199.07),
        ("re10k_256", "EfficientLVSM", 199.07),
        ("re10k_512", "EfficientLVSM", 199.07),
        ("re10k_256_repa", "EfficientLVSM", 199.07),
        ("re10k_512_repa", "EfficientLVSM", 199.07),
        ("beyond_256", "EfficientLVSM", 121.34),
        ("worlds_64", "EfficientLVSM", 1.61),
        ("worlds_128", "EfficientLVSM", 15.55),
        ("worlds_256", "EfficientLVSM", 121.34),
        ("lvsm_decoder_only_256", "LVSMDecoderOnly", 170.80),
        ("lvsm_encoder_decoder_256", "LVSMEncoderDecoder", 173.15),
        ("gs_lrm_256", "GSLRM", 303.42),
        ("gs_lrm_256:objects", "GSLRM", 303.42),
        ("gs_lrm_64", "GSLRM", 1.35),
        ("object_64", "EfficientLVSM", 1.61),
        ("object_256", "EfficientLVSM", 199.07),
        ("object_512", "EfficientLVSM", 199.07),
        ("quickstart", "EfficientLVSM", 1.61),
        ("quickstart:LVSMDecoderOnly", "LVSMDecoderOnly", 1.33),
        ("quickstart:LVSMEncoderDecoder", "LVSMEncoderDecoder", 1.35),
        ("quickstart:GSLRM", "GSLRM", 1.35),
        ("worlds_64:shipped", "EfficientLVSM", 2.07),
        ("worlds_64:sharper", "EfficientLVSM", 2.07),
        ("own_256", "EfficientLVSM", 121.34),
        ("own_256:shipped", "EfficientLVSM", 2.07),
        ("copy_head:regressed", "EfficientLVSM", 1.52),
        ("beyond_arms", "EfficientLVSM", 1.52),
        ("beyond_arms:decoupled_film", "EfficientLVSM", 1.02),
        ("law", "EfficientLVSM", 1.61),
        ("time_arms", "EfficientLVSM", 1.54),
        ("sizes", "EfficientLVSM", 2.07),
        ("sizes:coarse", "EfficientLVSM", 9.05),
        ("arms", "EfficientLVSM", 1.52),
        ("arms:prope", "EfficientLVSM", 1.48),
        ("side_by_side:LVSMDecoderOnly", "LVSMDecoderOnly", 1.33),
    ],
)
def test_config(name, architecture, millions):
    stem, _, argument = name.partition(":")
    (file,) = (file for file in CONFIG_FILES if file.stem == stem)
    config = read_config_file(str(file) + (argument and f":{argument}"))
    model = TrainingConfig.of(config).model
    assert architecture_of(model) == architecture
    assert round(sum(x.size for x in jax.tree.leaves(abstract_model(model))) / 1e6, 2) == millions
    section(config, "data", DataConfig).check_training()
    section(config, "run", RunConfig)
    section(config, "eval", EvalConfig)


def test_every_config_is_looked_at():
    names = {file.stem for file in CONFIG_FILES}
    looked_at = {name.partition(":")[0] for name, *_ in test_config.pytestmark[0].args[1]}
    assert names == looked_at


@pytest.mark.parametrize("name", ["re10k_256", "re10k_512", "re10k_256_repa", "re10k_512_repa"])
def test_the_published_recipe(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = importlib.import_module(f"configs.{name}").get_config()
    training = TrainingConfig.of(config)
    repa = training.repa
    assert (training.loss.mse, training.loss.perceptual, training.loss.lpips) == (1.0, 0.5, 0.0)
    assert repa.weight == (0.5 if "repa" in name else 0)
    assert (repa.teacher, repa.distance, repa.hidden) == ("dinov3_vitb16", "smooth_l1", 2048)
    assert repa.encoder_pairs == repa.decoder_pairs == ((2, 8),)
    size, stage = config.data.image_height, (config.run.batch_size, config.run.num_steps)
    assert stage == ((512, 100_000) if size == 256 else (128, 20_000))
    start = "runs/" + name.replace("512", "256") + "/export"
    assert config.init_from == ("" if size == 256 else start)

    # Its files are asked for before training starts, and their losses can be left out.
    file = str(REPOSITORY / "configs" / f"{name}.py")
    with pytest.raises(MissingWeightsError, match=r"imagenet-vgg-verydeep-19\.mat is missing"):
        find_frozen(training.loss, repa)
    training = TrainingConfig.of(read_config_file(file, ["--config.loss.perceptual=0"]))
    if "repa" in name:
        with pytest.raises(MissingWeightsError, match="dinov3_vitb16"):
            find_frozen(training.loss, training.repa)
        without = ["--config.loss.perceptual=0", "--config.repa.weight=0"]
        training = TrainingConfig.of(read_config_file(file, without))
    assert find_frozen(training.loss, training.repa) == {}


def test_objects_are_trained_as_published():
    for name, size in (("object_256", 256), ("object_512", 512), ("gs_lrm_256", 256)):
        get_config = importlib.import_module(f"configs.{name}").get_config
        config = get_config("objects") if name == "gs_lrm_256" else get_config()
        data = section(config, "data", DataConfig)
        assert (data.camera_normalization, data.sampling) == ("none", "random")
        assert (data.num_inputs, data.image_height) == (4, size)
        assert data.num_views == data.num_inputs + data.num_targets
        assert config.eval.camera_normalization == "none" and config.eval.num_inputs == 4
        if name != "gs_lrm_256":
            assert data.num_targets == 8
            assert config.optimizer.skip_factor * config.optimizer.clip_norm == 5
    second = importlib.import_module("configs.object_512").get_config()
    assert second.init_from == "runs/object_256/export"
    stage = second.run.num_steps, second.run.batch_size, second.optimizer.learning_rate
    assert stage == (10_000, 128, 4e-5)


def test_the_baselines_say_how_published_ones_are_trained():
    for name in ("lvsm_decoder_only_256", "lvsm_encoder_decoder_256"):
        config = importlib.import_module(f"configs.{name}").get_config()
        assert (config.optimizer.schedule, config.optimizer.clip_norm) == ("cosine", 1.0)
        assert config.run.batch_size == 512
        assert config.loss.perceptual == 0.5
        assert config.model.residual_dtype == "float32"


@pytest.mark.parametrize(
    ("name", "factor"),
    [("re10k_256", 10), ("re10k_512", 10), ("beyond_256", 10), ("lvsm_decoder_only_256", 5)],
)
def test_long_gradients_are_skipped_as_published(name, factor):
    """From the first step on, and with the schedule going on."""
    optimizer = importlib.import_module(f"configs.{name}").get_config().optimizer
    assert (optimizer.skip_factor, optimizer.skip_after) == (factor, 0)
    assert optimizer.schedule_counts_skipped


@pytest.mark.parametrize(
    ("file", "overrides", "message"),
    [
        ("quickstart.py:NeRF", [], "NeRF"),
        ("worlds_256.py:EfficientLVSM", [], "get_config"),
        ("re10k_256.py:tpu", [], "device is 'tpu', expected one of"),
        ("quickstart.py", ["--config.model.targets_at_once=0"], "targets_at_once"),
        ("quickstart.py", ["--config.model.width=wide"], "wide"),
    ],
)
def test_mistakes_are_told_in_a_line(file, overrides, message):
    with pytest.raises(ValueError, match=message) as error:
        read_config_file(str(REPOSITORY / "configs" / file), overrides)
    assert "\n" not in str(error.value)


def test_lists_come_from_flags_and_from_records_alike():
    flags = ["--config.data.input_counts=2", "--config.data.aspect_ratios=1,1.5"]
    flags += ["--config.eval.crop_place=0,1"]
    flags += ["--config.data.mix=data/a,data/b", "--config.data.mix_weights=2,1,0.5"]
    config = read_config_file(str(REPOSITORY / "configs" / "quickstart.py"), flags)
    assert section(config, "eval", EvalConfig).crop_place == (0.0, 1.0)
    recorded = ml_collections.ConfigDict(json.loads(json.dumps(config.to_dict())))
    data = section(config, "data", DataConfig)
    assert data == section(recorded, "data", DataConfig)
    assert (data.input_counts, data.aspect_ratios) == ((2,), (1.0, 1.5))
    assert (data.mix, data.mix_weights) == (("data/a", "data/b"), (2.0, 1.0, 0.5))
    config.data.input_counts = (2, 2.5)
    with pytest.raises(ValueError, match=r"config.data.input_counts\[1\] is 2.5, expected int"):
        section(config, "data", DataConfig)


def test_an_architecture_cannot_be_changed_alone():
    for file, other in (("re10k_256.py", "LVSMDecoderOnly"), ("base.py", "LVSMEncoderDecoder")):
        config = read_config_file(
            str(REPOSITORY / "configs" / file), [f"--config.architecture={other}"]
        )
        with pytest.raises(ValueError, match="chosen by a config file made for it"):
            TrainingConfig.of(config)
    assert set(CONFIGS) == {"EfficientLVSM", "LVSMDecoderOnly", "LVSMEncoderDecoder", "GSLRM"}


def test_a_config_from_before_a_field_of_the_model_takes_its_default():
    config = read_config_file(str(REPOSITORY / "configs" / "re10k_256.py"), [])
    now = TrainingConfig.of(config)
    before = config.to_dict()
    del before["model"]["camera_encoding"]
    assert TrainingConfig.of(ml_collections.ConfigDict(before)) == now
    before["model"]["gone"] = 1
    message = r"config.model has \['gone'\], .* chosen by a config file made for it"
    with pytest.raises(ValueError, match=message):
        TrainingConfig.of(ml_collections.ConfigDict(before))
