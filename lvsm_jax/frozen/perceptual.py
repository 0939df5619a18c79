"""The perceptual loss of the LVSM papers: VGG-19 with average pooling.

The weights are those of MatConvNet's `imagenet-vgg-verydeep-19.mat`, read as data: a file of
MATLAB arrays holds no code that could run.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jaxtyping import Array, Float

from lvsm_jax.common.errors import MissingWeightsError, UserError
from lvsm_jax.frozen import vgg
from lvsm_jax.frozen.matfile import read_variable

# Where the convolutions are among the file's layers; those after relu5_2 are not read.
_CONVOLUTIONS = (0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30)
PLAN: vgg.Plan = (*vgg.VGG19[:4], vgg.VGG19[4][:2])
_TAPS, _MEAN = (1, 1, 1, 1, 1), (123.68, 116.779, 103.939)
# Of the images themselves, then of the activations after relu1_2, ..., relu5_2.
_SCALES = (1, 1 / 2.6, 1 / 4.8, 1 / 3.7, 1 / 5.6, 10 / 1.5)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Perceptual:
    """Distance of images in [0, 1]; a pytree of its weights, in whose type it is computed."""

    # `vgg.Weights` of `PLAN`. Any, for a pytree also holds shapes, shardings and specs as leaves.
    vgg: Any

    def __call__(self, target: vgg.Images, prediction: vgg.Images) -> Float[Array, "b"]:
        """Distance of each pair, in float32."""
        return self.terms(target, prediction).sum(axis=-1) / 255

    def terms(self, target: vgg.Images, prediction: vgg.Images) -> Float[Array, "b 6"]:
        """Scaled mean absolute differences: of the images in [0, 255], then of five activations."""
        size = target.shape[1:3]
        if min(size) < 16:
            raise UserError(f"the perceptual loss needs images of 16×16 pixels at least: {size}")
        pairs = zip(self._features(target), self._features(prediction), strict=True)
        distances = [jnp.abs(a - b).mean(axis=(1, 2, 3)) for a, b in pairs]
        return jnp.stack(distances, axis=-1) * jnp.array(_SCALES)

    def _features(self, images: Array | np.ndarray) -> list[Array]:
        images = jnp.asarray(images, jnp.float32) * 255 - jnp.array(_MEAN)
        outputs = vgg.features(self.vgg, images, taps=_TAPS, pool=vgg.average_pool, precision=None)
        return [x.astype(jnp.float32) for x in (images, *outputs)]


def find_vgg19(path: epath.PathLike) -> epath.Path:
    """The file of weights, or raises MissingWeightsError saying where to get and put it."""
    if epath.Path(path).is_file():
        return epath.Path(path)
    raise MissingWeightsError(
        f"the perceptual loss needs VGG-19, and {path} is missing: get "
        "imagenet-vgg-verydeep-19.mat (550 MB) from "
        "https://www.vlfeat.org/matconvnet/pretrained/, and put it there or name its place in "
        "--config.loss.vgg_weights; or go without by --config.loss.perceptual=0"
    )


def load_perceptual(path: epath.PathLike) -> Perceptual:
    """Reads the weights of `find_vgg19`, as float32 NumPy arrays; UserError if they are others."""
    with find_vgg19(path).open("rb") as file:
        try:
            layers = read_variable(file, "layers")
            # A layer is a struct in a cell; its third field is the cell of kernel and bias.
            cells = [list(layers[i][0].values())[2] for i in _CONVOLUTIONS]
            arrays = [[np.array(x, np.float32, order="C") for x in cell] for cell in cells]
            convolutions = [{"kernel": kernel, "bias": bias.ravel()} for kernel, bias in arrays]
            weights = vgg.from_layers(PLAN, convolutions, "VGG-19")
        except Exception as error:  # a broken file can fail in any way
            raise UserError(f"{path} does not hold MatConvNet's VGG-19: {error!r}") from error
    for i, layer in enumerate(convolutions):
        if not all(np.isfinite(array).all() for array in layer.values()):
            raise UserError(f"{path}, convolution {i}: values that are not finite")
    return Perceptual(weights)
