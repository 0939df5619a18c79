"""`train.py` as a program: killed, stopped and resumed, it ends where an undisturbed run ends."""

import csv
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

import lvsm_jax
from input_pipeline import make_index
from input_pipeline.own_scenes import __main__ as import_scenes
from lvsm_jax.common.tree import named_leaves
from lvsm_jax.programs import convert, export
from lvsm_jax.weights.exports import describe
from tests.helpers.own_scenes import write_scene

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]


def command(rooms, workdir, config="configs/quickstart.py", **changes):
    settings = {
        "run.num_steps": 120,
        "run.batch_size": 4,
        "run.log_every": 10,
        "run.image_every": 60,
        "run.eval_every": 40,
        "run.eval_scenes": 3,
        "run.checkpoint_every": 10,
        "run.layers_every": 60,
        "model.num_layers": 2,
        "model.width": 32,
        "model.head_dim": 16,
        "data.path": rooms,
        "data.image_height": 32,
        "eval.batch_size": 2,
        "optimizer.ema_decay": 0.9,
        **({} if ":" in config else {"model.copy_head": False}),  # compiles sooner
        **changes,
    }
    return [
        sys.executable,
        "train.py",
        f"--config={config}",
        f"--workdir={os.path.relpath(workdir, REPOSITORY)}",
        *(f"--config.{name}={value}" for name, value in settings.items()),
    ]


def start(*args, **kwargs):
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        command(*args, **kwargs),
        cwd=REPOSITORY,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def finish(process):
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def wait_for(path, process):
    while not path.exists():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)


@pytest.fixture(scope="module")
def undisturbed(rooms, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("undisturbed")
    return workdir, finish(start(rooms, workdir))


def test_what_a_run_leaves(undisturbed):
    workdir, output = undisturbed
    config = json.loads((workdir / "config.json").read_text())
    assert (config["run"]["num_steps"], config["data"]["patch_size"]) == (120, 8)
    rows = list(csv.DictReader((workdir / "metrics.csv").open()))
    assert [int(row["step"]) for row in rows] == list(range(10, 121, 10))
    assert all(np.isfinite(float(row["loss"])) for row in rows)
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"])
    kinds = ("grad_norm/encoder", "grad_norm/decoder", "encoder_rms", "decoder_rms")
    for name in (*kinds, "attention_entropy/2_views"):
        for layer in (f"{name}/layer_01", f"{name}/layer_02"):
            assert [row["step"] for row in rows if row[layer]] == ["60", "120"], layer
            assert all(float(row[layer]) > 0 for row in rows if row[layer])
        assert f"{name}/layer_03" not in rows[0]
    assert [row["step"] for row in rows if row["eval/psnr"]] == ["40", "80", "120"]
    assert np.asarray(Image.open(workdir / "images" / "train_0000060.png")).shape == (32, 128, 3)
    scores = {row["step"]: float(row["eval/psnr"]) for row in rows if row["eval/psnr"]}
    kept = {path.name for path in (workdir / "checkpoints").iterdir() if path.is_dir()}
    assert kept == {"110", "120", max(scores, key=scores.get)}
    assert any((workdir / "tensorboard").iterdir())
    lines = output.splitlines()
    assert [line.partition(" ·")[0] for line in lines[:4]] == [
        *(f"step {step}/120" for step in (10, 20, 30, 40))
    ]
    assert all(line.endswith(" left") for line in lines[:4])
    assert lines[4] == f"step 40: PSNR {scores['40']:.2f} dB on held-out scenes"
    assert lines[-1] == f"exported the weights to {os.path.relpath(workdir / 'export', REPOSITORY)}"
    log = (workdir / "log.txt").read_text()
    assert "decoder/mlp/up/kernel" in log
    assert "orbax" not in output + log
    model = lvsm_jax.load(workdir / "export")
    assert model.config.width == 32
    assert describe(workdir / "export")["step"] == 120


@pytest.mark.slow
def test_killed_and_stopped_and_resumed_is_bit_identical(undisturbed, rooms, tmp_path):
    killed = start(rooms, tmp_path)
    wait_for(tmp_path / "checkpoints" / "20", killed)
    killed.kill()
    killed.wait()
    assert not (tmp_path / "export").exists()
    stopped = start(rooms, tmp_path)
    wait_for(tmp_path / "checkpoints" / "70", stopped)
    stopped.send_signal(signal.SIGTERM)
    output = finish(stopped)
    assert "resuming from step" in output
    assert "the same command goes on from there" in output
    assert not (tmp_path / "export").exists()
    finish(start(rooms, tmp_path))
    ours, expected = (
        named_leaves(lvsm_jax.load(workdir / "export")) for workdir in (tmp_path, undisturbed[0])
    )
    for name, array in ours.items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)
    tables = []
    for workdir in (tmp_path, undisturbed[0]):
        rows = csv.DictReader((workdir / "metrics.csv").open())
        same = ("step", "loss", "eval/psnr", "attention_entropy/2_views/layer_02")
        tables.append([[row[name] for name in same] for row in rows])
    assert tables[0] == tables[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "sizes"),
    [("LVSMDecoderOnly", {}), ("LVSMEncoderDecoder", {"model.num_latents": 8})],
)
def test_the_baselines_train(rooms, tmp_path, architecture, sizes):
    config = f"configs/quickstart.py:{architecture}"
    changes = {"run.num_steps": 40, "run.image_every": 20}
    finish(start(rooms, tmp_path, config, **changes, **sizes))
    model = lvsm_jax.load(tmp_path / "export")
    assert type(model).__name__ == architecture
    assert describe(tmp_path / "export")["config"]["architecture"] == architecture
    rows = list(csv.DictReader((tmp_path / "metrics.csv").open()))
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"])
    process = start(rooms, tmp_path, **changes)
    output, _ = process.communicate(timeout=100)
    assert process.returncode != 0
    assert f"begun with architecture {architecture} and cannot go on with Eff" in output


