"""Exports: what is saved is loaded to the bit, and damage ends in one line."""

import json
import random
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import lvsm_jax
from lvsm_jax.common.errors import UserError
from lvsm_jax.common.tree import named_leaves
from lvsm_jax.weights import exports

CONFIG = lvsm_jax.EfficientLVSMConfig(num_layers=2, width=64, head_dim=16)


@pytest.fixture(scope="module")
def model():
    return lvsm_jax.EfficientLVSM(CONFIG, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def intact(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exports") / "intact"
    lvsm_jax.save(model, folder, about={"step": 7, "config": {"data": {"image_height": 32}}})
    return folder


@pytest.fixture
def export(intact, tmp_path):
    shutil.copytree(intact, tmp_path / "export")
    return tmp_path / "export"


def assert_same(loaded, model):
    assert loaded.config == model.config
    ours, theirs = named_leaves(loaded), named_leaves(model)
    assert ours.keys() == theirs.keys()
    for name, leaf in ours.items():
        assert leaf.dtype == theirs[name].dtype
        np.testing.assert_array_equal(leaf, theirs[name], err_msg=name)


def large_file(export):
    """The file of the arrays."""
    return max(export.rglob("*"), key=lambda file: file.stat().st_size)


def edit(export, change):
    """Changes what config.json says, checksum and all."""
    file = export / "config.json"
    said = json.loads(file.read_text())
    change(said)
    if "checksum" in said:
        said["checksum"] = exports._checksum(said)
    file.write_text(json.dumps(said))


def test_config_json_is_readable(export, model):
    said = json.loads((export / "config.json").read_text())
    assert (said["format"], said["version"]) == (1, lvsm_jax.__version__)
    assert (said["architecture"], said["step"]) == ("EfficientLVSM", 7)
    assert said["arrays"].keys() == named_leaves(model).keys()
    assert said["arrays"]["head.kernel"].startswith("float32[64,192] ")
    assert_same(lvsm_jax.load(export), model)


def test_fingerprints_tell_order_type_and_shape():
    array = np.arange(6, dtype=np.float32)
    others = [array[::-1], array.reshape(2, 3), array.view(np.int32)]
    prints = [exports.fingerprint(a) for a in (array, *others)]
    assert len(set(prints)) == 4
    for dtype in (jnp.bfloat16, np.int8, np.float64):
        assert exports.fingerprint(np.zeros((), dtype)).startswith(f"{np.dtype(dtype)}[] ")


@pytest.mark.slow
def test_any_flipped_bit_is_refused_or_harmless(export, model, capfd):
    """Eight bits of each file, and of the one with the arrays more."""
    rng = random.Random(0)
    for file in sorted(f for f in export.rglob("*") if f.is_file() and f.stat().st_size):
        content = file.read_bytes()
        count = 40 if file == large_file(export) else 8
        for bit in rng.sample(range(8 * len(content)), count):
            flipped = bytearray(content)
            flipped[bit // 8] ^= 1 << bit % 8
            file.write_bytes(flipped)
            try:
                loaded = lvsm_jax.load(export)
            except UserError as error:
                assert str(export) in str(error) and "\n" not in str(error)
            else:
                assert_same(loaded, model)
        file.write_bytes(content)
    assert capfd.readouterr() == ("", "")


def test_a_changed_array_is_named(export):
    file = large_file(export)
    content = bytearray(file.read_bytes())
    content[len(content) // 3] ^= 0x40
    file.write_bytes(content)
    with pytest.raises(UserError, match=rf"{export} is damaged: array \w+\.[\w.]+ is float32\["):
        lvsm_jax.load(export)


def test_without_verification_changed_values_are_loaded(export):
    file = large_file(export)
    content = bytearray(file.read_bytes())
    content[len(content) // 3] ^= 0x01
    file.write_bytes(content)
    edit(export, lambda said: said.update(checksum="wrong", step=8))
    lvsm_jax.load(export, verify=False)


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("damage", ["cut", "missing"])
def test_a_file_that_is_cut_or_missing(export, damage, old):
    if old:
        edit(export, make_old)
    file = large_file(export)
    if damage == "cut":
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    else:
        file.unlink()
    named = r"array [\w.]+ cannot be read" if old else rf"file weights/.*{file.name}"
    with pytest.raises(UserError, match=f"{export} is damaged: {named}"):
        lvsm_jax.load(export)


def make_old(said):
    """As exports were written before format 1."""
    for name in ("format", "version", "arrays", "files", "checksum"):
        del said[name]


def test_exports_from_before_checksums(export, model, capfd):
    edit(export, make_old)
    assert_same(lvsm_jax.load(export), model)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda said: said.update(format=3, version="9.1"), "format 3, written by version 9.1"),
        (lambda said: said["arrays"].pop("head.kernel"), "array head.kernel is .*, expected none"),
        (lambda said: said["arrays"].update(x="float32[1] 0"), "array x is missing"),
        (lambda said: said["model"].update(num_layers=3), r"array decoder.* \(2, 16\), expected"),
        (lambda said: said.pop("arrays"), "config.json is not what was saved"),
        (lambda said: said.pop("checksum"), "config.json is not what was saved"),
        (lambda said: said["model"].update(colour=3), "config.json: .*colour"),
        (lambda said: said.pop("model"), "which architecture and model"),
    ],
)
def test_other_formats_and_parts(export, change, message):
    edit(export, change)
    with pytest.raises(UserError, match=message):
        lvsm_jax.load(export)


def test_a_surplus_array(model, tmp_path):
    export = tmp_path / "export"
    lvsm_jax.save(model, export)
    exports.ocp.save(export / "weights", named_leaves(model) | {"x": jnp.ones(3)}, overwrite=True)
    edit(export, make_old)
    with pytest.raises(UserError, match=r"array x is \(3,\), expected none of that name"):
        lvsm_jax.load(export)


def test_home_directory(model, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    lvsm_jax.save(model, "~/runs/export")
    assert (tmp_path / "runs" / "export").is_dir()
    assert_same(lvsm_jax.load("~/runs/export"), model)


def test_loading_reads_and_compares_on_one_device(export):
    devices = {leaf.device for leaf in jax.tree.leaves(lvsm_jax.load(export))}
    assert devices == {jax.local_devices()[0]}


def test_weights_in_bfloat16_render_the_same(export, model):
    """Matrices are rounded before they are used either way."""
    narrow = lvsm_jax.load(export, dtype="bfloat16", for_rendering=True)
    wide = lvsm_jax.load(export, dtype="bfloat16")
    rng = np.random.default_rng(0)
    images = rng.uniform(size=(1, 2, 16, 16, 3)).astype(np.float32)
    views = lvsm_jax.Cameras(np.tile(np.eye(4), (1, 2, 1, 1)), np.full((1, 2, 4), 12.0))
    np.testing.assert_array_equal(narrow(images, views, views), wide(images, views, views))
    held = [sum(leaf.nbytes for leaf in jax.tree.leaves(one)) for one in (narrow, wide)]
    assert held[0] < 0.51 * held[1]
    assert_same(lvsm_jax.load(export, for_rendering=True), model)  # computes in float32


def test_a_head_that_copies_stays_in_float32():
    config = lvsm_jax.EfficientLVSMConfig(
        num_layers=1, width=32, head_dim=16, copy_head=True, dtype="bfloat16"
    )
    narrow = exports.in_compute_dtype(lvsm_jax.EfficientLVSM(config, rngs=nnx.Rngs(0)))
    wide = {name for name, leaf in named_leaves(narrow).items() if leaf.dtype == jnp.float32}
    assert {name.split(".")[0] for name in wide if name.endswith("kernel")} == {"copy_head"}


def test_a_run_that_unrolls_its_layers_leaves_an_export_that_does_not(tmp_path):
    config = lvsm_jax.EfficientLVSMConfig(num_layers=1, width=32, head_dim=16, unroll=True)
    lvsm_jax.save(lvsm_jax.EfficientLVSM(config, rngs=nnx.Rngs(0)), tmp_path / "export")
    assert not lvsm_jax.load(tmp_path / "export").config.unroll
    assert lvsm_jax.load(tmp_path / "export", unroll=True).config.unroll
