"""A model of somebody's own: registered, saved, and loaded where its module was imported."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from flax import nnx

import lvsm_jax
from lvsm_jax.common.command_line import argument_parser
from lvsm_jax.models import architectures
from lvsm_jax.models.layers import Linear
from lvsm_jax.programs import describe
from lvsm_jax.weights import exports

REPOSITORY = pathlib.Path(lvsm_jax.__file__).parents[1]


@dataclasses.dataclass(frozen=True)
class MeanColourConfig(lvsm_jax.ModelConfig):
    """Sizes."""

    width: int = 16
    head_dim: int = 8
    brightness: float = 1.0


class MeanColour(lvsm_jax.ViewSynthesisModel):
    """Every target patch is made of the mean of all tokens."""

    def __init__(self, config, *, rngs):
        super().__init__(config, rngs=rngs)
        init = jax.nn.initializers.normal(0.1)
        self.mix = Linear(config.width, config.width, init=init, dtype=config.dtype, rngs=rngs)
        self.head_norm, self.head = self.make_head(scale=True, rngs=rngs)

    def encode(self, images, cameras):
        return self.mix(self.input_tokens(images, cameras).mean(axis=(1, 2)))

    def decode(self, memory, cameras, height, width):
        tokens = self.target_tokens(cameras, height, width) + memory[:, None, None]
        return self.pixels(tokens * self.config.brightness, height, width)


@pytest.fixture
def registered(monkeypatch):
    """The model under its name, for one test."""
    monkeypatch.setattr(architectures, "CONFIGS", known := dict(architectures.CONFIGS))
    monkeypatch.setattr(architectures, "_MODELS", dict(architectures._MODELS))
    monkeypatch.setattr(exports, "CONFIGS", known)
    lvsm_jax.register("MeanColour", MeanColourConfig, MeanColour)


def render(model):
    cameras = lvsm_jax.Cameras(jnp.eye(4)[None, None], jnp.full((1, 1, 4), 8.0))
    images = np.full((1, 1, 16, 16, 3), 0.25, np.float32)
    return model(images, cameras, cameras)


def test_it_is_saved_and_loaded_as_those_that_are_here(registered, tmp_path, monkeypatch):
    model = MeanColour(MeanColourConfig(brightness=2.0), rngs=nnx.Rngs(0))
    for dtype in ("float32", "int8"):
        path = tmp_path / dtype
        lvsm_jax.save(model, path, dtype=dtype)
        said = json.loads((path / "config.json").read_text())
        assert (said["architecture"], said["import"]) == ("MeanColour", MeanColour.__module__)
        loaded = lvsm_jax.load(path)
        assert loaded.config == model.config
        np.testing.assert_allclose(render(loaded), render(model), atol=0.02)
    section = {"width": 32, "head_dim": 8}
    config = ml_collections.ConfigDict({"architecture": "MeanColour", "model": section})
    assert architectures.read_config(config) == MeanColourConfig(width=32)
    with pytest.raises(SystemExit, match="are known of the models of lvsm_jax alone"):
        describe.main([str(tmp_path / "int8")])

    # Where nobody imported the module, it is named and not imported.
    monkeypatch.delitem(architectures.CONFIGS, "MeanColour")
    module = MeanColour.__module__
    with pytest.raises(ValueError, match=rf"which the module {module} .* --import={module}"):
        lvsm_jax.load(tmp_path / "int8")


def test_an_export_that_names_no_module_is_told(registered, tmp_path, monkeypatch):
    model = MeanColour(MeanColourConfig(), rngs=nnx.Rngs(0))
    lvsm_jax.save(model, tmp_path / "export", dtype="int8")
    monkeypatch.delitem(architectures.CONFIGS, "MeanColour")
    file = tmp_path / "export" / "config.json"
    said = json.loads(file.read_text())
    for module in ("os; print(1)", "../evil", 3, ["os"], ""):
        file.write_text(json.dumps(said | {"import": module}))
        with pytest.raises(ValueError, match=r"import is .*, expected a module's name"):
            lvsm_jax.load(tmp_path / "export", verify=False)
    del said["import"]
    file.write_text(json.dumps(said))
    with pytest.raises(ValueError, match=r"architecture is 'MeanColour', expected one of"):
        lvsm_jax.load(tmp_path / "export", verify=False)


def test_what_cannot_be_registered(registered):
    ours = lvsm_jax.EfficientLVSM, lvsm_jax.EfficientLVSMConfig

    class Other(MeanColour):
        pass

    @dataclasses.dataclass(frozen=True)
    class OtherConfig(MeanColourConfig):
        pass

    lvsm_jax.register("MeanColour", MeanColourConfig, MeanColour)  # once more
    for name, config, model, message in (
        ("EfficientLVSM", OtherConfig, Other, "there is a model EfficientLVSM already"),
        ("MeanColour", OtherConfig, Other, "there is a model MeanColour already, of tests"),
        ("Other", MeanColourConfig, Other, "a frozen dataclass of this model alone"),
        ("Other", ours[1], Other, "a frozen dataclass of this model alone"),
        ("Other", lvsm_jax.ModelConfig, Other, "a frozen dataclass of this model alone"),
        ("Other", OtherConfig, nnx.Module, "is no subclass of lvsm_jax.ViewSynthesisModel"),
        ("Other", dict, Other, "is no subclass of lvsm_jax.ModelConfig"),
        ("no name", OtherConfig, Other, "expected letters, digits and _"),
    ):
        with pytest.raises(ValueError, match=message):
            lvsm_jax.register(name, config, model)
    with pytest.raises(ValueError, match="OtherConfig is of no model"):
        architectures.architecture_of(OtherConfig())


def test_a_module_is_imported_by_an_argument_of_any_command(tmp_path):
    (tmp_path / "own_module_of_test.py").write_text("print('imported', __name__)\n")
    (tmp_path / "broken_of_test.py").write_text("import nothing_of_that_name\n")
    program = (
        "import sys; sys.path.remove('')\n"  # as the command `lvsm` has it
        "from lvsm_jax.common.command_line import argument_parser\n"
        "parser = argument_parser('x', '')\n"
        "print(vars(parser.parse_args(sys.argv[1:])))\n"
    )
    command = [sys.executable, "-c", program, "--import=own_module_of_test"]
    env = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env)
    assert run.stdout == "imported own_module_of_test\n{}\n", run.stderr
    parser = argument_parser("x", "")
    for module, message in (
        ("none_of_that_name", "--import=none_of_that_name: there is no module none_of_that_name"),
        (".relative", "expected a module's full name"),
        ("json.none", r"there is no module json\.none"),
    ):
        with pytest.raises(ValueError, match=message):
            parser.parse_args([f"--import={module}"])
    command[-1] = "--import=broken_of_test"
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env)
    assert "Traceback" in run.stderr and "nothing_of_that_name" in run.stderr
