"""The cache of keys and values: the same pixels as a full pass, whatever was done to it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import lvsm_jax
import lvsm_jax.models.architectures
from lvsm_jax.common.tree import from_named, named_leaves
from lvsm_jax.rendering import view_cache as cache_module
from lvsm_jax.rendering.view_cache import slots_at_once
from tests.helpers.copying import with_random_copies

SIZE = (16, 24)
BATCH = 2
PROGRAMS = ("add_views", "replace_view", "remove_views", "render")


@pytest.fixture(scope="module")
def model():
    config = lvsm_jax.EfficientLVSMConfig(num_layers=2, width=32, head_dim=16)
    model = lvsm_jax.EfficientLVSM(config, rngs=nnx.Rngs(0))
    larger = {name: a * 10 if "decoder" in name else a for name, a in named_leaves(model).items()}
    return from_named(model, larger)


@pytest.fixture(scope="module")
def copying():
    """With a head that copies, from places that differ from pixel to pixel."""
    config = lvsm_jax.EfficientLVSMConfig(num_layers=1, width=32, head_dim=16, copy_head=True)
    model = lvsm_jax.EfficientLVSM(config, rngs=nnx.Rngs(0))
    return with_random_copies(model)


@dataclasses.dataclass(frozen=True)
class Views:
    """Images and cameras of some views."""

    images: np.ndarray
    cameras: lvsm_jax.Cameras


def some_views(seed, count, batch=BATCH, size=SIZE):
    rng = np.random.default_rng(seed)
    c2w = np.tile(np.eye(4, dtype=np.float32), (batch, count, 1, 1))
    c2w[..., :3, 3] = rng.uniform(-1, 1, (batch, count, 3))
    fxfycxcy = np.full((batch, count, 4), 12, np.float32)
    images = rng.uniform(size=(batch, count, *size, 3)).astype(np.float32)
    return Views(images, lvsm_jax.Cameras(c2w, fxfycxcy))


TARGETS = some_views(99, 2).cameras


def as_configured(model, **options):
    """The same weights with other options of how to compute."""
    config = dataclasses.replace(model.config, **options)
    return from_named(lvsm_jax.models.architectures.abstract_model(config), named_leaves(model))


def add(model, cache, views, **options):
    return lvsm_jax.add_views(model, cache, views.images, views.cameras, **options)


def expected_render(model, scenes):
    """A full pass of each scene over its views: pairs of seed and scene."""
    renders = []
    for scene, views in enumerate(scenes):
        taken = [(some_views(seed, 1), scene) for seed in views]
        images = np.concatenate([v.images[s : s + 1] for v, s in taken], axis=1)
        cameras = jax.tree.map(
            lambda *leaves: np.concatenate(leaves, axis=1),
            *[jax.tree.map(lambda x, s=s: x[s : s + 1], v.cameras) for v, s in taken],
        )
        targets = jax.tree.map(lambda x, scene=scene: x[scene : scene + 1], TARGETS)
        renders.append(model(images, cameras, targets))
    return np.concatenate(renders)


@pytest.mark.slow
def test_thousands_of_random_changes(model):
    """Scenes hold different numbers of views; the same as a full pass over what remains."""
    assert check_random_changes(model, 3000, every=100) > 10


@pytest.mark.slow
def test_random_changes_with_a_head_that_copies(copying):
    assert check_random_changes(copying, 60, every=3) > 3


def check_random_changes(model, count, every):
    """Compares after some of the changes, and returns after how many."""
    rng, places = np.random.default_rng(0), 4
    cache = lvsm_jax.init_cache(model, BATCH, places, SIZE)
    scenes = [[], []]  # seeds of the views by their number
    compared = 0
    for seed in range(count):
        kind = rng.choice(["add", "replace", "remove"])
        numbers = np.array([len(views) for views in scenes])
        if kind == "add":
            new = rng.integers(0, np.minimum(1, places - numbers) + 1)
            cache = add(model, cache, some_views(seed, 1), num_new=new)
            for views, count in zip(scenes, new, strict=True):
                views += [seed] * count
        elif kind == "replace" and numbers.min() > 0:
            index = rng.integers(0, numbers)
            views = some_views(seed, 1)
            cache = lvsm_jax.replace_view(model, cache, index, views.images, views.cameras)
            for views, i in zip(scenes, index, strict=True):
                views[i] = seed
        elif kind == "remove":
            count = int(rng.integers(1, 3))
            rows = [rng.permutation(n)[:count].tolist() for n in numbers]
            indices = [row + [-1] * (count - len(row)) for row in rows]
            cache = lvsm_jax.remove_views(cache, indices)
            for views, row in zip(scenes, rows, strict=True):
                for i in sorted(row, reverse=True):
                    views[i] = views[-1]
                    views.pop()
        assert np.asarray(cache.num_views).tolist() == [len(views) for views in scenes]
        if seed % every == every - 1 and all(scenes):
            ours = lvsm_jax.render(model, cache, TARGETS)
            np.testing.assert_allclose(ours, expected_render(model, scenes), atol=1e-5)
            compared += 1
    return compared


def test_incremental_golden(goldens):
    golden = dict(np.load(goldens / "efficient_lvsm.npz"))
    prefix = "state_dict/"
    weights = {k.removeprefix(prefix): a for k, a in golden.items() if k.startswith(prefix)}
    model = lvsm_jax.convert.from_state_dict(weights)

    def cameras(*views):
        return lvsm_jax.Cameras(golden["c2w"][:, views], golden["fxfycxcy"][:, views])

    cache = lvsm_jax.init_cache(model, 2, 5, golden["images"].shape[2:4])
    for step, expected in enumerate(golden["incremental_render"]):
        cache = lvsm_jax.add_views(
            model, cache, golden["images"][:, step : step + 1], cameras(step)
        )
        np.testing.assert_allclose(
            lvsm_jax.render(model, cache, cameras(3, 4)), expected, atol=1e-4
        )


@pytest.mark.parametrize("committed", [False, True])
def test_nothing_compiles_again(model, committed):
    if committed:  # as `lvsm_jax.load` returns it
        model = jax.device_put(model, jax.devices()[0])
    programs = [getattr(cache_module, f"_{name}") for name in PROGRAMS]
    before = np.array([program._cache_size() for program in programs])
    cache = lvsm_jax.init_cache(model, BATCH, 7, SIZE)  # as many places as no other test has
    for view in range(6):
        cache = add(model, cache, some_views(view, 1))
        cache = add(model, cache, some_views(view + 20, 1), num_new=[1, 0])
        views = some_views(view + 10, 1)
        cache = lvsm_jax.replace_view(model, cache, view, views.images, views.cameras)
        lvsm_jax.render(model, cache, TARGETS)
        cache = lvsm_jax.remove_views(cache, np.array([[view], [-1]], np.int8))
        assert [program._cache_size() for program in programs] == (before + 1).tolist()


@pytest.mark.parametrize("fields", [{"co_refinement": False}, {"decoder_attention": "cross"}])
def test_ablations(fields):
    config = lvsm_jax.EfficientLVSMConfig(num_layers=2, width=32, head_dim=16, **fields)
    model = lvsm_jax.EfficientLVSM(config, rngs=nnx.Rngs(0))
    cache = add(model, lvsm_jax.init_cache(model, BATCH, 3, SIZE), some_views(0, 2))
    views = some_views(0, 2)
    expected = model(views.images, views.cameras, TARGETS)
    np.testing.assert_allclose(lvsm_jax.render(model, cache, TARGETS), expected, atol=1e-5)


@pytest.mark.parametrize(("implementation", "at_once"), [("xla", 4), ("blocked", 2), ("xla", 3)])
def test_several_slots_at_once(model, monkeypatch, implementation, at_once):
    """As on GPUs, where the kernel itself skips the empty places."""
    monkeypatch.setattr("lvsm_jax.rendering.view_cache.slots_at_once", lambda *_: at_once)
    other = as_configured(model, attention=implementation)
    cache = add(other, lvsm_jax.init_cache(other, BATCH, 4, SIZE), some_views(0, 1))
    for seed in (1, 2):
        cache = add(other, cache, some_views(seed, 1), num_new=[0, 1])
    ours = lvsm_jax.render(other, cache, TARGETS)
    np.testing.assert_allclose(ours, expected_render(model, [[0], [0, 1, 2]]), atol=1e-5)


def test_only_kernels_that_skip_what_is_empty_take_several_places(model, monkeypatch):
    cache = lvsm_jax.init_cache(model, BATCH, 20, SIZE)
    assert slots_at_once(cache, "auto", "bfloat16") == 1
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert slots_at_once(cache, "auto", "bfloat16") == 7  # three rounds
    assert slots_at_once(cache, "auto", "float32") == 1  # cuDNN has no float32
    assert slots_at_once(cache, "xla", "bfloat16") == 1
    for views, at_once in ((1, 1), (8, 8), (11, 6), (13, 7), (16, 8), (17, 6)):
        cache = lvsm_jax.init_cache(model, BATCH, views, SIZE)
        assert slots_at_once(cache, "auto", "bfloat16") == at_once


@pytest.mark.parametrize(
    ("dtype", "bytes_a_number"), [("float32", 4), ("bfloat16", 2), ("int8", 1.25)]
)
def test_memory_and_precision(model, dtype, bytes_a_number):
    other = as_configured(model, cache_dtype=dtype)
    cache = lvsm_jax.init_cache(other, BATCH, 3, SIZE)
    # 2 · layers · tokens · width; int8 has 4 bytes of scale for 16 channels of a head.
    assert cache.nbytes == BATCH * 3 * 2 * 2 * 6 * 32 * bytes_a_number
    cache = add(other, cache, some_views(0, 1))
    error = np.abs(
        lvsm_jax.render(other, cache, TARGETS) - expected_render(model, [[0], [0]])
    ).max()
    assert error < {"float32": 1e-5, "bfloat16": 1e-2, "int8": 3e-2}[dtype]


def test_memory_of_a_head_that_copies(copying):
    """Pixels, keys and values of each token, and a camera, in float32 whatever the rest is."""
    bytes_a_view = 4 * (3 * 16 * 24 + 128 * 6 + 20)
    for dtype, bytes_a_number in (("float32", 4), ("bfloat16", 2), ("int8", 1.25)):
        other = as_configured(copying, cache_dtype=dtype)
        cache = lvsm_jax.init_cache(other, BATCH, 3, SIZE)
        assert cache.nbytes == BATCH * 3 * (2 * 6 * 32 * bytes_a_number + bytes_a_view)
    views = some_views(0, 1)
    cache = add(other, cache, views)  # of int8
    np.testing.assert_array_equal(np.asarray(cache.copied.images)[:, :1], views.images)
    config = dataclasses.replace(copying.config, copy_head=False)
    without = lvsm_jax.EfficientLVSM(config, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="the cache has 1 heads that copy, but the model 0"):
        lvsm_jax.render(without, cache, TARGETS)


def test_buffers_are_reused(model):
    cache = lvsm_jax.init_cache(model, BATCH, 3, SIZE)
    keys = cache.store[0][0].data
    where = keys.unsafe_buffer_pointer()
    cache = add(model, cache, some_views(0, 2))
    assert keys.is_deleted()
    cache = lvsm_jax.remove_views(cache, 0)
    assert cache.store[0][0].data.unsafe_buffer_pointer() == where


def test_many_targets_in_groups(model):
    cache = add(model, lvsm_jax.init_cache(model, BATCH, 2, SIZE), some_views(0, 2))
    cameras = some_views(5, 7).cameras
    whole = lvsm_jax.render(model, cache, cameras, targets_at_once=7)
    groups = list(lvsm_jax.render_path(model, cache, cameras, targets_at_once=3))
    assert [group.shape[1] for group in groups] == [3, 3, 1]
    np.testing.assert_allclose(np.concatenate(groups, axis=1), whole, atol=1e-5)


def test_another_size_of_render(model):
    cache = add(model, lvsm_jax.init_cache(model, BATCH, 2, SIZE), some_views(0, 2))
    views = some_views(0, 2)
    memory = model.encode(jnp.asarray(views.images), views.cameras)
    expected = model.decode(memory, TARGETS, 32, 8)
    ours = lvsm_jax.render(model, cache, TARGETS, (32, 8))
    np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_errors_leave_the_cache_untouched(model):
    cache = add(model, lvsm_jax.init_cache(model, BATCH, 3, SIZE), some_views(0, 2))
    before = np.asarray(lvsm_jax.render(model, cache, TARGETS))
    one, two = some_views(1, 1), some_views(1, 2)
    other = lvsm_jax.EfficientLVSMConfig(num_layers=3, width=32, head_dim=16)
    other = lvsm_jax.EfficientLVSM(other, rngs=nnx.Rngs(0))
    baseline = lvsm_jax.LVSMDecoderOnlyConfig(num_layers=1, width=32, head_dim=16)
    baseline = lvsm_jax.LVSMDecoderOnly(baseline, rngs=nnx.Rngs(0))
    images, cameras = one.images, one.cameras
    for wrong, message in (
        (lambda: add(model, cache, some_views(1, 4)), "4 more views do not fit: .* at most 3"),
        (lambda: add(model, cache, some_views(1, 0)), "no views to add"),
        (lambda: add(model, cache, one, num_new=[2, 0]), "expected 2 numbers from 0 to 1"),
        (lambda: lvsm_jax.replace_view(model, cache, 3, images, cameras), r"has no views \[3\]"),
        (lambda: lvsm_jax.replace_view(model, cache, -1, images, cameras), "index is -1"),
        (lambda: lvsm_jax.replace_view(model, cache, 0, two.images, two.cameras), "takes one view"),
        (lambda: lvsm_jax.remove_views(cache, [0, 5]), r"has no views \[5\]"),
        (lambda: lvsm_jax.remove_views(cache, [1, 1]), "holds a view twice"),
        (lambda: lvsm_jax.remove_views(cache, [0.5]), "numbered by integers"),
        (lambda: lvsm_jax.remove_views(cache, [[0]] * 3), r"expected \[k\] or \[2, k\]"),
        (lambda: add(model, cache, some_views(1, 1, size=(24, 24))), "but the cache is for 16×24"),
        (lambda: add(model, cache, some_views(1, 1, batch=1)), "1 scenes with a cache of 2"),
        (lambda: lvsm_jax.replace_view(model, cache, 0, images * 2, cameras), r"expected \[0, 1\]"),
        (lambda: add(other, cache, one), "the cache has 2 layers, but the model 3"),
        (lambda: lvsm_jax.render(baseline, cache, TARGETS), "LVSMDecoderOnly has no keys and"),
        (lambda: lvsm_jax.render(model, cache, TARGETS, (12, 8)), "multiples of the patch size"),
        (lambda: lvsm_jax.render(model, cache, some_views(1, 0).cameras), "nothing to render"),
    ):
        with pytest.raises(ValueError, match=message):
            wrong()
    np.testing.assert_array_equal(lvsm_jax.render(model, cache, TARGETS), before)
    assert lvsm_jax.remove_views(cache, []) is cache
    with pytest.raises(ValueError, match=r"model\.cache_dtype is 'int4'"):
        lvsm_jax.EfficientLVSMConfig(cache_dtype="int4")


def test_what_does_not_fit_is_left_out(model):
    """Numbers of views are on the device, so the functions cannot raise errors about them."""
    cache = lvsm_jax.init_cache(model, BATCH, 3, SIZE)
    assert np.isfinite(lvsm_jax.render(model, cache, TARGETS)).all()
    cache = add(model, cache, some_views(0, 1))
    cache = add(model, cache, some_views(1, 1), num_new=[1, 0])
    one, three = some_views(2, 1), some_views(3, 3)
    cache = lvsm_jax.replace_view(model, cache, [1, 1], one.images, one.cameras)
    ours = lvsm_jax.render(model, cache, TARGETS)
    np.testing.assert_allclose(ours, expected_render(model, [[0, 2], [0]]), atol=1e-5)
    cache = lvsm_jax.remove_views(cache, [[1, 2], [2, 1]])
    assert np.asarray(cache.num_views).tolist() == [1, 1]
    ours = lvsm_jax.render(model, cache, TARGETS)
    np.testing.assert_allclose(ours, expected_render(model, [[0], [0]]), atol=1e-5)
    cache = add(model, cache, three)  # of which two fit
    assert np.asarray(cache.num_views).tolist() == [3, 3]
    ours = lvsm_jax.render(model, cache, TARGETS)
    images, cameras = some_views(0, 1), jax.tree.map(lambda x: x[:, :2], three.cameras)
    whole = np.concatenate([images.images, three.images[:, :2]], axis=1)
    cameras = jax.tree.map(lambda *x: np.concatenate(x, axis=1), images.cameras, cameras)
    np.testing.assert_allclose(ours, model(whole, cameras, TARGETS), atol=1e-5)


def test_no_function_waits_for_the_device(model):
    """They return while the device still computes the images that they were given."""

    @jax.jit
    def slowly(views, matrix):
        power = jax.lax.fori_loop(0, 20, lambda _, x: x @ matrix / 1000, matrix)
        return jax.tree.map(lambda x: x + 0 * power[0, 0], views)

    def change_and_render(views):
        images, cameras = views
        cache = lvsm_jax.init_cache(model, BATCH, 3, SIZE)
        cache = lvsm_jax.add_views(model, cache, images, cameras, num_new=[1, 0])
        cache = lvsm_jax.replace_view(model, cache, 0, images, cameras)
        cache = lvsm_jax.remove_views(cache, [[0], [-1]])
        cache = lvsm_jax.add_views(model, cache, images, cameras)
        renders = [lvsm_jax.render(model, cache, cameras)]
        return renders + list(lvsm_jax.render_path(model, cache, cameras, targets_at_once=1))

    views, matrix = some_views(0, 1), jnp.ones((1000, 1000))
    views = jax.device_put((views.images, views.cameras))
    expected = change_and_render(jax.block_until_ready(slowly(views, matrix)))  # and compiles
    with jax.transfer_guard_device_to_host("disallow"):  # which only other backends than CPUs obey
        late = slowly(views, matrix)
        ours = change_and_render(late)
        assert not late[0].is_ready()
    for a, b in zip(ours, expected, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.fixture(scope="module")
def with_latents():
    config = lvsm_jax.LVSMEncoderDecoderConfig(
        num_layers=1, width=32, head_dim=16, num_latents=5, targets_at_once=0
    )
    return lvsm_jax.LVSMEncoderDecoder(config, rngs=nnx.Rngs(0))


def test_latents_render_as_a_full_pass(with_latents):
    views, cameras = some_views(0, 3), some_views(5, 4).cameras
    cache = lvsm_jax.latent_cache(with_latents, views.images, views.cameras)
    assert cache.nbytes == BATCH * 5 * 32 * 4
    expected = with_latents(views.images, views.cameras, cameras)
    ours = lvsm_jax.render(with_latents, cache, cameras, targets_at_once=3)
    np.testing.assert_allclose(ours, expected, atol=1e-5)
    assert lvsm_jax.render(with_latents, cache, TARGETS, (32, 8)).shape == (BATCH, 2, 32, 8, 3)


def test_latents_and_views_are_told_apart(model, with_latents):
    views = some_views(0, 1)
    latents = lvsm_jax.latent_cache(with_latents, views.images, views.cameras)
    cache = lvsm_jax.init_cache(model, BATCH, 1, SIZE)
    other = lvsm_jax.LVSMEncoderDecoderConfig(num_layers=1, width=32, head_dim=16, num_latents=6)
    other = lvsm_jax.LVSMEncoderDecoder(other, rngs=nnx.Rngs(0))
    for wrong, message in (
        (lambda: lvsm_jax.render(model, latents, TARGETS), "EfficientLVSM has no latents"),
        (lambda: lvsm_jax.render(other, latents, TARGETS), "has 5 latents, but the model 6"),
        (lambda: lvsm_jax.render(with_latents, cache, TARGETS), "lvsm_jax.latent_cache keeps"),
        (lambda: add(with_latents, cache, views), "LVSMEncoderDecoder has no keys and values"),
        (lambda: lvsm_jax.init_cache(with_latents, 1, 1, SIZE), "lvsm_jax.latent_cache keeps"),
        (
            lambda: lvsm_jax.latent_cache(model, views.images, views.cameras),
            "EfficientLVSM has no latents",
        ),
        (
            lambda: lvsm_jax.latent_cache(with_latents, views.images[:, :0], views.cameras),
            r"\[b, v\] = \(2, 0\) with cameras",
        ),
        (
            lambda: lvsm_jax.latent_cache(
                with_latents, views.images[:, :0], some_views(0, 0).cameras
            ),
            "no views to encode",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            wrong()
