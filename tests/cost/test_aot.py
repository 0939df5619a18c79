"""Programs for devices that are not here: the sums on any machine, the compilers where they are."""

import dataclasses
import importlib.util
import json

import jax
import pytest

from lvsm_jax.common.config import DataConfig
from lvsm_jax.cost.chips import CHIPS, Work, estimate
from lvsm_jax.cost.step_report import advice_text, rasterizer_turns
from lvsm_jax.cost.topology import Case, advice, least_sent, topology_mesh
from lvsm_jax.models.base import ModelConfig
from lvsm_jax.models.efficient_lvsm import EfficientLVSMConfig
from lvsm_jax.models.gs_lrm import GSLRMConfig
from lvsm_jax.parallel.mesh import MeshConfig, make_mesh
from lvsm_jax.programs import aot
from lvsm_jax.training.losses import LossConfig
from lvsm_jax.training.optimizer import OptimizerConfig
from lvsm_jax.training.train_state import TrainingConfig

has_compiler = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="no TPU compiler here: pip install -c constraints.txt -e '.[tpu]'",
)
has_gpu_compiler = pytest.mark.skipif(
    importlib.util.find_spec("jax_plugins.xla_cuda12") is None
    if importlib.util.find_spec("jax_plugins")
    else True,
    reason="no GPU compiler here: pip install -c constraints.txt -e '.[cuda]'",
)
TINY = EfficientLVSMConfig(
    num_layers=2, width=256, head_dim=64, patch_size=8, dtype="bfloat16", remat="full"
)


def case(mesh: MeshConfig, batch: int = 8, model: ModelConfig = TINY, **data) -> Case:
    training = TrainingConfig(model, OptimizerConfig(), LossConfig(), num_steps=10)
    sizes = {"image_height": 128, "num_inputs": 2, "num_targets": 2} | data
    return Case("v5e:2x4", mesh, training, DataConfig(path="", **sizes), batch)


def kernels(model: EfficientLVSMConfig) -> int:
    """Bytes of the weights that are cut, in bfloat16."""
    layer = (4 + 8) + (4 + 4 + 8)  # in width²: encoder, and decoder
    outside = (9 + 6 + 3) * model.patch_size**2 * model.width
    return 2 * (model.num_layers * layer * model.width**2 + outside)


def test_least_bytes_of_weights_and_gradients():
    asked = case(MeshConfig(fsdp=4))
    sent = least_sent(asked, make_mesh(asked.mesh))
    cut = kernels(TINY)
    tokenizers = 2 * (9 + 6) * TINY.patch_size**2 * TINY.width  # nothing goes back through them
    assert sent["weights"] == (2 * cut - tokenizers) * 3 / 4
    norms = 2 * TINY.num_layers * 6 * TINY.head_dim  # of queries and keys, everywhere
    everywhere = 2 * norms * 7 / 8
    assert sent["gradients"] == cut * 3 / 4 + 2 * cut / 4 / 2 + everywhere
    assert "views" not in sent
    alone = case(MeshConfig())
    assert least_sent(alone, make_mesh(alone.mesh))["weights"] == 0


def test_least_bytes_of_views_do_not_grow_with_them():
    few, many = (
        least_sent(asked, make_mesh(asked.mesh))["views"]
        for asked in (case(MeshConfig(view=2)), case(MeshConfig(view=2), num_inputs=6, num_views=8))
    )
    tokens, scenes = 2 * 16 * 16, 8 // 4
    assert few == many == TINY.num_layers * 5 * scenes * tokens * TINY.width * 2 / 2


def test_loops_of_a_rasteriser_are_counted_with_all_their_room():
    asked = case(MeshConfig(), model=GSLRMConfig(num_layers=2, width=256, dtype="bfloat16"))
    # 4 pairs for each pixel of two inputs, 32 a block, and a block more for each tile: 64 at once.
    blocks = 4 * 2 * 128**2 // 32 + (128 // 16) ** 2
    assert rasterizer_turns(asked, make_mesh(asked.mesh)) == blocks // 64
    other = case(MeshConfig())
    assert rasterizer_turns(other, make_mesh(other.mesh)) is None


