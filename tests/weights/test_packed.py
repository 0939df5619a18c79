"""Packed exports: few bytes, always the same, and the model of the full export."""

import json
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest
from flax import nnx

import lvsm_jax
from lvsm_jax.common.errors import UserError
from lvsm_jax.common.tree import named_leaves
from lvsm_jax.evaluation.metrics import psnr
from lvsm_jax.programs import export as program
from lvsm_jax.weights import exports, packed

CONFIG = lvsm_jax.EfficientLVSMConfig(num_layers=2, width=64, head_dim=16)
ABOUT = {"step": 7, "config": {"data": {"path": "/home/me/rooms/", "image_height": 32}}}


@pytest.fixture(scope="module")
def model():
    """Of random weights so large that renders have contrast."""
    model = lvsm_jax.EfficientLVSM(CONFIG, rngs=nnx.Rngs(0))
    return jax.tree.map(lambda leaf: 3 * leaf, model)


@pytest.fixture(scope="module", params=packed.DTYPES)
def dtype(request):
    return request.param


@pytest.fixture(scope="module")
def intact(model, dtype, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exports") / "intact"
    lvsm_jax.save(model, folder, dtype=dtype, about=ABOUT)
    return folder


@pytest.fixture
def export(intact, tmp_path):
    shutil.copytree(intact, tmp_path / "export")
    return tmp_path / "export"


def views(count):
    rng = np.random.default_rng(0)
    c2w = np.tile(np.eye(4, dtype=np.float32), (2, count, 1, 1))
    c2w[..., :3, 3] = rng.uniform(-1, 1, (2, count, 3))
    cameras = lvsm_jax.Cameras(c2w, np.full((2, count, 4), 16, np.float32))
    return rng.random((2, count, 32, 32, 3), np.float32), cameras


def renders(model):
    images, inputs = views(3)
    render = np.asarray(model(images, inputs, views(2)[1]))
    return render.reshape(-1, *render.shape[2:])


@pytest.fixture(scope="module")
def full_renders(model):
    return renders(model)


def test_the_model_is_that_of_the_full_export(export, model, dtype, full_renders):
    """Scored against pictures 20 dB away from the renders, as those of trained models are."""
    assert full_renders.std() > 0.1
    noise = np.random.default_rng(1).normal(0, 0.1, full_renders.shape).astype(np.float32)
    targets = full_renders + noise
    loaded = lvsm_jax.load(export)
    assert loaded.config == model.config
    full, ours = (float(psnr(targets, x).mean()) for x in (full_renders, renders(loaded)))
    assert 19 < full < 24 and abs(ours - full) < 0.01
    size = sum(leaf.nbytes for leaf in named_leaves(model).values())
    stored = sum(file.stat().st_size for file in (export / "weights").iterdir())
    assert stored < {"bfloat16": 0.53, "int8": 0.28}[dtype] * size


def test_each_weight_is_near_its_own(export, model, dtype):
    loaded = named_leaves(lvsm_jax.load(export))
    for name, leaf in named_leaves(model).items():
        assert loaded[name].dtype == np.float32
        leaf, error = np.asarray(leaf), np.abs(loaded[name] - leaf)
        if not name.endswith(".kernel"):
            assert not error.any()
        elif dtype == "bfloat16":
            assert (error <= np.abs(leaf) / 256).all()
        else:
            largest = np.abs(leaf).max(axis=-2, keepdims=True)
            assert (error <= 0.5001 * largest / 127).all()


def test_columns_have_scales_of_their_own():
    matrix = np.array([[1.0, 100, 0], [-0.5, -127, 0]], np.float32)
    stored = packed.pack("head.kernel", matrix, "int8")
    assert {name: array.dtype.name for name, array in stored.items()} == {
        "head.kernel": "int8",
        "head.kernel_scales": "float32",
    }
    np.testing.assert_array_equal(stored["head.kernel"], [[127, 100, 0], [-64, -127, 0]])
    np.testing.assert_allclose(packed.unpack("head.kernel", stored)[:, 1:], matrix[:, 1:])
    norm = np.array([1.0, 1.0001], np.float32)
    assert packed.pack("norm.scale", norm, "int8")["norm.scale"] is norm
    assert packed.pack("x.kernel", matrix, "bfloat16")["x.kernel"].dtype == ml_dtypes.bfloat16


def test_the_same_weights_are_the_same_bytes(model, dtype, intact, tmp_path):
    lvsm_jax.save(model, tmp_path / "again", dtype=dtype, about=ABOUT)
    both = [
        {f.relative_to(folder): f.read_bytes() for f in folder.rglob("*") if f.is_file()}
        for folder in (intact, tmp_path / "again")
    ]
    assert both[0] == both[1] and len(both[0]) == 2


def test_damage_is_named(export, model):
    (file,) = (export / "weights").iterdir()
    content = file.read_bytes()
    changed = bytearray(content)
    changed[-1000] ^= 0x40
    for damaged, message in [
        (bytes(changed), f"{export} is damaged: (array|file)"),
        (content[: len(content) // 2], f"{export} is damaged: file weights/packed.safetensors"),
    ]:
        file.write_bytes(damaged)
        with pytest.raises(UserError, match=message):
            lvsm_jax.load(export)
    with pytest.raises(UserError, match=f"{file} cannot be read"):
        lvsm_jax.load(export, verify=False)
    file.write_bytes(bytes(changed))
    lvsm_jax.load(export, verify=False)


def test_arrays_of_another_model_are_refused(export, model):
    file = export / "config.json"
    said = json.loads(file.read_text())
    said["model"]["num_layers"] = 3
    file.write_text(json.dumps(said))
    with pytest.raises(UserError, match=r"array decoder.* is .*\(2, .*expected .*\(3, "):
        lvsm_jax.load(export, verify=False)
    said["dtype"] = "int4"
    file.write_text(json.dumps(said))
    with pytest.raises(UserError, match=r"config.json: dtype is 'int4', expected one of"):
        lvsm_jax.load(export, verify=False)
    with pytest.raises(UserError, match="dtype is 'int4'"):
        lvsm_jax.save(model, "nowhere", dtype="int4")


def test_command_packs_an_export(model, tmp_path, capsys):
    source, out = tmp_path / "full", tmp_path / "small"
    lvsm_jax.save(model, source, about=ABOUT)
    program.main([str(source), str(out), "--dtype=int8", "--name=my rooms"])
    told = capsys.readouterr().out
    assert "exported step 7" in told and "MB of" in told and "largest error of a weight" in told
    said = exports.describe(out)
    assert (said["format"], said["dtype"], said["name"], said["step"]) == (2, "int8", "my rooms", 7)
    assert said["config"] == {"data": {"path": "rooms", "image_height": 32}}
    again = tmp_path / "again"
    program.main([str(source), str(again), "--name=whole"])
    assert exports.describe(again)["config"] == ABOUT["config"]
    for name, leaf in named_leaves(lvsm_jax.load(again)).items():
        np.testing.assert_array_equal(leaf, named_leaves(model)[name])
    with pytest.raises(SystemExit, match=r"--step=3, but .* is an export"):
        program.main([str(source), str(tmp_path / "x"), "--step=3"])
    with pytest.raises(SystemExit, match=r"is no training run: .*config.json is missing"):
        program.main([str(tmp_path), str(tmp_path / "x")])
