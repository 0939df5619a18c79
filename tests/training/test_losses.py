"""The terms of the loss, and the frozen networks that two of them look through."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from lvsm_jax.common.errors import MissingWeightsError, UserError
from lvsm_jax.frozen.perceptual import load_perceptual
from lvsm_jax.parallel.mesh import MeshConfig, make_mesh, replicate
from lvsm_jax.training.frozen_networks import Frozen, find_frozen, load_frozen
from lvsm_jax.training.losses import LossConfig, distance, total_loss
from lvsm_jax.training.repa import RepaConfig
from tests.helpers.frozen_networks import (
    narrow_lpips,
    narrow_perceptual,
    save_matconvnet,
    seeded_vgg19,
)

NETWORKS = {"perceptual": narrow_perceptual(), "lpips": narrow_lpips()}


def pictures(scenes=2, targets=2):
    rng = np.random.default_rng(0)
    shape = (2, scenes, targets, 16, 24, 3)
    render, target = rng.uniform(size=shape).astype(np.float32)
    return jnp.asarray(render), jnp.asarray(target)


@pytest.fixture(scope="module")
def vgg19_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "imagenet-vgg-verydeep-19.mat"
    save_matconvnet(path, seeded_vgg19())
    return path


def test_perceptual_golden_from_matconvnets_file(vgg19_file, goldens):
    golden = np.load(goldens / "metrics.npz")
    network = load_perceptual(vgg19_file)
    terms = jax.jit(lambda network, *images: network.terms(*images))
    result = np.asarray(terms(network, golden["target"], golden["prediction"]))
    np.testing.assert_allclose(result.mean(axis=0), golden["perceptual_terms"], rtol=1e-5)
    np.testing.assert_allclose(result.sum(-1).mean() / 255, golden["perceptual_loss"], rtol=1e-5)


def test_networks_are_read_once_in_the_models_type_and_held_by_every_device(vgg19_file):
    mesh, config = (
        make_mesh(MeshConfig(2, 4)),
        LossConfig(perceptual=0.5, vgg_weights=str(vgg19_file)),
    )
    frozen = load_frozen(config, RepaConfig(), dtype="bfloat16", mesh=mesh)
    assert frozen.lpips is None and frozen.teacher is None
    leaves = jax.tree.leaves(frozen)
    assert len(leaves) == 28
    for leaf in leaves:
        assert leaf.dtype == jnp.bfloat16
        assert leaf.sharding == NamedSharding(mesh, P())


def test_files_with_other_contents_are_refused_by_name(tmp_path):
    (tmp_path / "text.mat").write_text("not MATLAB's")
    save_matconvnet(tmp_path / "few.mat", seeded_vgg19()[:2])
    broken = seeded_vgg19()[:14]
    broken[3]["bias"][5] = np.nan
    save_matconvnet(tmp_path / "nan.mat", broken)
    for name, message in (
        ("text", r"text\.mat does not hold MatConvNet's VGG-19"),
        ("few", r"few\.mat does not hold .* convolution 2: shapes"),
        ("nan", r"nan\.mat, convolution 3: values that are not finite"),
    ):
        config = LossConfig(perceptual=1.0, vgg_weights=str(tmp_path / f"{name}.mat"))
        with pytest.raises(UserError, match=message):
            load_frozen(config, RepaConfig(), dtype="float32", mesh=make_mesh())


@pytest.mark.parametrize(
    ("loss", "repa", "message"),
    [
        (
            {"perceptual": 0.5, "vgg_weights": "nowhere/vgg.mat"},
            {},
            r"nowhere/vgg\.mat is missing: get imagenet-vgg-verydeep-19\.mat .*vlfeat\.org.* put "
            r"it there or name its place in --config\.loss\.vgg_weights; or go without by "
            r"--config\.loss\.perceptual=0",
        ),
        (
            {"lpips": 0.5, "lpips_weights": "nowhere/lpips.ckpt"},
            {},
            r"no LPIPS weights at nowhere/lpips\.ckpt \(loss\.lpips_weights\)",
        ),
        (
            {},
            {"weight": 0.5},
            r"teacher dinov3_vitb16, and weights/dinov3_vitb16_pretrain.*\.pth is missing: get .* "
            r"put it there or name its place in --config\.repa\.teacher_weights; .*repa\.weight=0",
        ),
    ],
    ids=["vgg", "lpips", "teacher"],
)
def test_a_missing_file_is_told_with_where_to_get_and_put_it(
    loss, repa, message, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MissingWeightsError, match=message):
        find_frozen(LossConfig(**loss), RepaConfig(**repa))


def test_terms_without_weight_need_no_file():
    assert find_frozen(LossConfig(vgg_weights="nowhere"), RepaConfig()) == {}


@functools.partial(jax.jit, static_argnums=0)
def loss_at(config, frozen, render, target, step):
    return total_loss(config, frozen, render, target, step)


def test_the_sum_and_when_terms_start():
    config = LossConfig(mse=2.0, perceptual=0.5, lpips=0.25, perceptual_start=3)
    frozen, images = Frozen(**NETWORKS), pictures()
    before, after = (loss_at(config, frozen, *images, jnp.int32(step)) for step in (2, 3))
    expected = {
        "mse": np.square(images[0] - images[1]).mean(),
    }
    for name, network in NETWORKS.items():
        render, target = (x.reshape(-1, *x.shape[2:]) for x in images)
        expected[name] = jax.jit(type(network).__call__)(network, target, render).mean()
    for name, value in expected.items():
        assert value > 1e-3
        np.testing.assert_allclose(after[1][name], value, rtol=1e-5)
        np.testing.assert_allclose(before[1][name], 0 if name == "perceptual" else value, rtol=1e-5)
    for total, terms in (before, after):
        weighted = 2 * terms["mse"] + 0.5 * terms["perceptual"] + 0.25 * terms["lpips"]
        np.testing.assert_allclose(total, weighted, rtol=1e-6)


def test_gradients_are_those_of_one_device_whatever_is_recomputed():
    network, (render, target) = NETWORKS["perceptual"], pictures(scenes=4)

    def grad(remat):
        function = jax.value_and_grad(functools.partial(distance, remat=remat), argnums=1)
        return jax.jit(function)(network, render, target)

    expected = grad("none")
    assert np.abs(expected[1]).max() > 1e-5
    mesh = make_mesh(MeshConfig(4, 2))
    scenes = NamedSharding(mesh, P("data"))
    with jax.set_mesh(mesh):
        network = replicate(mesh, network)
        render, target = jax.device_put((render, target), scenes)
        result = grad("full")
    assert result[1].sharding.spec[0] == "data"
    for ours, theirs in zip(result, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=1e-8)


@pytest.mark.parametrize("name", NETWORKS)
def test_in_bfloat16_it_is_nearly_the_same(name):
    target, render = (x[0] for x in pictures())
    call = jax.jit(type(NETWORKS[name]).__call__)
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), NETWORKS[name])
    rough, exact = (call(network, target, render) for network in (half, NETWORKS[name]))
    assert rough.dtype == jnp.float32
    np.testing.assert_allclose(rough, exact, rtol=0.02)
    assert (rough != exact).all()


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_are_finite_where_no_activation_is(name):
    def quiet(path, leaf):
        return leaf - 100 if "bias" in jax.tree_util.keystr(path) else leaf

    network = jax.tree_util.tree_map_with_path(quiet, NETWORKS[name])
    render, target = (x[0] / 1000 for x in pictures())
    grad = jax.jit(jax.grad(lambda render: network(target, render).sum()))(render)
    assert np.isfinite(grad).all()


def test_small_images_are_refused():
    image = np.zeros((1, 8, 16, 3), np.float32)
    with pytest.raises(ValueError, match="16×16 pixels at least"):
        NETWORKS["perceptual"](image, image)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"perceptual": -0.5}, "expected none below"),
        ({"mse": 0.0}, "one above zero"),
        ({"mse": float("nan")}, "expected none below"),
        ({"lpips_start": -1}, "loss.lpips_start is -1, expected at least 0"),
    ],
)
def test_impossible_weights(changes, message):
    with pytest.raises(ValueError, match=message):
        LossConfig(**changes)
