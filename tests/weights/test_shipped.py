"""The weights that come with the package: what `lvsm_jax.load()` gives, in wheel and repository."""

import json
import pathlib
import subprocess
import sys
import zipfile

import numpy as np
import pytest

import lvsm_jax
from lvsm_jax.weights import exports
from lvsm_jax.weights.shipped import SHIPPED, introduce, weights_line

REPOSITORY = pathlib.Path(lvsm_jax.__file__).parents[1]
FOLDER = pathlib.Path(SHIPPED).parent
LARGEST = 20e6  # bytes of all that is shipped
# Files that hold weights, by their names.
WEIGHTS = (".safetensors", ".pt", ".pth", ".ckpt", ".npz", ".msgpack", "manifest.ocdbt")


def files(folder):
    return sorted(file for file in folder.rglob("*") if file.is_file())


def test_load_without_a_path_gives_the_shipped_model():
    model = lvsm_jax.load()
    assert isinstance(model, lvsm_jax.EfficientLVSM)  # that lvsm render and lvsm view need
    assert model.config == exports.model_config(SHIPPED)
    assert lvsm_jax.load(dtype="bfloat16").config.dtype == "bfloat16"
    size = exports.describe(SHIPPED)["config"]["data"]["image_height"]
    camera = lvsm_jax.Cameras(
        np.eye(4, dtype=np.float32)[None, None], np.full((1, 1, 4), size / 2, np.float32)
    )
    render = model(np.full((1, 1, size, size, 3), 0.5, np.float32), camera, camera)
    assert render.shape == (1, 1, size, size, 3) and np.isfinite(render).all()


def test_one_line_says_which_weights():
    said = exports.describe(SHIPPED)
    line = weights_line(SHIPPED, said)
    assert "\n" not in line and said["name"] in line and "M parameters" in line
    assert line.endswith(f"which come with lvsm_jax: {FOLDER / 'README.md'}")
    other = weights_line("runs/x", {"architecture": "EfficientLVSM"})
    assert other == "weights: runs/x (EfficientLVSM); it does not say what it was trained on"
    assert f"{said['config']['data']['image_height']} px" in line and "inputs" in line
    arrays = {"head.kernel": "int8[1000,2000] 0", "head.kernel_scales": "float32[1,2000] 0"}
    arrays["head.weight"] = "float32[] 0"
    other = {"name": "rooms", "architecture": "EfficientLVSM", "arrays": arrays}
    data = {"image_height": 32, "input_counts": [8, 1, 1, 4]}
    told = "rooms (EfficientLVSM, 2.0 M parameters, trained at 32 px with 1 to 8 inputs)"
    assert introduce({**other, "config": {"data": data}}) == told
    data |= {"worlds_share": 0.5, "path": "data/re10k"}
    trained = {**other, "step": 1200, "config": {"data": data}}
    assert "trained on worlds and re10k at 32 px" in introduce(trained)
    assert introduce(trained).endswith("with 1 to 8 inputs for 1,200 steps)")
    tuned = trained | {"config": {"data": data, "init_from": "runs/worlds/export"}}
    assert introduce(tuned).endswith("for 1,200 more steps)")
    assert introduce({"architecture": "EfficientLVSM"}, "runs/x") == "runs/x (EfficientLVSM)"


def test_what_is_shipped_is_small_and_knows_no_machine():
    assert sum(file.stat().st_size for file in files(FOLDER)) <= LARGEST
    assert (FOLDER / "README.md").is_file() and "Apache-2.0" in (FOLDER / "README.md").read_text()
    said = json.loads((FOLDER / "export" / "config.json").read_text())

    def texts(value):
        if isinstance(value, dict | list):
            for inner in value.values() if isinstance(value, dict) else value:
                yield from texts(inner)
        elif isinstance(value, str):
            yield value

    assert not [text for text in texts(said) if text.startswith(("/", "~", "\\"))]
    assert {"name", "step", "config"} <= said.keys() and said["dtype"] in ("bfloat16", "int8")


def test_git_holds_no_other_weights():
    done = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("no repository of git")
    tracked = [pathlib.PurePath(name) for name in done.stdout.splitlines()]
    held = {file.as_posix() for file in tracked if file.name.endswith(WEIGHTS)}
    ours = {name for name in held if name.startswith("lvsm_jax/shipped/export/weights/")}
    goldens = {name for name in held if name.startswith("tests/goldens/")}
    assert len(ours) == 1 and held == ours | goldens
    kept = {"ignored": "elsewhere/packed.safetensors", "taken": ours.pop()}
    ignored = [
        subprocess.run(["git", "check-ignore", "-q", "--no-index", name], cwd=REPOSITORY).returncode
        for name in kept.values()
    ]
    assert ignored == [0, 1]


@pytest.mark.slow
def test_a_wheel_holds_them(tmp_path):
    """Of a copy: setuptools leaves folders where it builds."""
    source, out = tmp_path / "source", tmp_path / "wheels"
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "lvsm_jax"):
        there = REPOSITORY / name
        for file in files(there) if there.is_dir() else [there]:
            if "__pycache__" not in file.parts:
                copy = source / file.relative_to(REPOSITORY)
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(file.read_bytes())
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", f"--wheel-dir={out}", str(source)]
    done = subprocess.run(pip, capture_output=True, text=True)
    if done.returncode and "No matching distribution found for setuptools" in done.stderr:
        pytest.skip("setuptools cannot be fetched")
    assert done.returncode == 0, done.stderr
    (wheel,) = out.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = {name: archive.read(name) for name in archive.namelist() if "/shipped/" in name}
    expected = {f"lvsm_jax/shipped/{f.relative_to(FOLDER).as_posix()}": f for f in files(FOLDER)}
    assert held == {name: file.read_bytes() for name, file in expected.items()}
