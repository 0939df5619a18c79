"""Models told of cameras by attention; scaled residual branches; attention's temperature."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.spatial.transform import Rotation

import lvsm_jax
from lvsm_jax.batch import Batch, Views, shard_batch
from lvsm_jax.common.tree import from_named, named_leaves
from lvsm_jax.models.architectures import CONFIGS, abstract_model, new_model
from lvsm_jax.parallel.mesh import MeshConfig, make_mesh
from lvsm_jax.training.losses import LossConfig
from lvsm_jax.training.optimizer import OptimizerConfig
from lvsm_jax.training.train_state import TrainingConfig, init_state, new_state, train_step

SIZE = (16, 24)
SIZES = {"num_layers": 2, "width": 32, "head_dim": 16}
ENCODINGS = ("prope", "gta")


def make(**fields):
    """A model whose targets see something: the initial weights of the decoder are small."""
    model = new_model(lvsm_jax.EfficientLVSMConfig(**SIZES, **fields), nnx.Rngs(0))
    larger = {name: a * 10 if "decoder" in name else a for name, a in named_leaves(model).items()}
    return from_named(model, larger)


def with_fields(model, leaves=None, **fields):
    """The same weights, or others, in a model of another configuration."""
    like = abstract_model(dataclasses.replace(model.config, **fields))
    return from_named(like, named_leaves(model) if leaves is None else leaves)


def cameras(seed, count, scenes=2, focal=14.0):
    rng = np.random.default_rng(seed)
    c2w = np.tile(np.eye(4), (scenes, count, 1, 1))
    turns = Rotation.from_rotvec(rng.uniform(-0.5, 0.5, (scenes * count, 3)))
    c2w[..., :3, :3] = turns.as_matrix().reshape(scenes, count, 3, 3)
    c2w[..., :3, 3] = rng.uniform(-1, 1, (scenes, count, 3))
    fxfycxcy = np.array([focal, focal, 12, 8]) * rng.uniform(0.9, 1.1, (scenes, count, 4))
    return lvsm_jax.Cameras(c2w.astype(np.float32), fxfycxcy.astype(np.float32))


def images(seed, count, scenes=2):
    shape = (scenes, count, *SIZE, 3)
    return np.random.default_rng(seed).uniform(size=shape).astype(np.float32)


def moved(some, motion):
    return lvsm_jax.Cameras(motion @ some.c2w, some.fxfycxcy)


@pytest.fixture(scope="module", params=ENCODINGS)
def model(request):
    return make(camera_encoding=request.param)


def test_a_rigid_motion_of_all_cameras_changes_nothing(model):
    motion = np.eye(4, dtype=np.float32)
    motion[:3, :3] = Rotation.from_euler("xyz", [0.4, 2.0, -1.0]).as_matrix()
    motion[:3, 3] = [2, -1, 0.5]
    inputs, targets = cameras(0, 2), cameras(1, 3)
    still = model(images(0, 2), inputs, targets)
    same = model(images(0, 2), moved(inputs, motion), moved(targets, motion))
    np.testing.assert_allclose(same, still, atol=2e-5)
    other = model(images(0, 2), inputs, moved(targets, motion))
    assert np.abs(other - still).max() > 1e-2


@pytest.mark.parametrize("encoding", ["plucker", "plucker_prope"])
def test_world_rays_depend_on_the_world_frame(encoding):
    motion = np.eye(4, dtype=np.float32)
    motion[:3, 3] = [2, -1, 0.5]
    model, inputs, targets = make(camera_encoding=encoding), cameras(0, 2), cameras(1, 3)
    still = model(images(0, 2), inputs, targets)
    same = model(images(0, 2), moved(inputs, motion), moved(targets, motion))
    assert np.abs(same - still).max() > 1e-2


def test_the_order_of_input_views_changes_nothing(model):
    inputs, targets = cameras(0, 3), cameras(1, 1)
    turned = jax.tree.map(lambda x: x[:, [2, 0, 1]], inputs)
    expected = model(images(0, 3), inputs, targets)
    ours = model(images(0, 3)[:, [2, 0, 1]], turned, targets)
    np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_gta_knows_intrinsics_by_its_tokens_alone():
    """PRoPE has them in attention too: without tokens, it alone tells two focal lengths apart."""
    inputs, targets = cameras(0, 2), cameras(1, 1)
    longer = lvsm_jax.Cameras(targets.c2w, targets.fxfycxcy * np.float32([1.5, 1.5, 1, 1]))
    for encoding in ENCODINGS:
        model = make(camera_encoding=encoding)
        leaves = named_leaves(model)
        leaves["target_tokenizer.kernel"] = leaves["target_tokenizer.kernel"] * 0
        blind = from_named(model, leaves)
        change = np.abs(blind(images(0, 2), inputs, longer) - blind(images(0, 2), inputs, targets))
        assert (change.max() > 1e-3) == (encoding == "prope")


@pytest.mark.parametrize(
    ("variant", "temperature"),
    [
        ({}, "log_views"),
        pytest.param({}, "constant", marks=pytest.mark.slow),
        ({"decoder_attention": "cross"}, "constant"),
        pytest.param({"decoder_attention": "cross"}, "log_views", marks=pytest.mark.slow),
        pytest.param({"shared_streams": True}, "constant", marks=pytest.mark.slow),
        pytest.param({"shared_streams": True}, "log_views", marks=pytest.mark.slow),
    ],
)
def test_the_cache_renders_as_a_full_pass(variant, temperature):
    """Scenes have other numbers of views, and views are replaced and removed."""
    encoding = "prope" if variant else "plucker_prope"
    model = make(camera_encoding=encoding, attention_temperature=temperature, **variant)
    inputs, targets = cameras(0, 4), cameras(1, 2)
    views = images(0, 4)

    def some(numbers):
        return views[:, numbers], jax.tree.map(lambda x: x[:, numbers], inputs)

    cache = lvsm_jax.init_cache(model, batch=2, max_views=4, image_size=SIZE)
    cache = lvsm_jax.add_views(model, cache, *some([0, 1]), num_new=[1, 2])
    cache = lvsm_jax.add_views(model, cache, *some([2, 0]), num_new=[1, 2])
    cache = lvsm_jax.replace_view(model, cache, 0, *some([3]))
    cache = lvsm_jax.remove_views(cache, [[-1], [3]])
    ours = lvsm_jax.render(model, cache, targets)
    for scene, numbers in enumerate(([3, 2], [3, 1, 2])):
        pictures, poses = some(numbers)
        one = jax.tree.map(lambda x, scene=scene: x[scene : scene + 1], (pictures, poses, targets))
        np.testing.assert_allclose(ours[scene : scene + 1], model(*one), atol=1e-5)


def test_an_int8_cache_of_transformed_keys(model):
    other = with_fields(model, cache_dtype="int8")
    cache = lvsm_jax.init_cache(other, batch=2, max_views=2, image_size=SIZE)
    cache = lvsm_jax.add_views(other, cache, images(0, 2), cameras(0, 2))
    expected = model(images(0, 2), cameras(0, 2), cameras(1, 2))
    error = np.abs(lvsm_jax.render(other, cache, cameras(1, 2)) - expected).max()
    assert error < 3e-2


@pytest.mark.parametrize("focal", [0.3, 1e3, 1e5])
def test_gradients_are_finite_for_extreme_focal_lengths(model, focal):
    def loss(model, inputs, targets):
        return jnp.square(model(images(0, 2), inputs, targets)).mean()

    some = [jax.tree.map(jnp.asarray, cameras(seed, 2, focal=focal)) for seed in range(2)]
    for leaf in jax.tree.leaves(jax.grad(loss, argnums=(0, 1, 2))(model, *some)):
        assert np.isfinite(leaf).all()


@pytest.mark.slow
def test_eight_devices_train_as_one():
    model = lvsm_jax.EfficientLVSMConfig(
        num_layers=2,
        width=16,
        head_dim=8,
        camera_encoding="prope",
        attention_temperature="log_views",
        residual_scaling=True,
    )
    optimizer = OptimizerConfig(
        learning_rate=1e-3, warmup_steps=0, skip_after=0, schedule="constant", eps=1e-6
    )
    config = TrainingConfig(model, optimizer, LossConfig(), num_steps=10)

    def views(seed, count):
        pictures = (images(seed, count, 4) * 255).astype(np.uint8)
        return Views(pictures, cameras(seed, count, 4), np.zeros((4, count), np.int32))

    rows = np.arange(4, dtype=np.int32)
    batch = Batch(views(0, 4), views(1, 2), rows, rows >= 0, rows * 0)
    step = jax.jit(train_step, static_argnums=0)
    one, metrics = step(config, new_state(config, 0), batch)
    mesh = make_mesh(MeshConfig(2, 2, 2))
    with jax.set_mesh(mesh):
        many, same = step(config, init_state(config, mesh, 0), shard_batch(mesh, batch))
    np.testing.assert_allclose(same["loss"], metrics["loss"], rtol=1e-5)
    for ours, expected in zip(jax.tree.leaves(many.model), jax.tree.leaves(one.model), strict=True):
        np.testing.assert_allclose(ours, expected, atol=2e-5)


@pytest.mark.parametrize("views", [1, 2, 5])
def test_the_temperature_follows_the_number_of_keys(views):
    """As if the queries' learned scale were larger; as published with two views."""
    model = make(attention_temperature="log_views")
    args = images(0, views), cameras(0, views), cameras(1, 2)
    tokens = SIZE[0] * SIZE[1] // 64
    factor = np.log(views * tokens) / np.log(2 * tokens)
    leaves = named_leaves(model)
    scale = "decoder.cross_attention.q_norm.scale"
    leaves[scale] = leaves[scale] * factor
    constant = with_fields(model, leaves, attention_temperature="constant")
    np.testing.assert_allclose(model(*args), constant(*args), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", CONFIGS)
def test_scaled_branches(architecture):
    """As if the last maps of all branches had weights that much smaller."""
    of_one = {"LVSMEncoderDecoder": {"num_latents": 8}, "GSLRM": {"far": 4.0}}
    fields = of_one.get(architecture, {})
    config = CONFIGS[architecture](**SIZES, **fields, residual_scaling=True)
    model = new_model(config, nnx.Rngs(0))
    leaves = named_leaves(model)
    ends = ("out.kernel", "down.kernel")
    smaller = {name: a * 2**-0.5 if name.endswith(ends) else a for name, a in leaves.items()}
    plain = with_fields(model, smaller, residual_scaling=False)
    args = images(0, 2), cameras(0, 2), cameras(1, 2)
    np.testing.assert_allclose(model(*args), plain(*args), atol=1e-5)
    assert np.abs(model(*args) - with_fields(model, residual_scaling=False)(*args)).max() > 1e-5


def test_impossible_values_are_named():
    with pytest.raises(ValueError, match=r"model.camera_encoding is 'rays', expected one of"):
        lvsm_jax.EfficientLVSMConfig(camera_encoding="rays")
    with pytest.raises(ValueError, match=r"model.head_dim is 12, .* a multiple of 8"):
        lvsm_jax.EfficientLVSMConfig(width=24, head_dim=12, camera_encoding="prope")
    with pytest.raises(ValueError, match=r"model.attention_temperature is 'hot'"):
        lvsm_jax.EfficientLVSMConfig(attention_temperature="hot")
