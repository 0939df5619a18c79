"""The Gaussians of each tile blended over its pixels, front to back.

The inner loop of the rasteriser, with its own backward pass, which computes all again. In plain JAX
a block of Gaussians is blended as if it were alone; what is before it only dims it, so that the
blocks of a tile are joined by a scan: (C, T) ∘ (C', T') = (C + T·C', T·T'). Both passes take the
blocks that are used, a chunk after the other: room for more costs memory and no time.

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
from lvsm_jax.gaussians import composite_gpu, composite_tpu
from lvsm_jax.gaussians.blending import SHAPE, alpha_at, shape_gradients


@dataclasses.dataclass(frozen=True)
class _Chunks:
    """How blocks are computed: so many pixels of them together, and Gaussians a kernel."""

    pixels: int
    unrolled: int


# A CPU takes what fits its cache, and compiles less; on chips it is launches that cost.
_CHUNKS = {"cpu": _Chunks(2**14, 1)}
_CHUNKS_ON_CHIPS = _Chunks(2**18, 8)


def _chunks() -> _Chunks:
    return _CHUNKS.get(_platform(), _CHUNKS_ON_CHIPS)


def blocks_at_once(tile: int) -> int:
    """Blocks of a chunk, for tiles of this side in pixels; a kernel takes one after the other."""
    return 1 if has_kernel(tile) else max(1, _chunks().pixels // tile**2)


def composite_tiles(
    tile: int,
    shapes: Float[Array, "k g 6"],
    features: Float[Array, "k g f"],
    tile_of: Int[Array, "k"],
    starts: Int[Array, "starts"],
) -> tuple[Float[Array, "tiles f p"], Float[Array, "tiles p"]]:
    """The picture of each tile, of this side in pixels, and how opaque it is.

    `shapes` are those of `blending`. The blocks of a tile follow each other, and tiles one another:
    `tile_of` is the tile of each, `starts` the first of each tile and how many there are. The
    number of blocks is a multiple of `blocks_at_once`, or less. By a Pallas kernel where there is
    one for the platform that is compiled for.
    """
    if has_kernel(tile):
        if _platform() == "gpu":
            images, through = composite_gpu.blend_tiles(tile, shapes, features, starts)
        else:
            images, through = composite_tpu.blend_tiles(tile, shapes, features, tile_of, starts)
        return images, 1 - through
    used, tiles = starts[-1], len(starts) - 1
    added, through = composite_blocks(tile, shapes, features, used)
    first = jnp.concatenate([jnp.ones(1, bool), tile_of[1:] != tile_of[:-1]])
    upto = _product_by_tile(first, through)
    before = jnp.where(first[:, None], 1, jnp.roll(upto, 1, 0))
    live = jnp.arange(len(first)) < used
    added = jnp.where(live[:, None, None], added * before[:, None], 0)
    # What each block takes of the light that reaches it: their sum is the alpha of a tile.
    taken = jnp.where(live[:, None], before - upto, 0)
    sums = {"num_segments": tiles, "indices_are_sorted": True}
    return tuple(jax.ops.segment_sum(x, tile_of, **sums) for x in (added, taken))


def has_kernel(tile: int) -> bool:
    """Whether there is a kernel, on the mesh that is set, for tiles of this side in pixels.

    GPUs take powers of two, TPUs such of them as fill a vector.
    """
    least = {"gpu": 1, "tpu": composite_tpu.LANES}.get(_platform())
    return least is not None and tile & (tile - 1) == 0 and tile**2 >= least


def _platform() -> str:
    return platform_of(jax.sharding.get_abstract_mesh())


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def composite_blocks(
    tile: int,
    shapes: Float[Array, "k g 6"],
    features: Float[Array, "k g f"],
    used: Int[Array, ""],
) -> tuple[Float[Array, "k f p"], Float[Array, "k p"]]:
    """What each block adds to its pixels, and the share of what is behind that it lets through.

    Only the first `used` blocks are computed: the others add nothing.
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
        to_shape = shape_gradients(_numbers(by_shape), x, y, alphas, to_alphas)
        to_shapes = jnp.stack([part.sum(-1) for part in to_shape], -1).swapaxes(0, 1)
        return _put(found, (to_shapes, to_features), start)

    nothing = jnp.zeros_like(shapes), jnp.zeros_like(features)
    return *_over_chunks(tile, len(shapes), used, gradients, nothing), None


composite_blocks.defvjp(_forward, _backward)


def _product_by_tile(first: Array, through: Float[Array, "k p"]) -> Float[Array, "k p"]:
    """Products of what the blocks of a tile let through, each with all before it."""

    def join(a: tuple[Array, Array], b: tuple[Array, Array]) -> tuple[Array, Array]:
        return a[0] | b[0], jnp.where(b[0], b[1], a[1] * b[1])

    return jax.lax.associative_scan(join, (first[:, None], through))[1]


def _scan(body: Callable[..., Any], carry: Any, xs: Any, *, reverse: bool = False) -> Any:
    """`jax.lax.scan` over the Gaussians of blocks."""
    return jax.lax.scan(body, carry, xs, reverse=reverse, unroll=_chunks().unrolled)


def _alphas(tile: int, shape: Float[Array, "k 6"]) -> Float[Array, "k p"]:
    """The opacity at each pixel of one Gaussian of each block."""
    return alpha_at(_numbers(shape), *_pixels(tile))


def _numbers(shape: Float[Array, "*k 6"]) -> list[Float[Array, "*k 1"]]:
    return [shape[..., i, None] for i in range(SHAPE)]


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
