"""Weights of the PyTorch programs: names, sizes, what is refused, and the command."""

import collections
import json
import re
import shutil
import stat

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from flax import nnx

import lvsm_jax
from lvsm_jax.common.errors import UserError
from lvsm_jax.models.architectures import architecture_of, new_model
from lvsm_jax.programs import convert as program
from lvsm_jax.weights import convert
from lvsm_jax.weights.exports import describe
from tests.helpers import torch_zip

SIZES = {"num_layers": 3, "width": 64, "head_dim": 32}
CONFIGS = {
    "efficient_lvsm": lvsm_jax.EfficientLVSMConfig(**SIZES),
    "lvsm_decoder_only": lvsm_jax.LVSMDecoderOnlyConfig(**SIZES),
    "lvsm_encoder_decoder": lvsm_jax.LVSMEncoderDecoderConfig(**SIZES, num_latents=16),
}


@pytest.fixture(scope="module")
def state_dicts(goldens):
    """Weights of the reference programs, by architecture."""
    prefix = "state_dict/"
    return {
        name: {
            key.removeprefix(prefix): array
            for key, array in np.load(goldens / f"{name}.npz").items()
            if key.startswith(prefix)
        }
        for name in CONFIGS
    }


@pytest.fixture(params=CONFIGS)
def name(request):
    return request.param


@pytest.fixture
def state_dict(state_dicts, name):
    return dict(state_dicts[name])


@pytest.fixture
def efficient(state_dicts):
    return dict(state_dicts["efficient_lvsm"])


def assert_same_bits(ours, expected):
    assert ours.keys() == expected.keys()
    for name, array in ours.items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array.view(np.int32), expected[name].view(np.int32))


def test_state_dict_round_trip(name, state_dict):
    model = convert.from_state_dict(state_dict)
    assert model.config == CONFIGS[name]
    assert_same_bits(convert.to_state_dict(model), state_dict)


@pytest.mark.parametrize(
    "config",
    [lvsm_jax.LVSMDecoderOnlyConfig, lvsm_jax.LVSMEncoderDecoderConfig],
)
def test_other_sizes_are_inferred(config):
    config = config(num_layers=1, width=24, head_dim=8, patch_size=4, mlp_ratio=2)
    model = new_model(config, nnx.Rngs(0))
    assert convert.from_state_dict(convert.to_state_dict(model)).config == config


def test_prefixes_and_helper_networks(state_dict):
    arrays = {f"model._orig_mod.module.{name}": array for name, array in state_dict.items()}
    arrays["loss_computer.vgg.0.weight"] = np.zeros(3)
    arrays["_orig_mod.repa_encoder.rope"] = np.full(3, np.nan)
    arrays["module.repa_projector.0.bias"] = np.zeros(3, np.int64)
    assert_same_bits(convert.to_state_dict(convert.from_state_dict(arrays)), state_dict)


def test_the_same_weight_twice_is_refused(efficient):
    name = next(iter(efficient))
    with pytest.raises(ValueError, match=f"{name} is there twice"):
        convert.from_state_dict(efficient | {f"module.{name}": efficient[name]})


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_narrow_floats_are_widened(efficient, dtype):
    narrow = {name: array.astype(dtype) for name, array in efficient.items()}
    ours = convert.to_state_dict(convert.from_state_dict(narrow))
    assert_same_bits(ours, {name: array.astype(np.float32) for name, array in narrow.items()})


def test_weights_that_do_not_fit_are_all_named(efficient):
    arrays = dict(efficient, surplus=np.zeros(2))
    del arrays["self_cross_blocks.1.mlp.mlp.2.weight"]
    arrays["image_token_decoder.1.weight"] = np.zeros((3, 64), np.float32)
    arrays["self_cross_blocks.1.mlp.mlp.0.weight"] = np.zeros((256, 64))
    arrays["self_cross_blocks.2.cross_attn.fc.weight"] = np.zeros((64, 64), np.int32)
    arrays["self_cross_blocks.2.cross_attn.q_norm.weight"] = np.float32([np.inf] * 32)
    with pytest.raises(ValueError) as error:
        convert.from_state_dict(arrays)
    assert str(error.value).splitlines() == [
        "weights that do not fit EfficientLVSM:",
        "  missing self_cross_blocks.1.mlp.mlp.2.weight (64, 256)",
        "  surplus surplus (2,)",
        "  image_token_decoder.1.weight has shape (3, 64), expected (192, 64)",
        "  self_cross_blocks.1.mlp.mlp.0.weight is float64, expected float32, float16 or bfloat16",
        "  self_cross_blocks.2.cross_attn.fc.weight is int32, expected float32, float16 or "
        "bfloat16",
        "  self_cross_blocks.2.cross_attn.q_norm.weight holds values that are not finite",
    ]


