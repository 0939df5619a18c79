"""Frozen teachers: equal to the published programs, block by block, from any published file."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from jax.sharding import PartitionSpec as P

from lvsm_jax.common.errors import MissingWeightsError
from lvsm_jax.common.tree import named_leaves
from lvsm_jax.frozen import dino
from lvsm_jax.frozen.dino import TEACHERS, Dino, DinoConfig, resize_bicubic
from lvsm_jax.frozen.dino_weights import find_teacher, from_state_dict, load_teacher
from lvsm_jax.parallel.mesh import MeshConfig, make_mesh
from tests.helpers import torch_zip

GOLDEN = DinoConfig(num_layers=3, width=96, head_dim=32)
TINY_DINOV2 = DinoConfig(
    num_layers=2,
    width=32,
    head_dim=16,
    patch_size=4,
    num_special=1,
    position_grid=5,
    norm_eps=1e-6,
    image_size=24,
)

block_outputs = jax.jit(Dino.block_outputs, static_argnums=2)


@pytest.fixture(scope="module")
def golden(goldens):
    return dict(np.load(goldens / "dinov3.npz"))


@pytest.fixture(scope="module")
def state_dict(golden):
    prefix = "state_dict/"
    return {k.removeprefix(prefix): v for k, v in golden.items() if k.startswith(prefix)}


@pytest.fixture(scope="module")
def images(golden):
    """The golden's, before their normalisation."""
    images = golden["images"] * np.float32(dino._DEVIATION) + np.float32(dino._MEAN)
    return jnp.asarray(images)


def hugging_face(state_dict, blocks):
    """The same weights as Hugging Face names them."""
    renamed = {}
    for name, array in state_dict.items():
        if "attn.qkv" in name:
            for letter, part in zip("qkv", np.split(array, 3), strict=True):
                renamed[name.replace("attn.qkv", f"attention.{letter}_proj")] = part
        else:
            renamed[name] = array
    for old, new in {
        r"cls_token|mask_token": r"embeddings.\g<0>",
        r"storage_tokens": "embeddings.register_tokens",
        r"patch_embed\.proj": "embeddings.patch_embeddings",
        r"blocks\.": blocks,
        r"attn\.proj": "attention.o_proj",
        r"ls([12])\.gamma": r"layer_scale\1.lambda1",
        r"mlp\.fc1": "mlp.up_proj",
        r"mlp\.fc2": "mlp.down_proj",
    }.items():
        renamed = {re.sub(old, new, name): array for name, array in renamed.items()}
    unknown = r".*k_proj\.bias|.*bias_mask|rope_embed.*"
    return {name: array for name, array in renamed.items() if not re.fullmatch(unknown, name)}


def assert_same(teacher, other):
    ours, theirs = named_leaves(teacher), named_leaves(other)
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


def patches(golden, block):
    """What comes after class and storage tokens, on the grid."""
    return golden[f"block_{block}"][:, 5:].reshape(2, 4, 6, 96)


def test_golden_block_by_block(golden, state_dict, images):
    outputs = block_outputs(from_state_dict(state_dict, GOLDEN), images, (3, 1, 2, 1))
    for block, output in zip((3, 1, 2, 1), outputs, strict=True):
        np.testing.assert_allclose(output, patches(golden, block), atol=1e-4)


def test_blocks_that_nobody_reads_are_not_kept(golden, state_dict, images):
    teacher = from_state_dict(state_dict, GOLDEN, num_blocks=2)
    assert teacher.blocks.qkv.kernel.shape == (2, 96, 288)
    np.testing.assert_allclose(
        block_outputs(teacher, images, (2,))[0], patches(golden, 2), atol=1e-4
    )
    for blocks in [(3,), (0,), ()]:
        with pytest.raises(ValueError, match="has 1 to 2"):
            teacher.block_outputs(images, blocks)
    for blocks in (4, -1):
        with pytest.raises(ValueError, match=f"{blocks} blocks of a teacher that has 3"):
            from_state_dict(state_dict, GOLDEN, num_blocks=blocks)
    with pytest.raises(ValueError, match="multiples of the patch size 16"):
        teacher.block_outputs(images[:, :60], (1,))


