"""An exact, differentiable rasteriser of Gaussians, with static shapes.

Every pixel blends all Gaussians that show there, front to back by the depth of their centres: no
list is cut short, and there is no early stop. The picture is cut into tiles:

1. each Gaussian is paired with the tiles that it reaches; pairs are sorted by tile, then depth;
2. each tile's list is cut into blocks;
3. the blocks of each tile are blended (`gaussians.composite`).

There is room for `capacity` pairs. Where it is too small, the pairs of the farthest Gaussians are
left out, and `Raster.pairs` says so.

Letters: `n` Gaussians, `f` features.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lvsm_jax.common.errors import UserError
from lvsm_jax.gaussians.composite import blocks_at_once, composite_tiles, has_kernel
from lvsm_jax.gaussians.gaussians import Gaussians, Projected, project

BLOCK = 32  # Gaussians that are blended one after the other


class Raster(NamedTuple):
    """What a camera sees, before a background: add `(1 − alpha) · background`.

    Attributes:
        features: `[h, w, f]`, colours among them, in float32.
        alpha: `[h, w, 1]`, how much of the background is covered.
        pairs: int32, pairs of a Gaussian and a tile; more than the capacity: the picture lacks the
            farthest ones.
    """

    features: Any
    alpha: Any
    pairs: Any


def rasterize(
    gaussians: Gaussians,
    c2w: Float[Array, "4 4"],
    fxfycxcy: Float[Array, "4"],
    *,
    height: int,
    width: int,
    capacity: int,
    tile: int = 16,
) -> Raster:
    """What a camera (see `Cameras`) sees of the Gaussians of a scene: their colours.

    Height, width and `tile` are in pixels. The picture does not depend on `tile`; it is NaN where
    the Gaussians are not finite. Raises UserError for more pairs than can be counted.
    """
    projected = project(gaussians, c2w, fxfycxcy, height, width)
    raster = rasterize_projected(
        projected,
        gaussians.opacities,
        gaussians.colors,
        height=height,
        width=width,
        capacity=capacity,
        tile=tile,
    )
    # One that is NaN is on no tile: without this, nothing would tell.
    finite = jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(gaussians)]).all()
    return raster._replace(features=jnp.where(finite, raster.features, jnp.nan))


def rasterize_projected(
    projected: Projected,
    opacities: Float[Array, "n"],
    features: Float[Array, "n f"],
    *,
    height: int,
    width: int,
    capacity: int,
    tile: int,
) -> Raster:
    """As `rasterize`, from projected Gaussians and any features of them."""
    columns, rows = -(-width // tile), -(-height // tile)
    if len(opacities) * columns * rows >= 2**31:
        raise UserError(
            f"{len(opacities):,} Gaussians on {columns * rows:,} tiles of {tile} px are more pairs "
            "than 32 bits count: take larger tiles"
        )
    order = jnp.argsort(jax.lax.stop_gradient(projected.depths))
    center, radii = (x[order] for x in (projected.centers, projected.radii))
    blocks = _list_blocks(center, radii, columns, rows, capacity=capacity, tile=tile)
    # One table, so that the backward pass adds to each Gaussian once for a pair, not four times.
    parts = projected.centers, projected.whitening, opacities[:, None], features
    chosen = jnp.concatenate(parts, -1)[order[blocks.gaussian]]
    corner = jnp.stack([blocks.tile % columns, blocks.tile // columns], -1) * tile
    centers = chosen[..., :2] - corner[:, None].astype(jnp.float32)
    opacity = jnp.where(blocks.there[..., None], chosen[..., 5:6], 0)
    shapes = jnp.concatenate([centers, chosen[..., 2:5], opacity], -1)
    image, alpha = composite_tiles(tile, shapes, chosen[..., 6:], blocks.tile, blocks.starts)

    def assemble(x: Float[Array, "tiles f p"]) -> Float[Array, "h w f"]:
        x = x.reshape(rows, columns, -1, tile, tile).transpose(0, 3, 1, 4, 2)
        return x.reshape(rows * tile, columns * tile, -1)[:height, :width]

    return Raster(assemble(image), assemble(alpha[:, None]), blocks.pairs)


class _Blocks(NamedTuple):
    """Lists of the tiles, cut into blocks: tile after tile, front to back."""

    tile: Int[Array, "k"]
    gaussian: Int[Array, "k g"]  # places in the order of depth
    there: Any  # bool `[k, g]`, False where a tile's last block is not full
    starts: Int[Array, "starts"]  # first block of each tile, and their number
    pairs: Int[Array, ""]


def _list_blocks(
    centers: Float[Array, "n 2"],
    radii: Int[Array, "n 2"],
    columns: int,
    rows: int,
    *,
    capacity: int,
    tile: int,
) -> _Blocks:
    """The lists of all tiles, of Gaussians that come in the order of their depth."""
    n, tiles = len(centers), columns * rows
    centers, reach = jax.lax.stop_gradient(centers), radii.astype(jnp.float32)
    ends = jnp.array([columns, rows], jnp.float32)
    low = jnp.clip(jnp.floor((centers - reach) / tile), 0, ends).astype(jnp.int32)
    high = jnp.clip(jnp.ceil((centers + reach) / tile), 0, ends).astype(jnp.int32)
    sides = jnp.where((radii > 0).all(-1, keepdims=True), high - low, 0)
    counts = sides.prod(-1)
    until = jnp.cumsum(counts)
    pairs = until[-1]

    number = jnp.arange(capacity)
    gaussian = jnp.repeat(jnp.arange(n), counts, total_repeat_length=capacity)
    inside = number - (until - counts)[gaussian]
    wide = jnp.maximum(sides[gaussian, 0], 1)
    at = (low[gaussian, 1] + inside // wide) * columns + low[gaussian, 0] + inside % wide
    # Both in one number, for there are fewer than 2³¹ such pairs: a sort of two takes twice
    # as long. Inside a tile the order is that of depth.
    key = at.astype(jnp.uint32) * n + gaussian.astype(jnp.uint32)
    key = jax.lax.sort(jnp.where(number < pairs, key, jnp.uint32(tiles * n)), is_stable=False)
    first_of_tile = jnp.arange(tiles + 1, dtype=jnp.uint32) * n
    start = jnp.searchsorted(key, first_of_tile).astype(jnp.int32)
    gaussian = (key % n).astype(jnp.int32)
    of_tile = (start[1:] - start[:-1] + BLOCK - 1) // BLOCK
    block_ends = jnp.cumsum(of_tile)
    most = block_bound(capacity, tiles, tile)
    block_tile = jnp.repeat(jnp.arange(tiles), of_tile, total_repeat_length=most)
    block = jnp.arange(most) - (block_ends - of_tile)[block_tile]
    place = start[block_tile][:, None] + block[:, None] * BLOCK + jnp.arange(BLOCK)
    there = (jnp.arange(most) < block_ends[-1])[:, None] & (place < start[block_tile + 1][:, None])
    starts = jnp.concatenate([jnp.zeros(1, block_ends.dtype), block_ends])
    return _Blocks(block_tile, gaussian[jnp.minimum(place, capacity - 1)], there, starts, pairs)


def block_bound(capacity: int, tiles: int, tile: int) -> int:
    """Blocks that suffice for all lists, as many as can be computed together or a multiple."""
    most, at_once = capacity // BLOCK + tiles, blocks_at_once(tile)
    return most if most <= at_once else -(-most // at_once) * at_once


def most_chunks(capacity: int, tiles: int, tile: int) -> int | None:
    """Turns of the loops over chunks of blocks where all room is used, on the mesh that is set.

    None where a kernel blends all blocks.
    """
    if has_kernel(tile):
        return None
    return -(-block_bound(capacity, tiles, tile) // blocks_at_once(tile))


def rasterizer_bytes(
    gaussians: int, *, height: int, width: int, capacity: int, tile: int, features: int = 3
) -> int:
    """Bytes of one picture's forward pass at its peak, of float32 and int32 numbers, in plain JAX.

    The projection takes some 50 a Gaussian, sorting 16 a pair, and each block its Gaussians'
    numbers and twice its pixels'.
    """
    tiles = -(-height // tile) * -(-width // tile)
    blocks = block_bound(capacity, tiles, tile)
    of_block = BLOCK * (6 + features + 2) + 2 * (features + 1) * tile**2
    return 50 * gaussians + 16 * capacity + 4 * of_block * blocks


def capacity_for(gaussians: int, pairs_per_gaussian: float) -> int:
    """A capacity of so many pairs a Gaussian."""
    return max(1, math.ceil(gaussians * pairs_per_gaussian))