def test_what_no_weight_tells_hides_no_other_problem(state_dicts):
    """Of the weights whose size is not told, the shape alone is not judged."""
    arrays = _without(state_dicts["lvsm_encoder_decoder"], "n_light")
    arrays = _without(arrays, "transformer_decoder.2.mlp")
    arrays = _reshaped(arrays, "transformer_encoder.0.mlp", (7, 7))
    arrays["image_token_decoder.0.weight"] = np.zeros(7, np.float32)
    with pytest.raises(ValueError) as error:
        convert.from_state_dict(arrays)
    lines = str(error.value).splitlines()
    assert lines[1].startswith("  no num_latents fits n_light_field_latent (missing)")
    assert "  missing n_light_field_latent" in lines
    assert "  missing transformer_decoder.2.mlp.mlp.0.weight (256, 64)" in lines
    assert "  image_token_decoder.0.weight has shape (7,), expected (64,)" in lines
    assert sum("transformer_encoder.0.mlp" in line for line in lines) == 2


@pytest.mark.parametrize("option", ["co_refinement", "width", "targets_at_once"])
def test_only_how_to_compute_can_be_chosen(efficient, option):
    with pytest.raises(ValueError, match=f"'{option}'.* cannot be chosen for these weights"):
        convert.from_state_dict(efficient, **{option: 1})


def test_every_weight_is_needed(state_dict):
    for name in [name for name in state_dict if not re.search(r"\.[02]\.(\w+\.)+weight", name)]:
        others = {other: array for other, array in state_dict.items() if other != name}
        with pytest.raises(ValueError, match=name.replace(".", r"\.")):
            convert.from_state_dict(others)


def _reshaped(arrays, pattern, shape):
    return {
        name: np.zeros(shape, np.float32) if pattern in name else array
        for name, array in arrays.items()
    }


def _without(arrays, prefix):
    return {name: array for name, array in arrays.items() if not name.startswith(prefix)}


@pytest.mark.parametrize(
    ("architecture", "change", "message"),
    [
        (
            "efficient_lvsm",
            lambda a: _reshaped(_reshaped(a, "tokenizer", (64, 577)), "decoder.1.", (100, 64)),
            r"no patch_size fits rgbp_tokenizer.1.weight \(64, 577\), .*9·p² columns",
        ),
        (
            "efficient_lvsm",
            lambda a: _reshaped(a, "_norm", (24,)),
            "no head_dim fits .*24,.*which divides the width",
        ),
        ("efficient_lvsm", lambda a: _reshaped(a, "_norm", ()), "no head_dim fits .*q_norm"),
        (
            "lvsm_decoder_only",
            lambda a: _reshaped(a, "mlp.0", (100, 64)),
            r"transformer_blocks.2.mlp.mlp.0.weight has shape \(100, 64\), expected \(256, 64\)",
        ),
        (
            "lvsm_encoder_decoder",
            lambda a: _without(a, "n_light"),
            r"no num_latents fits n_light_field_latent \(missing\)",
        ),
        (
            "lvsm_encoder_decoder",
            lambda a: _without(a, "transformer_decoder.2."),
            r"missing transformer_decoder\.2\.norm1\.weight \(64,\)",
        ),
        (
            "lvsm_decoder_only",
            lambda a: a | {"transformer_blocks.99999.norm1.weight": np.zeros(64, np.float32)},
            "100000 layers with 30 weights",
        ),
        ("lvsm_decoder_only", lambda a: {"a": np.zeros(1)}, "no architecture .*'a'"),
        ("lvsm_decoder_only", lambda a: {}, "no architecture"),
    ],
)
def test_sizes_that_cannot_be(state_dicts, architecture, change, message):
    with pytest.raises(ValueError, match=message):
        convert.from_state_dict(change(dict(state_dicts[architecture])))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("co_refinement", False),
        ("decoder_attention", "cross"),
        ("shared_streams", True),
        ("camera_encoding", "plucker_prope"),
        ("attention_temperature", "log_views"),
        ("copy_head", True),
        ("residual_scaling", True),
    ],
)
def test_variants_that_nobody_published_have_no_names(field, value):
    sizes = {"num_layers": 1, "width": 16, "head_dim": 8}
    model = new_model(lvsm_jax.EfficientLVSMConfig(**sizes, **{field: value}), nnx.Rngs(0))
    with pytest.raises(ValueError, match=f"model.{field} is {value!r}"):
        convert.to_state_dict(model)


