"""Features of VGG networks, as functions over a pytree of weights.

A plan gives the channels of the convolutions of each block; blocks are separated by a pooling.
Weights are nested alike: for each block, for each convolution, a dict of `kernel`
`[3, 3, in, out]` and `bias` `[out]`.
"""

import itertools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lvsm_jax.common.errors import UserError

Images = Float[Array | np.ndarray, "b h w 3"]
Plan = tuple[tuple[int, ...], ...]
Layer = dict[str, Array | np.ndarray]
Weights = Sequence[Sequence[Layer]]

VGG16: Plan = ((64,) * 2, (128,) * 2, (256,) * 3, (512,) * 3, (512,) * 3)
VGG19: Plan = ((64,) * 2, (128,) * 2, (256,) * 4, (512,) * 4, (512,) * 4)


def max_pool(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
    """Maximum of each 2×2 pixels; an odd last row or column is left out."""
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


def average_pool(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
    """Mean of each 2×2 pixels; an odd last row or column is left out."""
    return jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID") / 4


def features(
    weights: Weights,
    images: Float[Array, "b h w 3"],
    *,
    taps: Sequence[int],
    pool: Callable[[Array], Array] = max_pool,
    precision: str | None = "highest",
) -> list[Float[Array, "b _ _ _"]]:
    """Activations (after the ReLU) of one convolution of each block, in the type of the weights.

    Images are normalised as the weights expect. `taps` says which convolution, counted from 0; none
    after the last is computed. `pool` is between blocks, `precision` a `jax.lax.Precision`.
    """
    outputs, x = [], jnp.asarray(images, weights[0][0]["kernel"].dtype)
    for block, (convolutions, tap) in enumerate(zip(weights, taps, strict=True)):
        if block:
            x = pool(x)
        last = len(convolutions) if block + 1 < len(weights) else tap + 1
        for i, convolution in enumerate(convolutions[:last]):
            x = jax.nn.relu(_convolve(x, convolution, precision))
            if i == tap:
                outputs.append(x)
    return outputs


def from_layers(plan: Plan, layers: Sequence[Layer], name: str) -> Weights:
    """Groups convolutions, listed from the image on, into the plan's blocks.

    UserError, with the network's `name`, for a number of layers or a shape that is not the plan's.
    """
    shapes = _shapes(plan)
    if len(layers) != len(shapes):
        raise UserError(f"{name} has {len(layers)} convolutions, expected {len(shapes)}")
    for i, (layer, expected) in enumerate(zip(layers, shapes, strict=True)):
        found = {key: np.shape(value) for key, value in layer.items()}
        if found != expected:
            raise UserError(f"{name}, convolution {i}: shapes {found}, expected {expected}")
    rest = iter(layers)
    return tuple(tuple(next(rest) for _ in block) for block in plan)


def zeros(plan: Plan, dtype: str) -> Weights:
    """Weights of zeros."""
    layers = [{key: jnp.zeros(x, dtype) for key, x in layer.items()} for layer in _shapes(plan)]
    return from_layers(plan, layers, "VGG")


def _shapes(plan: Plan) -> list[dict[str, tuple[int, ...]]]:
    channels = [3, *(c for block in plan for c in block)]
    return [
        {"kernel": (3, 3, c_in, c_out), "bias": (c_out,)}
        for c_in, c_out in itertools.pairwise(channels)
    ]


def _convolve(x: Array, weights: Layer, precision: str | None) -> Array:
    kernel, (height, width) = weights["kernel"], x.shape[1:3]
    if min(height, width) >= 3:
        options = {"dimension_numbers": ("NHWC", "HWIO", "NHWC"), "precision": precision}
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", **options) + weights["bias"]
    # A picture smaller than the kernel, as deep layers see of 32 pixels, takes XLA a hundred times
    # as long on a CPU: as one product with all neighbours instead.
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    shifts = [padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
    neighbours = jnp.concatenate(shifts, axis=-1)
    flat = kernel.reshape(-1, kernel.shape[-1])
    return jnp.matmul(neighbours, flat, precision=precision) + weights["bias"]