def test_bfloat16(golden, state_dict, images):
    teacher = from_state_dict(state_dict, dataclasses.replace(GOLDEN, dtype="bfloat16"))
    for name, leaf in named_leaves(teacher).items():
        assert leaf.dtype == ("bfloat16" if name.endswith("kernel") else "float32"), name
    (output,) = block_outputs(teacher, images, (3,))
    assert output.dtype == jnp.float32
    error = np.abs(output - patches(golden, 3))
    assert 1e-4 < error.mean() < 0.02


def test_every_published_kind_of_file(golden, state_dict, tmp_path, monkeypatch):
    monkeypatch.setitem(TEACHERS, "dinov3_vitb16", GOLDEN)
    expected = from_state_dict(state_dict, GOLDEN)
    torch_zip.save(tmp_path / "original.pth", state_dict)
    assert_same(load_teacher(tmp_path / "original.pth", "dinov3_vitb16"), expected)
    for blocks in ("layer.", "model.layer."):
        arrays = hugging_face(state_dict, blocks)
        if blocks == "model.layer.":
            assert sorted(arrays) == sorted(golden["hf_names"])
        file = tmp_path / "model.safetensors"
        safetensors.numpy.save_file(
            {name: np.ascontiguousarray(array) for name, array in arrays.items()}, file
        )
        assert_same(load_teacher(file, "dinov3_vitb16"), expected)
    with pytest.raises(ValueError, match=r"model.safetensors as dinov2_vitb14: weights that do"):
        load_teacher(file, "dinov2_vitb14")


def test_keys_have_no_bias_whatever_the_file_holds(state_dict):
    arrays = dict(state_dict)
    for block in range(3):
        arrays[f"blocks.{block}.attn.qkv.bias"] = array = arrays[
            f"blocks.{block}.attn.qkv.bias"
        ].copy()
        assert array[96:192].any()
        array[96:192] = np.nan
        arrays[f"blocks.{block}.attn.qkv.bias_mask"] = np.full(288, np.nan, np.float32)
    del arrays["mask_token"], arrays["norm.weight"]  # not read
    teacher = from_state_dict(arrays, GOLDEN)
    assert_same(teacher, from_state_dict(state_dict, GOLDEN))
    assert not teacher.blocks.qkv.bias[:, 96:192].any()
    assert np.abs(teacher.blocks.qkv.bias[...]).min(axis=0)[:96].all()


def test_periods_are_the_files(state_dict):
    """The authors' are rounded to bfloat16, and that is what their program computes with."""
    rounded = dino.rope_periods(64).astype(ml_dtypes.bfloat16)[:8]
    teacher = from_state_dict(state_dict | {"rope_embed.periods": rounded}, GOLDEN)
    np.testing.assert_array_equal(teacher.periods[...], rounded.astype(np.float32))


def test_weights_that_do_not_fit_are_named(state_dict):
    arrays = state_dict | {
        "surplus": np.zeros(2, np.float32),
        "storage_tokens": np.zeros((1, 5, 96), np.float32),
        "blocks.2.attn.proj.bias": np.full(96, np.inf, np.float32),
        "blocks.0.attn.qkv.bias": np.zeros(96, np.float32),
    }
    del arrays["blocks.1.ls1.gamma"]
    with pytest.raises(ValueError) as error:
        from_state_dict(arrays, GOLDEN)
    assert str(error.value).splitlines() == [
        "weights that do not fit:",
        "  missing blocks.1.ls1.gamma (96,)",
        "  surplus surplus (2,)",
        "  storage_tokens has shape (1, 5, 96), expected (1, 4, 96)",
        "  blocks.0.attn.qkv.bias has shape (96,), expected (288,)",
        "  blocks.2.attn.proj.bias holds values that are not finite",
    ]
    with pytest.raises(ValueError, match=r"has shape .*\n  and 36 more$"):
        from_state_dict(state_dict, DinoConfig(num_layers=3, width=64, head_dim=32))
    arrays = hugging_face(state_dict, "layer.")
    del arrays["layer.2.attention.v_proj.bias"]
    with pytest.raises(ValueError, match=r"missing layer.2.attention.v_proj.bias \(96,\)$"):
        from_state_dict(arrays, GOLDEN)