def test_a_model_without_published_weights_has_no_names():
    model = new_model(lvsm_jax.GSLRMConfig(num_layers=1, width=16, head_dim=8), nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"has weights of GSLRM, only of EfficientLVSM, LVSM"):
        convert.to_state_dict(model)


def test_command_names_the_export_of_such_a_variant(tmp_path):
    config = lvsm_jax.EfficientLVSMConfig(num_layers=1, width=16, head_dim=8, co_refinement=False)
    lvsm_jax.save(new_model(config, nnx.Rngs(0)), tmp_path / "export")
    error = _error(tmp_path / "export", tmp_path / "x.safetensors")
    assert f"{tmp_path / 'export'}: model.co_refinement is False" in error and "\n" not in error
    assert not (tmp_path / "x.safetensors").exists()


def _error(*arguments):
    """What the command says when it fails."""
    with pytest.raises(SystemExit) as error:
        program.main([str(argument) for argument in arguments])
    assert error.value.code.startswith("error: ")
    return error.value.code


def test_command_there_and_back(name, state_dict, tmp_path, capsys):
    """torch.save -> export -> .safetensors -> export -> .safetensors, bit for bit."""
    released, first, second = tmp_path / "ckpt.pt", tmp_path / "1.safetensors", tmp_path / "deep"
    second = second / "2.safetensors"
    weights = {f"_orig_mod.module.{key}": array for key, array in state_dict.items()}
    optimizer = {"state": {0: {"exp_avg": np.zeros(3, np.float32)}}, "lr": 1e-4}
    torch_zip.save(released, {"model": weights, "optimizer": optimizer, "step": 7, "epoch": 2})
    program.main([str(released), str(tmp_path / "one")])
    architecture = architecture_of(CONFIGS[name])
    printed = capsys.readouterr().out
    assert architecture in printed and "width 64" in printed
    assert f"--checkpoint={tmp_path / 'one'}" in printed
    about = describe(tmp_path / "one")
    assert about["source"] == {"file": "ckpt.pt", "counters": {"step": 7, "epoch": 2}}

    program.main([str(tmp_path / "one"), str(first)])
    program.main([str(first), str(tmp_path / "two")])
    program.main([str(tmp_path / "two"), str(second)])
    for file in (first, second):
        assert_same_bits(safetensors.numpy.load_file(file), state_dict)
        with safetensors.safe_open(file, "np") as opened:
            metadata = opened.metadata()
        assert metadata.pop("lvsm_jax.checksum")
        assert metadata == {"format": "pt", "architecture": architecture}
    assert stat.S_IMODE(first.stat().st_mode) == stat.S_IMODE(released.stat().st_mode)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["ckpt.pt", "one", "two", "1.safetensors", "deep"]
    )


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", None])
def test_other_places_of_the_weights(efficient, tmp_path, key):
    file = tmp_path / "file"  # told by its content, whatever its name
    torch_zip.save(file, {key: efficient, "a_step": 1, "b_step": 2} if key else efficient)
    arrays, counters = convert.read_checkpoint(file)[:2]
    assert_same_bits(arrays, efficient)
    assert counters == ({"a_step": 1, "b_step": 2} if key else {})
    program.main([str(file), str(tmp_path / "out")])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"net": {"a": np.zeros(1)}, "epoch": 1}, r"the keys \['epoch', 'net'\]"),
        ({"model": {"a": np.zeros(1), "b": "text"}}, r"model is no state dict, it holds .*'b'"),
        ({"model": {}}, "model is no state dict, it holds nothing"),
        ([1, 2], "holds a list"),
        ({}, "expected a dict"),
    ],
)
def test_torch_files_without_weights(tmp_path, content, message):
    torch_zip.save(tmp_path / "x.pt", content)
    with pytest.raises(ValueError, match=message):
        convert.read_checkpoint(tmp_path / "x.pt")


