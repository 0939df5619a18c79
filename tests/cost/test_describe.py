"""What a model is said to cost: published numbers, bytes by hand, and the program."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import jax
import pytest
from flax import nnx

import lvsm_jax
from lvsm_jax.cost import memory
from lvsm_jax.cost.model_cost import count_costs, text
from lvsm_jax.models.architectures import abstract_model, new_model
from lvsm_jax.programs.describe import main
from lvsm_jax.training.losses import LossConfig
from lvsm_jax.training.optimizer import OptimizerConfig
from lvsm_jax.training.train_state import TrainingConfig

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
BASE = f"--config={REPOSITORY / 'configs' / 'base.py'}"
CONFIG = f"--config={REPOSITORY / 'configs' / 'quickstart.py'}"

EFFICIENT = lvsm_jax.EfficientLVSMConfig
DECODER_ONLY = lvsm_jax.LVSMDecoderOnlyConfig
ENCODER_DECODER = lvsm_jax.LVSMEncoderDecoderConfig
TINY = {"width": 32, "head_dim": 16, "patch_size": 4, "attention": "xla"}
SCENE = {"views": 2, "targets": 3, "height": 8, "width": 12}
N, D = 6, 32  # tokens a view and channels of `TINY` in `SCENE`


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    """Of a tiny model that was trained on 3 inputs and 5 targets of 16 px."""
    path = tmp_path_factory.mktemp("exports") / "export"
    model = new_model(DECODER_ONLY(num_layers=2, **TINY), nnx.Rngs(0))
    data = {"num_inputs": 3, "num_targets": 5, "image_height": 16, "square_crop": True}
    lvsm_jax.save(model, path, about={"config": {"data": data}})
    return path


def test_the_program_reproduces_the_published_numbers():
    """It loads no TensorFlow, which is slow, and leaves the name of its flag to other programs."""
    program = (
        "import sys; from lvsm_jax.programs.describe import main; main(); from absl import flags; "
        "assert 'tensorflow' not in sys.modules and 'config' not in flags.FLAGS"
    )
    options = ["--config=configs/re10k_256.py", "--views=6", "--targets=7", "--json=-"]
    done = subprocess.run(
        [sys.executable, "-c", program, *options],
        cwd=REPOSITORY,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout)
    assert counts["parameters"]["total"] == 199_070_208
    assert {kind: round(n / 1e9) for kind, n in counts["macs"]["forward"].items()} == {
        "linear": 1325,
        "attention": 1063,
    }
    assert counts["bytes"]["kv_cache_per_input_view"] == 2 * 12 * 1024 * 768 * 2
    state = counts["bytes"]["training_state"]
    assert state["weights"] == state["gradients"] == 4 * 199_070_208
    assert 0 < state["optimizer"] - 2 * state["weights"] < 100  # two moments, and counters
    assert state["averaged_weights"] == 0


@pytest.mark.parametrize(
    ("config", "millions"),
    [(EFFICIENT(), 199.07), (DECODER_ONLY(), 170.80), (ENCODER_DECODER(), 173.15)],
)
def test_parameters_by_part(config, millions):
    parts = memory.parameters(config)
    assert round(sum(parts.values()) / 1e6, 2) == millions
    assert parts["input_tokenizer"] == 9 * 64 * 768
    first, *_, last = parts
    assert (first, last) == ("input_tokenizer", "head")


def test_text_of_lvsm_decoder_only():
    shown = text(count_costs(DECODER_ONLY(), views=6, targets=7, height=256, width=256))
    rows = {line.split("  ")[0]: line.split()[-4:] for line in shown.splitlines()}
    layers = rows["layers over all inputs and one target"]
    assert layers[:2] == ["8,523.4", "13,258.6"]
    assert rows["total"][-3:] != layers[:3]  # the rows nobody reads are not computed
    assert "No KV cache" in shown
    assert "170.80" in shown


def test_averaged_weights_are_counted():
    model = EFFICIENT(num_layers=2, **TINY)
    training = TrainingConfig(model, OptimizerConfig(ema_decay=0.9), LossConfig(), num_steps=1)
    state = memory.training_state_bytes(training)
    assert (
        state["averaged_weights"] == state["weights"] == 4 * sum(memory.parameters(model).values())
    )


@pytest.mark.parametrize("decoder_attention", ["self_cross", "cross"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_kv_cache_is_what_the_decoder_makes(decoder_attention, dtype):
    config = EFFICIENT(num_layers=3, decoder_attention=decoder_attention, dtype=dtype, **TINY)
    views = jax.ShapeDtypeStruct((3, 1, 1, N, D), dtype)
    made = jax.eval_shape(
        jax.vmap(lambda block, views: block.keys_values(views)),
        abstract_model(config).decoder,
        views,
    )
    expected = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(made))
    assert memory.kv_cache_bytes(config, height=8, width=12) == expected


@pytest.mark.parametrize(
    ("config", "scene", "view"),
    [
        (EFFICIENT(num_layers=3, **TINY), 3 * 2 * N * D * 4, 3 * N * D * 4),
        (EFFICIENT(num_layers=3, co_refinement=False, **TINY), 2 * N * D * 4, N * D * 4),
        (DECODER_ONLY(num_layers=3, dtype="bfloat16", **TINY), 2 * N * D * 2, N * D * 2),
        (ENCODER_DECODER(num_layers=3, num_latents=10, **TINY), 10 * D * 4, 0),
    ],
)
def test_what_encode_returns(config, scene, view):
    found = memory.encoded_bytes(config, views=2, height=8, width=12)
    assert dataclasses.astuple(found) == (scene, view, 0)


def of_one_layer(config):
    """Activations that one more layer adds: layers alone, without tokenizers and head."""
    few, many = (
        memory.activation_bytes(dataclasses.replace(config, num_layers=layers), **SCENE)
        for layers in (3, 4)
    )
    pairs = zip(dataclasses.astuple(few), dataclasses.astuple(many), strict=True)
    return tuple(b - a for a, b in pairs)


@pytest.mark.slow
def test_activations_of_a_layer_with_full_remat():
    """Each layer's input; Efficient-LVSM's decoder also keeps what it reads of the encoder."""
    v, t = SCENE["views"], SCENE["targets"]
    token = D * 2  # bytes, of bfloat16
    options = {"remat": "full", "dtype": "bfloat16", **TINY}
    views = N * token
    assert of_one_layer(EFFICIENT(**options)) == ((2 * v + t) * views, 2 * views, views)
    # Every target has a sequence of its own, with all inputs.
    assert of_one_layer(DECODER_ONLY(**options)) == (
        t * (v + 1) * views,
        t * views,
        (v + 1) * views,
    )
    latents = 10 * token
    encoder_decoder = ENCODER_DECODER(num_latents=10, **options)
    assert of_one_layer(encoder_decoder) == (
        (latents + v * views) + t * (latents + views),
        views,
        latents + views,
    )


def test_activations_without_remat_hold_the_scores():
    """The plain kernel keeps at least a number for each pair of tokens, fused ones do not."""
    config = EFFICIENT(num_layers=2, **(TINY | {"patch_size": 8}))
    scene = {"views": 2, "targets": 2, "height": 64, "width": 128}
    kept = {
        kernel: memory.activation_bytes(
            dataclasses.replace(config, attention=kernel), **scene
        ).scene
        for kernel in ("auto", "cudnn", "xla")
    }
    pairs = 128**2 * (2 + 2 + 4)
    assert kept["auto"] == kept["cudnn"] < kept["xla"] - 4 * 2 * 2 * pairs


def test_targets_in_turn_keep_as_much_as_at_once(monkeypatch):
    """Which is why they are counted at once, whatever the configuration says."""
    monkeypatch.setattr(memory, "countable", lambda config, **size: config)
    config = DECODER_ONLY(num_layers=2, targets_at_once=1, remat="full", **TINY)
    at_once = dataclasses.replace(config, targets_at_once=0)
    in_turn = memory.activation_bytes(config, **SCENE)
    assert in_turn == memory.activation_bytes(at_once, **SCENE)


def test_config_fields_and_sizes_from_the_command_line(tmp_path, capsys):
    file = tmp_path / "costs.json"
    main([CONFIG, "--config.model.num_layers=2", "--views=3", "--height=32", f"--json={file}"])
    counts = json.loads(file.read_text())
    assert counts["model"]["num_layers"] == 2
    assert [counts[k] for k in ("views", "targets", "height", "width")] == [3, 4, 32, 32]
    assert counts["macs"]["one_more_input_view"]["linear"] > 0
    assert counts["bytes"]["activations"]["input_view"] > 0
    shown = capsys.readouterr().out
    assert "2 layers of width 128" in shown and "training state" in shown
    assert f"{counts['parameters']['total']:,}" in shown


def test_export(export, capsys):
    """Its model, and the views that it was trained on; the training state is not known."""
    main([str(export), "--json=-"])
    counts = json.loads(capsys.readouterr().out)
    assert counts["architecture"] == "LVSMDecoderOnly"
    assert [counts[k] for k in ("views", "targets", "height", "width")] == [3, 5, 16, 16]
    assert counts["bytes"]["training_state"] is None
    assert counts["bytes"]["kv_cache_per_input_view"] is None


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ([], "give either --config=FILE or an EXPORT directory"),
        ([CONFIG, "some/export"], "give either --config=FILE or an EXPORT directory"),
        (["some/export"], "some/export is no export"),
        (
            ["some/export", "--config.model.width=64"],
            "--config.model.width=64 sets a field of a config file",
        ),
        (["--config=no/such.py"], "there is no config file no/such.py"),
        ([f"{BASE}:x"], "architecture is 'x', expected one of"),
        ([CONFIG, "--viws=2"], r"there is no argument --viws=2; did you mean --views\?"),
        ([CONFIG, "--views=0"], "views is 0, expected at least 1"),
        ([CONFIG, "--height=33"], "33×33 pixels are no multiples of the patch size 8"),
        (
            [CONFIG, "--config.model.layers=2"],
            "the config lacks a field of --config.model.layers=2: .*num_layers",
        ),
        ([CONFIG, "--config.model.num_layers=x"], "num_layers"),
        ([CONFIG, "--config.model.remat=x"], "model.remat is 'x', expected one of"),
        ([CONFIG, "--config.data.square_crop=False"], "give --width"),
    ],
)
def test_errors_are_one_line(arguments, error):
    with pytest.raises(SystemExit, match=error) as raised:
        main(arguments)
    message = raised.value.code
    assert message.startswith("error: ") and "\n" not in message