@pytest.mark.slow
def test_steps_with_other_numbers_of_inputs_resume_bit_identical(rooms, tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_LOG_COMPILES", "1")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "programs"))
    changes = {"data.input_counts": "(1,2,3)", "run.num_steps": 8, "run.checkpoint_every": 4}
    changes |= {"run.eval_every": 0, "run.image_every": 0, "run.log_every": 4}
    changes |= {"run.cpu_devices": 1, "model.num_layers": 1}
    changes["run.seed"] = 2  # draws 3, 1, 2, 3, then 3, 3, 1, 2 inputs
    output = finish(start(rooms, tmp_path / "straight", **changes))
    assert len(re.findall("Finished XLA compilation of .*train_step", output)) == 3
    for count in (1, 2, 3):
        log = (tmp_path / "straight" / "log.txt").read_text()
        assert f"for {count} × 32×32 pixels of inputs" in log
    rows = list(csv.DictReader((tmp_path / "straight" / "metrics.csv").open()))
    assert rows[-1]["programs"] == "3"
    # What is left where the run is killed after the first checkpoint.
    shutil.copytree(tmp_path / "straight", tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed" / "checkpoints" / "8")
    shutil.rmtree(tmp_path / "resumed" / "export")
    output = finish(start(rooms, tmp_path / "resumed", **changes))
    assert "resuming from step 4" in output
    assert "resuming with" not in output  # the recorded config is the given one
    ours, expected = (
        named_leaves(lvsm_jax.load(tmp_path / name / "export")) for name in ("resumed", "straight")
    )
    for name, array in ours.items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)


@pytest.mark.slow
def test_scenes_of_ones_own_mixed_with_others_resume_bit_identical(rooms, tmp_path):
    """From folders of photographs to an evaluation by an index, and killed between."""
    for i in range(4):
        write_scene(tmp_path / "captures" / f"scene-{i}", 9, suffix="png" if i % 2 else "jpg")
    import_scenes.run(tmp_path / "captures", tmp_path / "own", test_scenes=["scene-3"])
    make_index.main([str(tmp_path / "own"), "--inputs=2", "--targets=3"])
    changes = {"data.path": tmp_path / "own", "data.mix": rooms, "data.mix_weights": "2,1"}
    changes |= {"run.num_steps": 8, "run.checkpoint_every": 4, "run.eval_every": 8}
    changes |= {"run.image_every": 0, "run.log_every": 4, "run.cpu_devices": 1}
    finish(start(rooms, tmp_path / "straight", **changes))
    assert describe(tmp_path / "straight" / "export")["config"]["data"]["mix"] == [str(rooms)]
    shutil.copytree(tmp_path / "straight", tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed" / "checkpoints" / "8")
    shutil.rmtree(tmp_path / "resumed" / "export")
    output = finish(start(rooms, tmp_path / "resumed", **changes))
    assert "resuming from step 4" in output and "resuming with" not in output
    ours, expected = (
        named_leaves(lvsm_jax.load(tmp_path / name / "export")) for name in ("resumed", "straight")
    )
    for name, array in ours.items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)


def test_other_sizes_cannot_resume(undisturbed, rooms):
    workdir, _ = undisturbed
    before = (workdir / "config.json").read_text()
    repa = {"repa.weight": 0.5, "repa.teacher_weights": workdir / "config.json"}
    for changes, message in (
        ({"model.width": 64}, "begun with model.width 32 and cannot go on with 64"),
        (repa, "begun with repa.weight 0 and cannot go on with above 0"),
    ):
        process = start(rooms, workdir, **changes)
        output, _ = process.communicate(timeout=100)
        assert process.returncode != 0
        assert message in output
        assert (workdir / "config.json").read_text() == before


@pytest.mark.slow
def test_starting_from_other_weights_at_another_size(undisturbed, rooms, tmp_path):
    # By way of the PyTorch programs' file format.
    convert.main([str(undisturbed[0] / "export"), str(tmp_path / "weights.safetensors")])
    convert.main([str(tmp_path / "weights.safetensors"), str(tmp_path / "imported")])
    changes = {
        "init_from": tmp_path / "imported",
        "run.num_steps": 1,
        "run.eval_every": 0,
        "data.image_height": 16,
    }
    finish(start(rooms, tmp_path / "run", **changes))
    ours, given = (
        named_leaves(lvsm_jax.load(workdir / "export"))
        for workdir in (tmp_path / "run", undisturbed[0])
    )
    for name, array in ours.items():  # the first step has a learning rate of zero
        np.testing.assert_allclose(array, given[name], rtol=1e-6, err_msg=name)
    for wrong, message in (
        ({"model.width": 64}, "error: the weights have width 32, but model.width is 64"),
        ({"init_from": "/nowhere"}, "error: /nowhere is no export"),
        ({"init_from": tmp_path / "run"}, "there is one at"),
        (
            {"config": "configs/quickstart.py:LVSMDecoderOnly"},
            "error: the weights are of EfficientLVSM, but architecture is LVSMDecoderOnly",
        ),
    ):
        process = start(rooms, tmp_path / "wrong", **changes | wrong)
        output, _ = process.communicate(timeout=100)
        assert process.returncode != 0
        assert message in output
        assert not (tmp_path / "wrong").exists()
    process = start(rooms, tmp_path / "run", **changes | {"init_from": undisturbed[0] / "export"})
    output, _ = process.communicate(timeout=100)
    assert f"begun with init_from {tmp_path / 'imported'} and cannot go on with" in output


def test_a_finished_run_is_left_as_it_is(undisturbed, rooms):
    workdir, _ = undisturbed
    before = (workdir / "metrics.csv").read_text()
    finish(start(rooms, workdir))
    assert (workdir / "metrics.csv").read_text() == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.widht": 3}, "widht"),
        ({"config": "configs/quickstart.py:NeRF"}, "error: architecture is 'NeRF', expected one"),
        ({"config": "configs/none.py"}, "error: there is no config file configs/none.py"),
        ({"architecture": "NeRF"}, "architecture is 'NeRF', expected one of ('EfficientLVSM', "),
        ({"run.num_steps": "many"}, "num_steps"),
        ({"data.path": "/nowhere"}, "/nowhere"),
        ({"optimizer.schedule": "linear"}, "optimizer.schedule is 'linear'"),
        ({"loss.perceptual": 0.5}, "get imagenet-vgg-verydeep-19.mat"),
        ({"repa.weight": 0.5}, "go without by --config.repa.weight=0"),
        (
            {"run.batch_size": 3, "run.cpu_devices": 2},
            "do not divide over mesh.data × mesh.fsdp = 2",
        ),
    ],
)
def test_errors_name_the_field(rooms, tmp_path, changes, message):
    process = start(rooms, tmp_path / "run", **changes)
    output, _ = process.communicate(timeout=100)
    assert process.returncode != 0
    assert message in output
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_save_refuses_to_overwrite_and_load_names_what_is_missing(undisturbed, tmp_path):
    model = lvsm_jax.load(undisturbed[0] / "export")
    lvsm_jax.save(model, tmp_path / "export", about={"note": "mine"})
    assert describe(tmp_path / "export")["note"] == "mine"
    again = lvsm_jax.load(tmp_path / "export", dtype="bfloat16")
    assert again.config.dtype == "bfloat16"
    np.testing.assert_array_equal(again.head.kernel[...], model.head.kernel[...])
    with pytest.raises(ValueError, match=r"'width'.* cannot be chosen for these"):
        lvsm_jax.load(tmp_path / "export", width=64)
    with pytest.raises(FileExistsError, match="export exists"):
        lvsm_jax.save(model, tmp_path / "export")
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing"):
        lvsm_jax.load(tmp_path)


def test_export_by_command(undisturbed, tmp_path, capsys):
    workdir, _ = undisturbed
    export.main([str(workdir), str(tmp_path / "early"), "--step=110"])
    assert "exported step 110" in capsys.readouterr().out
    assert describe(tmp_path / "early")["step"] == 110
    export.main([str(workdir), str(tmp_path / "last")])
    last, end = (lvsm_jax.load(path) for path in (tmp_path / "last", workdir / "export"))
    np.testing.assert_array_equal(last.head.kernel[...], end.head.kernel[...])
    with pytest.raises(SystemExit, match="no checkpoint of step 7"):
        export.main([str(workdir), str(tmp_path / "never"), "--step=7"])
    with pytest.raises(SystemExit, match="is no training run"):
        export.main([str(tmp_path), str(tmp_path / "never")])
