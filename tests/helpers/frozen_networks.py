"""Small frozen networks with random weights, and VGG-19 as MatConvNet's file holds it."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import scipy.io

from lvsm_jax.frozen import vgg
from lvsm_jax.frozen.lpips import LPIPS
from lvsm_jax.frozen.perceptual import Perceptual


def narrow(convolutions: tuple[int, ...], seed: int) -> vgg.Weights:
    """A network with so many convolutions a block, of four channels each."""
    rng, inputs, blocks = np.random.default_rng(seed), 3, []
    for count in convolutions:
        layers = []
        for _ in range(count):
            kernel = rng.normal(0, 0.3, (3, 3, inputs, 4)).astype(np.float32)
            layers.append({"kernel": kernel, "bias": np.full(4, 0.1, np.float32)})
            inputs = 4
        blocks.append(tuple(layers))
    return jax.tree.map(jnp.asarray, tuple(blocks))


def narrow_perceptual() -> Perceptual:
    return Perceptual(narrow((2, 2, 2, 2, 2), seed=0))


def narrow_lpips() -> LPIPS:
    return LPIPS(narrow((2, 2, 3, 3, 3), seed=1), tuple(jnp.full(4, 0.1) for _ in range(5)))


def seeded_vgg19() -> list[dict[str, np.ndarray]]:
    """The convolutions of VGG-19 that `goldens/metrics.npz` was computed with."""
    rng, layers, inputs = np.random.RandomState(7), [], 3
    for outputs in (c for block in vgg.VGG19 for c in block):
        kernel = rng.standard_normal((3, 3, inputs, outputs)) * np.sqrt(2 / (9 * inputs))
        bias = rng.standard_normal(outputs) * 0.1
        layers.append({"kernel": kernel.astype(np.float32), "bias": bias.astype(np.float32)})
        inputs = outputs
    return layers


def save_matconvnet(
    path: pathlib.Path, layers: list[dict[str, np.ndarray]], *, do_compression: bool = False
) -> None:
    """Writes convolutions, with the other layers between them, as MatConvNet's file has them."""
    places = [0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34]
    fields = [(name, object) for name in ("name", "type", "weights", "stride")]
    cells = np.empty((1, 37), object)
    for i in range(37):
        weights = np.empty((1, 2), object)
        weights[0] = np.zeros((0, 0)), np.zeros((0, 0))
        if i in places[: len(layers)]:
            layer = layers[places.index(i)]
            weights[0] = layer["kernel"], layer["bias"][None]
        cells[0, i] = np.array([[(f"layer{i}", "conv", weights, np.ones((1, 2)))]], fields)
    content = {"meta": "left unread", "layers": cells}
    scipy.io.savemat(path, content, do_compression=do_compression)
