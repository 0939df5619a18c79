"""Decoupled halves: the published program's numbers, what is apart, and all that models do."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import lvsm_jax
from lvsm_jax.common.errors import UserError
from lvsm_jax.common.tree import from_named, map_named, named_leaves
from lvsm_jax.cost.flops import stages
from lvsm_jax.models.architectures import abstract_model, new_model
from lvsm_jax.models.layers import broadcast_scenes
from lvsm_jax.models.lvsm import all_tokens
from lvsm_jax.models.prope import Positions, SequencePositions, view_positions
from lvsm_jax.weights import convert, torch_names

CASES = ("decoder", "decoder_film", "decoder_film_prope", "encoder_decoder_film")
QUICK = [pytest.param(x, marks=pytest.mark.slow) for x in CASES[:3]] + [*CASES[3:]]
SMALL = {"num_layers": 2, "width": 32, "head_dim": 8}


@pytest.fixture(scope="module")
def golden(goldens):
    return dict(np.load(goldens / "ssd.npz"))


def weights_of(golden, case):
    """Of the program, whose tokenizers are the second part of a sequence."""
    prefix = f"{case}/state_dict/"
    names = {key: key.removeprefix(prefix) for key in golden if key.startswith(prefix)}
    return {
        name.replace("_tokenizer.", "_tokenizer.1."): golden[key] for key, name in names.items()
    }


def arguments_of(golden, case):
    """Input images, input cameras, target cameras, and the targets' images."""
    which, v = str(golden[f"{case}/images_set"]), int(golden["num_input_views"])
    images, *cameras = (golden[f"{which}/{name}"] for name in ("images", "c2w", "fxfycxcy"))
    inputs, targets = (
        lvsm_jax.Cameras(*(x[:, some] for x in cameras)) for some in (slice(v), slice(v, None))
    )
    return (images[:, :v], inputs, targets), images[:, v:]


def model_of(golden, case, **options):
    model = convert.from_state_dict(weights_of(golden, case), **options)
    if not case.endswith("prope"):
        return model
    config = dataclasses.replace(model.config, camera_encoding="plucker_prope")
    return from_named(abstract_model(config), named_leaves(model))


@pytest.mark.parametrize("case", QUICK)
def test_renders_and_gradients_of_the_program(golden, case):
    """SSD-LVSM's modules, transcribed, in float64."""
    model = model_of(golden, case)
    arguments, targets = arguments_of(golden, case)

    def loss(model):
        memory = model.encode(jnp.asarray(arguments[0]), arguments[1])
        renders = model.decode(memory, arguments[2], *targets.shape[2:4])
        return jnp.square(renders - targets).mean(), renders

    (value, renders), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(model)
    np.testing.assert_allclose(renders, golden[f"{case}/render"], atol=1e-4)
    np.testing.assert_allclose(value, golden[f"{case}/mse"], rtol=1e-4)
    config = dataclasses.replace(model.config, **plain(model.config))
    gradient = from_named(abstract_model(config), named_leaves(gradient))
    for name, array in convert.to_state_dict(gradient).items():
        ours, short = np.linalg.norm(array), name.replace("_tokenizer.1.", "_tokenizer.")
        theirs = golden[f"{case}/grad_norm_of_mse/{short}"]
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-7, err_msg=name)


def plain(config):
    """What weights do not say."""
    return {"camera_encoding": "plucker"} if hasattr(config, "camera_encoding") else {}


@pytest.mark.slow
@pytest.mark.parametrize("case", ["decoder_film_prope", "encoder_decoder_film"])
def test_tokens_after_each_block_of_the_program(golden, case):
    model = model_of(golden, case)
    (images, inputs, targets), _ = arguments_of(golden, case)
    images, (height, width) = jnp.asarray(images), images.shape[2:4]
    if case == "encoder_decoder_film":
        tokens, stack = all_tokens(model, images, inputs), model.encoder
        latents = broadcast_scenes(model.latents[...], tokens)
        tokens, name = jnp.concatenate([latents, tokens], axis=1), "encoder_block"
        positions = None
    else:
        memory, stack = model.encode(images, inputs), model.transformer
        own = model.norm(model.target_tokens(targets, height, width))
        others = jnp.broadcast_to(
            memory.tokens[:, None], (*own.shape[:2], *memory.tokens.shape[1:])
        )
        tokens, name = jnp.concatenate([own, others], axis=2), "block"
        positions = model.positions(targets, memory.cameras, height, width)
    blocks = [jax.tree.map(lambda x, i=i: x[i], stack.blocks) for i in range(len_of(stack.blocks))]
    for i, block in enumerate([None, *blocks, stack.last]):
        tokens = tokens if block is None else block(tokens, positions=positions)
        expected = golden[f"{case}/{name}_{i}"]
        if name == "block":  # inputs first there, the target first here
            n = own.shape[2]
            ours = jnp.concatenate([tokens[:, :, n:], tokens[:, :, :n]], axis=2)
            ours = ours.reshape(expected.shape)
        else:
            ours = tokens
        np.testing.assert_allclose(ours, expected, atol=1e-4)