@pytest.mark.parametrize("name", TEACHERS)
def test_missing_file_says_where_to_get_it_and_where_to_put_it(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path, place in [(tmp_path / "no.pth", r"no\.pth"), ("", rf"weights/{name}_pretrain\S*pth")]:
        with pytest.raises(MissingWeightsError) as error:
            find_teacher(path, name)
        assert re.search(rf"teacher {name}, and \S*{place} is missing", str(error.value))
        assert re.search(rf"get {name}_pretrain\S*\.pth by", str(error.value))
        assert f"github.com/facebookresearch/{name[:6]}" in str(error.value)
        assert "or name its place in --config.repa.teacher_weights" in str(error.value)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [  # of transformers' models
        ("dinov3_vits16", 21_596_544),
        ("dinov3_vitb16", 85_660_416),
        ("dinov3_vitl16", 303_129_600),
        ("dinov2_vits14", 22_056_576),
        ("dinov2_vitb14", 86_580_480),
        ("dinov2_vitl14", 304_368_640),
    ],
)
def test_published_sizes(name, parameters):
    config = TEACHERS[name]
    leaves = named_leaves(jax.eval_shape(lambda: Dino(config, rngs=dino.nnx.Rngs(0))))
    ours = sum(leaf.size for leaf in leaves.values())
    theirs = parameters - 3 * config.width  # mask token and final norm
    if config.position_grid:
        theirs -= config.width  # the class token's position
    else:
        theirs += config.num_layers * config.width + 16  # keys' biases, and the periods
    assert ours == theirs


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (8, [-0.0928345, 0.1875610, 1.1957397, 3.3948364, 3.4958496, 1.9016113, 4.6894531]),
        (3, [0.1481490, 4.0, 5.3148127]),
        (5, [0, 1, 4, 2, 7]),
    ],
)
def test_bicubic_as_torch(size, expected):
    """Of `interpolate(..., mode="bicubic")`, which `jax.image.resize` is not."""
    line = jnp.array([0.0, 1, 4, 2, 7]).reshape(1, 1, 5, 1)
    for resized in (
        resize_bicubic(line, 1, size),
        resize_bicubic(line.transpose(0, 2, 1, 3), size, 1),
    ):
        np.testing.assert_allclose(resized.reshape(-1)[: len(expected)], expected, atol=5e-6)
    other = jax.image.resize(line, (1, 1, size, 1), "cubic")
    assert np.abs(other - resize_bicubic(line, 1, size)).max() > 0.05 or size == 5


def test_features_of_images_of_any_size(state_dict):
    teacher = from_state_dict(state_dict, dataclasses.replace(GOLDEN, image_size=64))
    images = jnp.asarray(np.random.default_rng(0).uniform(size=(2, 24, 48, 3)), jnp.float32)
    seen = resize_bicubic(images, 48, 96)  # as many pixels as 64², and the shape
    (expected,) = block_outputs(teacher, seen, (2,))
    (features,) = jax.jit(Dino.features, static_argnums=(2, 3))(teacher, images, (2,), (3, 6))
    np.testing.assert_allclose(features, expected, atol=1e-5)
    (coarse,) = jax.jit(Dino.features, static_argnums=(2, 3))(teacher, images, (2,), (2, 4))
    np.testing.assert_allclose(coarse, resize_bicubic(expected, 2, 4), atol=1e-5)


def test_size_that_a_teacher_sees():
    for size in (256, 512):
        assert TEACHERS["dinov3_vitb16"].input_size(size, size) == (512, 512)
        assert TEACHERS["dinov2_vitb14"].input_size(size, size) == (336, 336)
    assert TEACHERS["dinov3_vitb16"].input_size(256, 448) == (384, 672)
    assert TEACHERS["dinov3_vitb16"].input_size(1, 10_000) == (16, 51200)


def test_eight_devices_compute_as_one(state_dict, images):
    """With sharding in types, and inside of `shard_map`, where losses call it."""
    teacher = from_state_dict(state_dict, GOLDEN)
    images = jnp.tile(images, (4, 1, 1, 1))
    expected = block_outputs(teacher, images, (1, 3))
    mesh = make_mesh(MeshConfig(4, 2))
    with jax.set_mesh(mesh):
        cut = jax.device_put(images, jax.NamedSharding(mesh, P(("data", "fsdp"))))
        whole = jax.device_put(teacher, jax.NamedSharding(mesh, P()))
        mapped = jax.shard_map(
            lambda teacher, images: teacher.block_outputs(images, (1, 3)),
            in_specs=(P(), P(("data", "fsdp"))),
            out_specs=P(("data", "fsdp")),
            check_vma=False,
        )
        for outputs in (block_outputs(whole, cut, (1, 3)), jax.jit(mapped)(whole, cut)):
            for output, alone in zip(outputs, expected, strict=True):
                assert output.sharding.spec[0] == ("data", "fsdp")
                np.testing.assert_allclose(output, alone, atol=1e-5)


