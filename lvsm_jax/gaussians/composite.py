"""Blocks of Gaussians blended over the pixels of their tiles, front to back.

The inner loop of the rasteriser, with its own backward pass, which computes all again. A block is
blended as if it were alone; what is before it only dims it. Both passes take the blocks that are
used, a chunk after the other, so that room for more costs memory and no time.

Letters: `k` blocks, `g` Gaussians of a block, `p` pixels of a tile, `f` features.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lvsm_jax.common.platforms import platform_of

OPAQUE, CUT = 0.99, 1 / 255  # the largest opacity at a pixel, and the least that counts


@dataclasses.dataclass(frozen=True)
class _Chunks:
    """How blocks are computed: so many pixels of them together, and Gaussians a kernel."""

    pixels: int
    unrolled: int


# A CPU takes what fits its cache, and compiles less; on chips it is launches that cost.
_CHUNKS = {"cpu": _Chunks(2**14, 1)}
_CHUNKS_ON_CHIPS = _Chunks(2**18, 8)


def _chunks() -> _Chunks:
    platform = platform_of(jax.sharding.get_abstract_mesh())
    return _CHUNKS.get(platform, _CHUNKS_ON_CHIPS)


def blocks_at_once(tile: int) -> int:
    """Blocks of a chunk, for tiles of this side in pixels."""
    return max(1, _chunks().pixels // tile**2)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def composite_blocks(
    tile: int,
    shapes: Float[Array, "k g 6"],
    features: Float[Array, "k g f"],
    used: Int[Array, ""],
) -> tuple[Float[Array, "k f p"], Float[Array, "k p"]]:
    """What each block adds to its pixels, and the share of what is behind that it lets through.

    `shapes` are the centre from the tile's first corner, x and y, the whitening and the opacity,
    see `Projected`; an opacity of 0 is no Gaussian. Only the first `used` blocks are computed: the
    others add nothing. The number of blocks is a multiple of `blocks_at_once`.
    """
    return _forward(tile, shapes, features, used)[0]


def _forward(tile: int, shapes: Array, features: Array, used: Array) -> tuple[Any, Any]:
    blocks, _, depth = features.shape

    def blend(start: Array, at_once: int, images: tuple[Array, Array]) -> tuple[Array, Array]:
        ours, theirs = (_part(x, start, at_once) for x in (shapes, features))

        def add(carry: tuple[Array, Array], gaussian: tuple) -> tuple:
            color, through = carry
            shape, feature = gaussian
            weight = _alphas(tile, shape) * through
            return (color + weight[:, None] * feature[..., None], through - weight), None

        start_of = jnp.zeros((at_once, depth, tile**2)), jnp.ones((at_once, tile**2))
        blended, _ = _scan(add, start_of, (_by_gaussian(ours), _by_gaussian(theirs)))
        return _put(images, blended, start)

    nothing = jnp.zeros((blocks, depth, tile**2)), jnp.ones((blocks, tile**2))
    return _over_chunks(tile, blocks, used, blend, nothing), (shapes, features, used)


def _backward(tile: int, saved: tuple, to_images: tuple[Array, Array]) -> tuple:
    shapes, features, used = saved
    x, y = _pixels(tile)

    def gradients(start: Array, at_once: int, found: tuple[Array, Array]) -> tuple[Array, Array]:
        ours, theirs, to_color, to_through = (
            _part(x, start, at_once) for x in (shapes, features, *to_images)
        )
        by_shape, by_feature = _by_gaussian(ours), _by_gaussian(theirs)

        def forward(through: Array, shape: Array) -> tuple:
            alpha = _alphas(tile, shape)
            return through * (1 - alpha), (alpha, through)

        end, (alphas, throughs) = _scan(forward, jnp.ones((at_once, tile**2)), by_shape)

        def backward(behind: Array, gaussian: tuple) -> tuple:
            # `behind` is what the image's gradient makes of all that this Gaussian dims.
            feature, alpha, through = gaussian
            own = (feature[..., None] * to_color).sum(1)
            to_alpha = through * own - behind / (1 - alpha)
            return behind + alpha * through * own, to_alpha

        _, to_alphas = _scan(
            backward, to_through * end, (by_feature, alphas, throughs), reverse=True
        )
        to_features = jnp.einsum("gkp,kfp->kgf", alphas * throughs, to_color, precision="highest")
        # Nothing flows through the clamp or the cut; α = o·exp(−σ), so dα = α·(do/o − dσ).
        flows = to_alphas * jnp.where(alphas < OPAQUE, alphas, 0)
        u, v, dx, dy = _whitened(by_shape, x, y)
        p, q, r, opacity = (by_shape[..., i, None] for i in range(2, 6))
        to_u, to_v = -flows * u, -flows * v
        to_shape = (
            r * q * to_v - p * to_u,
            -r * to_v,
            to_u * dx,
            -r * dx * to_v,
            to_v * (dy - q * dx),
            flows / jnp.where(opacity > 0, opacity, 1),
        )
        to_shapes = jnp.stack([part.sum(-1) for part in to_shape], -1).swapaxes(0, 1)
        return _put(found, (to_shapes, to_features), start)

    nothing = jnp.zeros_like(shapes), jnp.zeros_like(features)
    return *_over_chunks(tile, len(shapes), used, gradients, nothing), None


composite_blocks.defvjp(_forward, _backward)


def _scan(body: Callable[..., Any], carry: Any, xs: Any, *, reverse: bool = False) -> Any:
    """`jax.lax.scan` over the Gaussians of blocks."""
    return jax.lax.scan(body, carry, xs, reverse=reverse, unroll=_chunks().unrolled)


def _alphas(tile: int, shape: Float[Array, "k 6"]) -> Float[Array, "k p"]:
    """The opacity at each pixel of one Gaussian of each block."""
    u, v, _, _ = _whitened(shape, *_pixels(tile))
    alpha = jnp.minimum(OPAQUE, shape[:, 5, None] * jnp.exp(-0.5 * (u * u + v * v)))
    return jnp.where(alpha >= CUT, alpha, 0)


def _whitened(shape: Float[Array, "*k 6"], x: Array, y: Array) -> tuple[Array, ...]:
    """Standard deviations from the centre, and pixels: `[*k, p]` each."""
    dx, dy = x - shape[..., 0, None], y - shape[..., 1, None]
    p, q, r = (shape[..., i, None] for i in (2, 3, 4))
    return p * dx, r * (dy - q * dx), dx, dy


def _pixels(tile: int) -> tuple[Float[Array, "p"], Float[Array, "p"]]:
    """X and y of a tile's pixel centres, row by row."""
    number = jnp.arange(tile**2)
    return number % tile + 0.5, number // tile + 0.5


def _by_gaussian(x: Float[Array, "k g c"]) -> Float[Array, "g k c"]:
    return x.swapaxes(0, 1)


def _over_chunks(tile: int, blocks: int, used: Array, body: Callable[..., Any], carry: Any) -> Any:
    at_once = min(blocks, blocks_at_once(tile))
    chunks = (used + at_once - 1) // at_once
    return jax.lax.fori_loop(0, chunks, lambda i, carry: body(i * at_once, at_once, carry), carry)


def _part(x: Array, start: Array, size: int) -> Array:
    return jax.lax.dynamic_slice_in_dim(x, start, size)


def _put(whole: tuple[Array, ...], parts: tuple[Array, ...], start: Array) -> tuple[Array, ...]:
    put = jax.lax.dynamic_update_slice_in_dim
    return tuple(put(x, part, start, 0) for x, part in zip(whole, parts, strict=True))
