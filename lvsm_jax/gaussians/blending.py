"""How Gaussians are blended at pixels: the arithmetic that all of the rasteriser's kernels share.

`shape` is six numbers of a Gaussian: its centre from the tile's first corner, x and y, the
whitening (see `Projected`) and the opacity, which is 0 for no Gaussian.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

OPAQUE, CUT = 0.99, 1 / 255  # the largest opacity at a pixel, and the least that counts
SHAPE = 6

Numbers = Sequence[Array]  # that broadcast to the pixels


def alpha_at(shape: Numbers, x: Array, y: Array) -> Array:
    """The opacity of a Gaussian at pixels, whose centres are x and y."""
    u, v, _, _ = _whitened(shape, x, y)
    alpha = jnp.minimum(OPAQUE, shape[5] * jnp.exp(-0.5 * (u * u + v * v)))
    return jnp.where(alpha >= CUT, alpha, 0.0)


def shape_gradients(
    shape: Numbers, x: Array, y: Array, alpha: Array, to_alpha: Array
) -> tuple[Array, ...]:
    """What each pixel adds to the gradients of the six numbers, from that of the opacity there."""
    # Nothing flows through the clamp or the cut; α = o·exp(−σ), so dα = α·(do/o − dσ).
    flows = to_alpha * jnp.where(alpha < OPAQUE, alpha, 0.0)
    u, v, dx, dy = _whitened(shape, x, y)
    _, _, p, q, r, opacity = shape
    to_u, to_v = -flows * u, -flows * v
    return (
        r * q * to_v - p * to_u,
        -r * to_v,
        to_u * dx,
        -r * dx * to_v,
        to_v * (dy - q * dx),
        flows / jnp.where(opacity > 0, opacity, 1.0),
    )


def blend_block(
    gaussians: Sequence[Numbers], x: Array, y: Array, colors: Numbers, through: Array
) -> tuple[tuple[Array, ...], Array]:
    """Blends Gaussians behind what has been seen, in a kernel.

    Each is its shape and then its features; `colors` are what has been seen of these, `through` is
    the share of light that comes from behind that.
    """
    for numbers in gaussians:
        alpha = alpha_at(numbers[:SHAPE], x, y)
        weight, seen = alpha * through, zip(colors, numbers[SHAPE:], strict=True)
        colors = tuple(color + weight * feature for color, feature in seen)
        through = through * (1 - alpha)
    return tuple(colors), through


def unblend_block(
    gaussians: Sequence[Numbers],
    x: Array,
    y: Array,
    to_colors: Numbers,
    through: Array,
    behind: Array,
    write: Callable[[int, Sequence[Array]], Any],
) -> Array:
    """Gradients of Gaussians, which `write` gets by their number and summed over the pixels.

    `through` is the light that passes what is before them, `behind` what the pictures' gradients
    make of all that is behind them. Returned is the latter with them.
    """
    seen = []
    for numbers in gaussians:
        alpha = alpha_at(numbers[:SHAPE], x, y)
        seen.append((alpha, through))
        through = through * (1 - alpha)
    for i, numbers in reversed(list(enumerate(gaussians))):
        shape, (alpha, through) = numbers[:SHAPE], seen[i]
        weight = alpha * through
        own = sum(a * b for a, b in zip(numbers[SHAPE:], to_colors, strict=True))
        to_alpha = through * own - behind / (1 - alpha)
        behind = behind + weight * own
        parts = *shape_gradients(shape, x, y, alpha, to_alpha), *(weight * to for to in to_colors)
        write(i, [jnp.sum(part) for part in parts])
    return behind


def _whitened(shape: Numbers, x: Array, y: Array) -> tuple[Array, Array, Array, Array]:
    """Standard deviations from the centre, and pixels."""
    dx, dy = x - shape[0], y - shape[1]
    p, q, r = shape[2:5]
    return p * dx, r * (dy - q * dx), dx, dy
