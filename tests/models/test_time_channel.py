"""One time channel: renders depend on when views are seen, by a full pass, a cache, a session."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import lvsm_jax
from lvsm_jax import Photograph, PosedCamera
from lvsm_jax.common.errors import UserError
from lvsm_jax.common.tree import from_named, named_leaves
from lvsm_jax.cost.flops import stages
from lvsm_jax.cost.memory import kv_cache_bytes
from lvsm_jax.models.architectures import abstract_model
from lvsm_jax.models.base import readable_cameras
from lvsm_jax.models.cameras import Cameras
from lvsm_jax.parallel.mesh import SCENES, MeshConfig, make_mesh, spec
from tests.helpers.copying import with_random_copies

SIZE, PATCH = (16, 24), 8
SMALL = {"num_layers": 1, "width": 32, "head_dim": 8, "patch_size": PATCH, "time_channel": True}
EFFICIENT = lvsm_jax.EfficientLVSMConfig(**SMALL, camera_encoding="plucker_prope", copy_head=True)
CONFIGS = {
    "EfficientLVSM": EFFICIENT,
    "LVSMDecoderOnly": lvsm_jax.LVSMDecoderOnlyConfig(
        **SMALL, camera_encoding="prope", halves="decoupled"
    ),
    "LVSMEncoderDecoder": lvsm_jax.LVSMEncoderDecoderConfig(**SMALL, num_latents=5),
}


def some_views(seed, count, timed=True):
    rng = np.random.default_rng(seed)
    c2w = np.tile(np.eye(4, dtype=np.float32), (2, count, 1, 1))
    c2w[..., :3, 3] = rng.uniform(-1, 1, (2, count, 3))
    time = rng.uniform(size=(2, count)).astype(np.float32) if timed else None
    images = rng.uniform(size=(2, count, *SIZE, 3)).astype(np.float32)
    return images, Cameras(c2w, np.full((2, count, 4), 12, np.float32), time)


def with_larger_weights(model):
    """So that renders depend on times far beyond rounding."""
    factors = {"input_tokenizer": 10, "target_tokenizer": 10, "decoder": 5, "head": 5}
    leaves = named_leaves(model).items()
    return from_named(model, {name: a * factors.get(name.split(".")[0], 1) for name, a in leaves})


@pytest.fixture(scope="module", params=CONFIGS)
def model(request):
    config = CONFIGS[request.param]
    model = getattr(lvsm_jax, request.param)(config, rngs=nnx.Rngs(0))
    return with_larger_weights(model)


@pytest.fixture(scope="module")
def efficient():
    model = with_random_copies(lvsm_jax.EfficientLVSM(EFFICIENT, rngs=nnx.Rngs(0)))
    return with_larger_weights(model)


def test_renders_depend_on_the_times_of_inputs_and_targets(model):
    images, inputs = some_views(0, 2)
    _, targets = some_views(1, 2)
    render = np.asarray(model(images, inputs, targets))
    later = dataclasses.replace(targets, time=1 - targets.time)
    seen_later = dataclasses.replace(inputs, time=1 - inputs.time)
    assert np.abs(model(images, inputs, later) - render).max() > 1e-3
    assert np.abs(model(images, seen_later, targets) - render).max() > 1e-3
    # A target's time is its own.
    one = dataclasses.replace(targets, time=np.stack([targets.time[:, 0], later.time[:, 1]], 1))
    np.testing.assert_allclose(model(images, inputs, one)[:, 0], render[:, 0], atol=1e-6)


def test_times_are_given_where_a_model_takes_them_and_nowhere_else(model):
    images, inputs = some_views(0, 2)
    _, targets = some_views(1, 2)
    with pytest.raises(UserError, match=r"input_cameras have no time.*model.time_channel"):
        model(images, inputs.timeless, targets)
    with pytest.raises(UserError, match=r"target_cameras have no time"):
        model(images, inputs, targets.timeless)
    config = dataclasses.replace(model.config, time_channel=False)
    static = type(model)(config, rngs=nnx.Rngs(0))
    with pytest.raises(UserError, match=r"input_cameras have times, .* model.time_channel=True"):
        static(images, inputs, targets.timeless)
    with pytest.raises(UserError, match="target_cameras have times"):
        static(images, inputs.timeless, targets)
    # Batches of scenes that move are shown to both.
    assert readable_cameras(static, inputs).time is None
    assert readable_cameras(model, inputs).time is inputs.time


@pytest.mark.parametrize(
    "time, message",
    [
        (np.float32([[0.5, 1.01], [0, 0]]), r"target_cameras.time reaches from 0 to 1.01"),
        (np.float32([[0.5, np.nan], [0, 0]]), r"target_cameras.time"),
        (np.float32([0.5, 0.5]), r"target_cameras.time has shape \(2,\), expected \(2, 2\)"),
    ],
)
def test_times_that_are_none_are_refused(efficient, time, message):
    images, inputs = some_views(0, 2)
    targets = dataclasses.replace(some_views(1, 2)[1], time=time)
    with pytest.raises(UserError, match=message):
        efficient(images, inputs, targets)


def test_the_channel_adds_one_number_a_pixel_and_off_it_adds_nothing(model):
    config = dataclasses.replace(model.config, time_channel=False)
    static = type(model)(config, rngs=nnx.Rngs(0))
    assert model.config.pose_channels == static.config.pose_channels + 1
    ours, theirs = named_leaves(model), named_leaves(static)
    tokenizers = {name for name in theirs if ours[name].shape != theirs[name].shape}
    assert tokenizers and all("tokenizer" in name and "kernel" in name for name in tokenizers)
    views = {"views": 2, "targets": 3, "height": SIZE[0], "width": SIZE[1]}
    ours, theirs = stages(model.config, **views), stages(config, **views)
    more = {name: ours[name].linear - theirs[name].linear for name in theirs}
    # Halves keep rays, and so times, in half of the channels.
    numbers = 6 * PATCH**2 * (32 if config.halves == "joint" else 16)
    assert more.pop("input tokens") == 2 * numbers and more.pop("target tokens") == 3 * numbers
    assert not any(more.values())
    size = {"height": SIZE[0], "width": SIZE[1]}
    assert kv_cache_bytes(model.config, **size) == kv_cache_bytes(config, **size)


def test_gaussians_do_not_move():
    with pytest.raises(UserError, match=r"model.time_channel is True, but .* GSLRM do not move"):
        lvsm_jax.GSLRMConfig(time_channel=True)


def test_times_are_sharded_as_views_are():
    mesh = make_mesh(MeshConfig(data=2, view=2), devices=jax.devices()[:4])
    model = abstract_model(EFFICIENT)
    with jax.set_mesh(mesh):
        sharding = jax.NamedSharding(mesh, spec(SCENES, "view"))
        shown = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32, sharding=sharding),
            some_views(0, 2),
        )
        tokens = jax.eval_shape(lambda model, *views: model.input_tokens(*views), model, *shown)
        assert tokens.sharding.spec[:2] == sharding.spec[:2]


def test_a_cached_view_keeps_its_time(efficient):
    images, inputs = some_views(0, 3)
    _, targets = some_views(1, 2)
    other = some_views(2, 1)

    def some(first, last):
        cameras = Cameras(*(x[:, first:last] for x in vars(inputs).values()))
        return images[:, first:last], cameras

    cache = lvsm_jax.init_cache(efficient, 2, 4, SIZE)
    cache = lvsm_jax.add_views(efficient, cache, *some(0, 1))
    cache = lvsm_jax.add_views(efficient, cache, *some(1, 3))
    full = np.asarray(efficient(images, inputs, targets))
    np.testing.assert_allclose(lvsm_jax.render(efficient, cache, targets), full, atol=1e-5)
    later = dataclasses.replace(targets, time=1 - targets.time)
    assert np.abs(lvsm_jax.render(efficient, cache, later) - full).max() > 1e-3
    # Another time of a view is another view.
    cache = lvsm_jax.replace_view(efficient, cache, 1, *other)
    images = np.stack([images[:, 0], other[0][:, 0], images[:, 2]], axis=1)
    inputs = Cameras(
        *(
            np.stack([x[:, 0], y[:, 0], x[:, 2]], axis=1)
            for x, y in zip(vars(inputs).values(), vars(other[1]).values(), strict=True)
        )
    )
    full = efficient(images, inputs, targets)
    np.testing.assert_allclose(lvsm_jax.render(efficient, cache, targets), full, atol=1e-5)
    with pytest.raises(UserError, match="have no time"):
        lvsm_jax.render(efficient, cache, targets.timeless)
    with pytest.raises(UserError, match="have no time"):
        lvsm_jax.add_views(efficient, cache, other[0], other[1].timeless)


def camera(seed, time=None):
    c2w = np.eye(4)
    c2w[:3, 3] = np.random.default_rng(seed).uniform(-1, 1, 3)
    return PosedCamera(c2w, (20, 20, 12, 8), 24, 16, time)


def photograph(seed, time=None):
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 24, 3), np.uint8)
    return Photograph(pixels, camera(seed, time), f"photo-{seed}")


def test_a_session_renders_a_time_from_photographs_of_others(efficient):
    with lvsm_jax.Session(efficient, image_height=16, image_width=24, max_views=4) as session:
        session.add([photograph(0, 0.0), photograph(1, 1.0)])
        early, late = (session.render(camera(2, time)) for time in (0.1, 0.9))
        assert np.abs(early.astype(int) - late).max() > 1
        for wrong in (photograph(3), [photograph(3, 0.5), photograph(4)]):
            with pytest.raises(UserError, match=r"cameras of photograph 'photo-.' have no time"):
                session.add(wrong)
        with pytest.raises(UserError, match=r"cameras to render have no time"):
            session.render(camera(2))
        assert list(session.views) == ["photo-0", "photo-1"]
        np.testing.assert_array_equal(session.render(camera(2, 0.1)), early)


def test_a_session_of_a_model_without_times_refuses_them():
    config = dataclasses.replace(EFFICIENT, time_channel=False)
    model = lvsm_jax.EfficientLVSM(config, rngs=nnx.Rngs(0))
    with lvsm_jax.Session(model, image_height=16, image_width=24, max_views=3) as session:
        with pytest.raises(UserError, match=r"cameras of photograph 'photo-0' have times"):
            session.add(photograph(0, 0.5))


@pytest.mark.parametrize("time", [-0.1, 1.5, float("nan"), "now", True])
def test_a_camera_has_a_time_from_0_to_1(time):
    with pytest.raises(UserError, match=r"time is .*, expected a number from 0 to 1"):
        camera(0, time)


def test_a_cropped_camera_keeps_its_time():
    assert camera(0, 0.25).cropped_to(8, 8).time == 0.25