def test_averaged_weights_are_named_and_can_be_taken(efficient, tmp_path, capsys):
    averaged = {f"module.{name}": array + 1 for name, array in efficient.items()}
    averaged["n_averaged"] = np.int64(7)[None]
    content = {"model": efficient, "ema": averaged, "deep": {"shadow": efficient}, "step": 3}
    torch_zip.save(tmp_path / "x.pt", content | {"optimizer": {"state": {0: {}}}})
    program.main([str(tmp_path / "x.pt"), str(tmp_path / "plain")])
    told = capsys.readouterr().out
    assert "under 'model' were taken" in told and "--key=ema" in told and "--key=deep.s" in told
    source = describe(tmp_path / "plain")["source"]
    assert source["key"] == "model" and source["other_keys"] == ["ema", "deep.shadow"]
    program.main([str(tmp_path / "x.pt"), str(tmp_path / "ema"), "--key=ema"])
    ours = convert.to_state_dict(lvsm_jax.load(tmp_path / "ema"))
    assert_same_bits(ours, {name: array + 1 for name, array in efficient.items()})
    read = convert.read_checkpoint(tmp_path / "x.pt", "deep.shadow")
    assert_same_bits(read.arrays, efficient)
    assert "no weights under 'emma', but the keys" in _error(
        tmp_path / "x.pt", tmp_path / "out", "--key=emma"
    )
    safetensors.numpy.save_file(efficient, tmp_path / "x.safetensors")
    assert "only files of torch.save" in _error(
        tmp_path / "x.safetensors", tmp_path / "out", "--key=ema"
    )


class _Settings(dict):
    """An object of a class that nobody else has."""

    def __init__(self, **fields):
        super().__init__(**fields)
        self.parent = None


def test_what_is_no_data_beside_the_weights_is_not_read(efficient, tmp_path):
    beside = {
        "best": np.float64(0.5),
        "config": _Settings(lr=np.float32(1e-3)),
        "history": collections.defaultdict(list, {"loss": [1.0]}),
        "seen": {1, 2},
        "path": tmp_path,
    }
    torch_zip.save(tmp_path / "x.pt", {"model": efficient, "step": 3, **beside})
    read = convert.read_checkpoint(tmp_path / "x.pt")
    assert_same_bits(read.arrays, efficient)
    assert read.counters == {"step": 3} and read.key == "model"
    # Among the weights it is an error.
    torch_zip.save(tmp_path / "y.pt", {"model": efficient | {"scale": np.float64(1)}})
    with pytest.raises(UserError, match=r"'scale' \(numpy\.\w+\.multiarray\.scalar\)"):
        convert.read_checkpoint(tmp_path / "y.pt")