def test_estimate_is_the_slowest_part():
    chip = CHIPS["v5e"]
    work = Work(
        model_flops=chip.peak,
        linear_flops=chip.peak,
        attention_flops=chip.peak / 2,
        head_dim=64,
        hbm_bytes=int(chip.hbm_bandwidth * 4),
        sent_bytes=chip.interconnect / 4,
        kernel_seconds=4.0,
        link_seconds=0.5,
    )
    guess = estimate(chip, work)
    assert (guess.arithmetic, guess.hbm, guess.interconnect) == (2, 4, 0.5)
    assert (guess.roofline, guess.roofline_mfu) == (4, 1 / 4)
    assert (guess.sum, guess.sum_mfu) == (4 + 0.5, 1 / 4.5)


def test_peaks_are_those_of_the_matrix_units():
    """Two FLOPs for each cell and cycle; the units of a chip are 4 or 8."""
    for name, chip in CHIPS.items():
        units = chip.peak / (2 * chip.matrix_side**2 * chip.clock)
        assert abs(units - round(units)) < 0.02 and round(units) in (4, 8), name


def test_advice_recomputes_more_the_more_scenes_there_are():
    model = dataclasses.replace(TINY, width=768, num_layers=12)
    found = []
    for batch in (8, 64, 512, 8192):
        asked = case(MeshConfig(), batch, model, image_height=256)
        found.append(advice(asked, make_mesh(asked.mesh)))
    fitting = found[0]["scenes_at_once"]
    assert 0 < fitting["none"] < fitting["dots"] < fitting["full"]
    assert [f["remat"] for f in found[:1]] == ["none"] and found[-1]["remat"] == "full"
    parts = [f["grad_accumulation"] for f in found]
    assert parts == sorted(parts) and parts[0] == 1 and parts[-1] > 1
    assert 8192 / 8 / parts[-1] <= fitting["full"]


def test_advice_where_nothing_fits():
    asked = case(MeshConfig(), 8, dataclasses.replace(TINY, width=8192, num_layers=48))
    found = advice(asked, make_mesh(asked.mesh))
    assert found["remat"] is None
    assert "raise mesh.fsdp" in advice_text(found)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--topology=v9:2x2"], "expected one of"),
        (["--topology=h100:8"], "expected hosts x GPUs of each"),
        (["--topology=a100:0x8"], "expected hosts x GPUs of each"),
        (["--topology=v5e:2x2", "--mesh=4"], "expected data,fsdp,view"),
        (["--topology=v5e:2x2", "--batch=0"], "expected at least 1"),
        (["--topology=v5e:2x2", "--frobnicate"], "there is no argument --frobnicate"),
        (["--topology=v5e:2x2", "--output=/nowhere/a.json"], "no directory"),
    ],
)
def test_errors_in_a_line(arguments, message):
    with pytest.raises(SystemExit, match=message):
        aot.main(["--config=configs/re10k_256.py", *arguments])


@has_compiler
def test_unknown_topology():
    with pytest.raises(ValueError, match="v5e:3x5x7"):
        topology_mesh("v5e:3x5x7", MeshConfig())


@has_compiler
def test_mesh_that_the_torus_does_not_have():
    with pytest.raises(ValueError, match="data=8 × fsdp=8"):
        topology_mesh("v4:4x4x4", MeshConfig(data=8, fsdp=8))


@has_compiler
def test_compiles_a_small_model_for_a_small_pod(tmp_path, capsys):
    """The whole step with the TPU's attention kernel, and nothing sent twice."""
    output = tmp_path / "aot.json"
    tiny = {"num_layers": 2, "width": 256, "remat": "full", "unroll": False}
    arguments = [
        "--config=configs/re10k_256.py",
        "--topology=v5e:2x4",
        "--mesh=2,4,1",
        "--batch=8",
        *(f"--config.model.{name}={value}" for name, value in tiny.items()),
        "--config.data.image_height=128",
        "--config.data.num_targets=2",
        "--config.data.num_views=4",
        f"--output={output}",
    ]
    with jax.default_matmul_precision("default"):  # the kernel takes bfloat16 at no other
        aot.main(arguments)
    result = json.loads(output.read_text())
    assert result["fits"] and result["chips"] == 8
    assert sum(result["kernels"].values()) == 3 * 2 * 3  # forward, again, backward
    assert 0.99 < result["sent_over_least"] < 1.1
    assert 0 < result["estimate"]["roofline_mfu"] < 1
    assert "MFU" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="--overwrite"):
        aot.main(["--config=configs/re10k_256.py", "--topology=v5e:2x4", f"--output={output}"])
    assert jax.default_backend() == "cpu"