def len_of(stack):
    return len(jax.tree.leaves(stack)[0])


@pytest.mark.parametrize("case", CASES)
def test_weights_go_back_and_forth(golden, case):
    arrays = weights_of(golden, case)
    model = convert.from_state_dict(arrays)
    back = convert.to_state_dict(model)
    assert back.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(back[name], array)
    if case == "decoder":  # what the program has, and never reads
        more = arrays | {"target_pose_tokenizer.1.weight": np.zeros((32, 384), np.float32)}
        assert convert.from_state_dict(more).config == model.config
        with pytest.raises(UserError, match=r"missing transformer_blocks\.1\.attn\.to_vP\.weight"):
            convert.from_state_dict(
                {name: x for name, x in arrays.items() if "1.attn.to_vP" not in name}
            )


@pytest.mark.parametrize(("film", "millions"), [("decoupled", 49.94), ("decoupled_film", 57.04)])
def test_published_size(film, millions):
    model = abstract_model(lvsm_jax.LVSMDecoderOnlyConfig(num_layers=12, halves=film))
    assert round(sum(leaf.size for leaf in jax.tree.leaves(model)) / 1e6, 2) == millions


@pytest.fixture(scope="module")
def scene():
    """Images, input cameras and target cameras of two inputs and two targets."""
    rng = np.random.default_rng(0)
    c2w = np.tile(np.eye(4, dtype=np.float32), (1, 4, 1, 1))
    c2w[..., :3, 3] = rng.uniform(-1, 1, (1, 4, 3))
    lens = np.full((1, 4, 4), 16, np.float32)
    cameras = [lvsm_jax.Cameras(c2w[:, some], lens[:, some]) for some in (slice(2), slice(2, 4))]
    return rng.uniform(size=(1, 2, 16, 16, 3)).astype(np.float32), *cameras


def make(config_class=lvsm_jax.EfficientLVSMConfig, seed=0, **fields):
    """A model with weights large enough for all to count."""
    model = new_model(config_class(**SMALL, **fields), nnx.Rngs(seed))
    return map_named(lambda name, x: x * (3 if name.endswith("kernel") else 1), model)


def test_halves_that_modulate_each_other_start_as_those_that_do_not():
    film, plain = (
        make(lvsm_jax.LVSMDecoderOnlyConfig, halves=halves).transformer.last
        for halves in ("decoupled_film", "decoupled")
    )
    leaves = named_leaves(film)
    plain = map_named(lambda name, _: leaves[name], plain)
    tokens = jax.random.normal(jax.random.key(0), (1, 6, 32))
    np.testing.assert_allclose(film(tokens), plain(tokens), atol=1e-6)
    film = map_named(lambda name, x: x + 0.1 if "film" in name else x, film)
    assert np.abs(np.asarray(film(tokens) - plain(tokens))).max() > 1e-2


def test_halves_meet_in_queries_and_keys_alone():
    """Without the rays' part in them, no ray reaches a colour."""
    block = make(lvsm_jax.LVSMDecoderOnlyConfig, halves="decoupled").transformer.last
    tokens = jax.random.normal(jax.random.key(0), (1, 6, 32))
    other = tokens.at[..., 16:].multiply(-2.0)
    colors = block(tokens)[..., :16], block(other)[..., :16]
    assert np.abs(np.asarray(colors[0] - colors[1])).max() > 1e-4
    for kernel in (block.self_attention.to_q.kernel, block.self_attention.to_kv.keys.kernel):
        kernel[...] = kernel[...].at[16:].set(0)
    np.testing.assert_array_equal(block(tokens)[..., :16], block(other)[..., :16])
    assert np.abs(np.asarray(block(tokens) - block(other)))[..., 16:].max() > 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["plucker", "prope", "plucker_prope"])