def _in_parts(arrays, folder):
    """Two files of safetensors and their index, as hubs have them."""
    folder.mkdir()
    names = [f"model-{part:05d}-of-00002.safetensors" for part in (1, 2)]
    where = {name: names[i % 2] for i, name in enumerate(arrays)}
    for file in names:
        part = {name: arrays[name] for name in arrays if where[name] == file}
        safetensors.numpy.save_file(part, folder / file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    (folder / "config.json").write_text('{"model_type": "lvsm"}')  # what an export has too
    return index, [folder / name for name in names]


def test_weights_in_several_files(efficient, tmp_path):
    index, (first, second) = _in_parts(efficient, tmp_path / "hub")
    for i, given in enumerate((index.parent, index, first, second)):
        assert_same_bits(convert.read_checkpoint(given).arrays, efficient)
        program.main([str(given), str(tmp_path / f"out{i}")])
    whole = tmp_path / "whole"
    whole.mkdir()
    safetensors.numpy.save_file(efficient, whole / "model.safetensors")
    assert_same_bits(convert.read_checkpoint(whole).arrays, efficient)
    shutil.copy(whole / "model.safetensors", whole / "other.safetensors")
    assert "it has model.safetensors, other.safetensors" in _error(whole, tmp_path / "x")
    shutil.copy(first, second)
    assert "do not belong together" in _error(index, tmp_path / "x")
    second.unlink()
    assert f"names '{second.name}', which is not beside it" in _error(index, tmp_path / "x")
    index.write_text("[]")
    assert "expected a JSON object with 'weight_map'" in _error(index.parent, tmp_path / "x")
    index.unlink()
    assert f"one of 2 files, and {index} is missing" in _error(first, tmp_path / "x")


def test_nothing_is_overwritten_unasked(efficient, tmp_path):
    """The output is looked at before the input: these inputs do not exist."""
    export, file = tmp_path / "export", tmp_path / "x.safetensors"
    (tmp_path / "dir.safetensors").mkdir()
    safetensors.numpy.save_file(efficient, file)
    program.main([str(file), str(export)])
    assert "(--overwrite)" in _error("missing.pt", export)
    assert "No such file" in _error("missing.pt", tmp_path / "new")
    assert "(--overwrite)" in _error(export, file)
    assert "ends in .safetensors" in _error(export, tmp_path / "x.pt")
    for name in ("new.safetensors", "new.pt"):
        assert "becomes an export" in _error(file, tmp_path / name)
    assert "is no export" in _error(tmp_path, tmp_path / "new.safetensors")
    # Asked to, it replaces what it writes itself, and nothing else.
    run = tmp_path / "run"  # a training run has a config.json too
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.json").write_text("{}")
    assert "is no export: it is not overwritten" in _error(file, run, "--overwrite")
    assert (run / "checkpoints").exists()
    (tmp_path / "text").touch()
    assert "is no export" in _error(file, tmp_path / "text", "--overwrite")
    assert "is a directory" in _error(export, tmp_path / "dir.safetensors", "--overwrite")

    changed = {name: array * 2 for name, array in efficient.items()}
    safetensors.numpy.save_file(changed, file)
    program.main([str(file), str(export), "--overwrite"])
    program.main([str(export), str(file), "--overwrite"])
    assert_same_bits(safetensors.numpy.load_file(file), changed)


def _tensors(**entries):
    """A .safetensors file with this header and 8 bytes of content."""
    header = json.dumps(entries).encode()
    return len(header).to_bytes(8, "little") + header + bytes(8)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\x03\x04 but no more of a zip",
        b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.",
        bytes(100),
        (2**40).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"{",
        (3).to_bytes(8, "little") + b"{]}",
        _tensors(a={"dtype": "F32", "shape": [2], "data_offsets": [0, 80]}),
        _tensors(a={"dtype": "F32", "shape": [9], "data_offsets": [0, 8]}),
        _tensors(a={"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}),
        _tensors(a={"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 8]}),
        _tensors(a={"dtype": "X", "shape": [2], "data_offsets": [0, 8]}),
        _tensors(a={"dtype": "C64", "shape": [1], "data_offsets": [0, 8]}),
        _tensors(a={"dtype": "F32"}),
        _tensors(a=3),
    ],
)
def test_damaged_files(tmp_path, content):
    (tmp_path / "x").write_bytes(content)
    error = _error(tmp_path / "x", tmp_path / "out")
    assert str(tmp_path / "x") in error and "\n" not in error
    assert not (tmp_path / "out").exists()


def test_damage_anywhere_in_a_header_is_refused_or_harmless(tmp_path):
    whole = safetensors.numpy.save(
        {name: np.arange(4, dtype=np.float32) for name in ("first", "second")}, {"format": "pt"}
    )
    random, refused = np.random.default_rng(0), 0
    file = tmp_path / "x"
    for _ in range(300):
        damaged = bytearray(whole)
        for position in random.integers(len(whole) - 32, size=random.integers(1, 4)):
            damaged[position] = random.integers(256)
        file.write_bytes(damaged[: random.integers(1, 2 * len(whole))])
        try:
            arrays = convert.read_checkpoint(file).arrays
        except ValueError:
            refused += 1
        else:
            assert sum(array.nbytes for array in arrays.values()) <= file.stat().st_size
    assert refused > 100


def test_any_flipped_bit_of_a_file_with_checksums_is_refused_or_harmless(efficient, tmp_path):
    """Those that we write, and those of torch.save, of which every entry has its CRC."""
    program.main([str(_saved(efficient, tmp_path / "x.pt")), str(tmp_path / "export")])
    program.main([str(tmp_path / "export"), str(tmp_path / "x.safetensors")])
    rng = np.random.default_rng(0)
    for name in ("x.pt", "x.safetensors"):
        whole, refused = (tmp_path / name).read_bytes(), 0
        for bit in rng.integers(8 * len(whole), size=40):
            damaged = bytearray(whole)
            damaged[bit // 8] ^= 1 << bit % 8
            (tmp_path / name).write_bytes(damaged)
            try:
                assert_same_bits(convert.read_checkpoint(tmp_path / name).arrays, efficient)
            except UserError as error:
                refused += 1
                assert name in str(error) and "\n" not in str(error)
        assert refused > 30


def _saved(arrays, file):
    torch_zip.save(file, arrays)
    return file


def test_home_directory(efficient, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    safetensors.numpy.save_file(efficient, tmp_path / "x.safetensors")
    torch_zip.save(tmp_path / "x.pt", efficient)
    program.main(["~/x.safetensors", "~/deep/export"])
    program.main(["~/deep/export", "~/deep/back.safetensors"])
    convert.export_weights("~/deep/export", "~/again.safetensors")
    for file in ("deep/back.safetensors", "again.safetensors"):
        assert_same_bits(safetensors.numpy.load_file(tmp_path / file), efficient)
    assert_same_bits(lvsm_jax.torch_file.load("~/x.pt"), efficient)