def transformers_case(config, images):
    """A model of transformers' with random weights, and its outputs after each block."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    sizes = {
        "hidden_size": config.width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.width // config.head_dim,
        "patch_size": config.patch_size,
    }
    torch.manual_seed(0)
    if config.position_grid:
        side = config.position_grid * config.patch_size
        model = transformers.Dinov2Model(transformers.Dinov2Config(image_size=side, **sizes))
    else:
        model = transformers.DINOv3ViTModel(
            transformers.DINOv3ViTConfig(
                intermediate_size=4 * config.width, num_register_tokens=4, **sizes
            )
        )
    outputs = []
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.3)
    for module in model.modules():
        if type(module).__name__ in ("Dinov2Layer", "DINOv3ViTLayer"):
            module.register_forward_hook(lambda module, args, output: outputs.append(output))
    normalised = (images - np.float32(dino._MEAN)) / np.float32(dino._DEVIATION)
    with torch.no_grad():
        model.eval()(torch.from_numpy(normalised.transpose(0, 3, 1, 2)))
    assert len(outputs) == config.num_layers
    arrays = {name: array.numpy() for name, array in model.state_dict().items()}
    return arrays, [output.numpy()[:, config.num_special :] for output in outputs]


@pytest.mark.parametrize(
    ("config", "grid"),
    [
        (dataclasses.replace(GOLDEN, width=64, patch_size=4), (5, 7)),
        (TINY_DINOV2, (5, 5)),
        (TINY_DINOV2, (7, 4)),
        (TINY_DINOV2, (4, 11)),
    ],
)
def test_transformers(config, grid):
    size = (2, grid[0] * config.patch_size, grid[1] * config.patch_size, 3)
    images = np.random.default_rng(1).uniform(size=size).astype(np.float32)
    arrays, expected = transformers_case(config, images)
    blocks = tuple(range(1, config.num_layers + 1))
    teacher = from_state_dict(arrays, config)
    outputs = block_outputs(teacher, jnp.asarray(images), blocks)
    for output, theirs in zip(outputs, expected, strict=True):
        scale = np.abs(theirs).max()
        np.testing.assert_allclose(output.reshape(theirs.shape), theirs, atol=1e-5 * scale)
    if config.position_grid:  # as the published files have them
        published = {
            re.sub(r"attention\.o_proj", "attention.output.dense", name): array
            for name, array in arrays.items()
        }
        for letter, word in {"q": "query", "k": "key", "v": "value"}.items():
            published = {
                name.replace(f"attention.{letter}_proj", f"attention.attention.{word}"): array
                for name, array in published.items()
            }
        assert_same(from_state_dict(published, config), teacher)


def test_dinov2_under_the_authors_names():
    rng = np.random.default_rng(0)
    width, positions = TINY_DINOV2.width, 1 + TINY_DINOV2.position_grid**2
    shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, positions, width),
        "mask_token": (1, width),
        "patch_embed.proj.weight": (width, 3, 4, 4),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
    }
    for i in range(2):
        shapes |= {
            f"blocks.{i}.{name}": shape
            for name, shape in {
                "norm1.weight": (width,),
                "norm1.bias": (width,),
                "attn.qkv.weight": (3 * width, width),
                "attn.qkv.bias": (3 * width,),
                "attn.proj.weight": (width, width),
                "attn.proj.bias": (width,),
                "ls1.gamma": (width,),
                "norm2.weight": (width,),
                "norm2.bias": (width,),
                "mlp.fc1.weight": (4 * width, width),
                "mlp.fc1.bias": (4 * width,),
                "mlp.fc2.weight": (width, 4 * width),
                "mlp.fc2.bias": (width,),
                "ls2.gamma": (width,),
            }.items()
        }
    arrays = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    teacher = from_state_dict(arrays, TINY_DINOV2)
    np.testing.assert_array_equal(
        teacher.blocks.qkv.bias[...], [arrays[f"blocks.{i}.attn.qkv.bias"] for i in range(2)]
    )
    with pytest.raises(ValueError, match="surplus register_tokens"):  # another network
        from_state_dict(arrays | {"register_tokens": np.zeros(4, np.float32)}, TINY_DINOV2)