def test_two_streams_render_the_same_from_the_cache_and_an_export(scene, encoding, tmp_path):
    model = make(halves="decoupled_film", camera_encoding=encoding, copy_head=True)
    images, inputs, targets = scene
    expected = model(images, inputs, targets)
    cache = lvsm_jax.init_cache(model, 1, 3, (16, 16))
    for view in range(2):
        one = jax.tree.map(lambda x, view=view: x[:, view : view + 1], (images, inputs))
        cache = lvsm_jax.add_views(model, cache, *one)
    np.testing.assert_allclose(lvsm_jax.render(model, cache, targets), expected, atol=1e-5)
    lvsm_jax.save(model, tmp_path / "export")
    again = lvsm_jax.load(tmp_path / "export")
    assert again.config == model.config
    np.testing.assert_array_equal(again(*scene), expected)


def test_decoder_only_with_relative_cameras_alone(scene):
    """No turn of the world changes a render, and targets may be computed apart."""
    images, inputs, targets = scene
    model = make(lvsm_jax.LVSMDecoderOnlyConfig, camera_encoding="prope", targets_at_once=0)
    expected = model(*scene)
    apart = from_named(
        abstract_model(dataclasses.replace(model.config, targets_at_once=1)), named_leaves(model)
    )
    turn = np.eye(4, dtype=np.float32)[[2, 0, 1, 3]]
    turned = [lvsm_jax.Cameras(turn @ x.c2w, x.fxfycxcy) for x in (inputs, targets)]
    np.testing.assert_allclose(apart(images, *turned), expected, atol=1e-5)
    assert np.asarray(expected).std(axis=(2, 3)).min() > 1e-3


def test_sequence_positions_are_those_of_each_view():
    rng = np.random.default_rng(0)
    c2w = np.tile(np.eye(4, dtype=np.float32), (1, 6, 1, 1))
    c2w[..., :3, 3] = rng.uniform(-1, 1, (1, 6, 3))
    cameras = lvsm_jax.Cameras(c2w, np.full((1, 6, 4), 16, np.float32))
    views = view_positions("prope", cameras, 16, 16, 8, 8)
    x = jax.random.normal(jax.random.key(0), (1, 2, 12, 3, 8))  # two sequences of three views
    by_view = x.reshape(1, 6, 4, 3, 8)
    for kind in ("to_queries", "to_keys", "to_outputs"):
        whole = getattr(SequencePositions(views, 3), kind)(x)
        np.testing.assert_array_equal(
            whole.reshape(by_view.shape), getattr(Positions, kind)(views, by_view)
        )
        first = getattr(SequencePositions(views, 3), kind)(x[:, :, :4])
        np.testing.assert_array_equal(first, whole[:, :, :4])


@pytest.mark.parametrize("halves", ["joint", "decoupled", "decoupled_film"])
def test_multiply_accumulates_are_weights_times_tokens(halves):
    """Of one view and one target every weight that is a matrix is used once by each token."""
    config = lvsm_jax.EfficientLVSMConfig(**SMALL, halves=halves)
    size = {"views": 1, "targets": 1, "height": 32, "width": 32}
    count = sum(stage.linear for stage in stages(config, **size).values())
    leaves = named_leaves(abstract_model(config))
    weights = sum(leaf.size for name, leaf in leaves.items() if name.endswith("kernel"))
    assert count == 16 * weights


def test_what_cannot_be_is_refused():
    with pytest.raises(UserError, match=r"half of model.width 24 is not a multiple of model.head"):
        lvsm_jax.LVSMDecoderOnlyConfig(width=24, head_dim=8, halves="decoupled")
    with pytest.raises(UserError, match=r"model\.halves is 'apart'"):
        lvsm_jax.EfficientLVSMConfig(halves="apart")
    with pytest.raises(UserError, match=r"model\.halves is 'decoupled': no published program"):
        convert.to_state_dict(make(halves="decoupled"))
    assert not torch_names.is_published("EfficientLVSM", "decoupled")
