"""The lists of tiles blended by a Pallas kernel of a GPU (Triton), a program for each tile.

A tile's picture stays in registers while its blocks pass, front to back. The backward pass takes
the blocks back to front, with the light that the forward pass saw reach each: to divide it out
again would lose it where nothing is left. A block writes its own gradients, so that nothing is
added in an order that chance decides.

Letters: `k` blocks, `g` Gaussians of a block, `f` features, `p` pixels of a tile,
`c` numbers of all Gaussians of a block.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lvsm_jax.common.platforms import platform_of
from lvsm_jax.gaussians.blending import SHAPE, blend_block, unblend_block

_WARPS = 8


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def blend_tiles(
    tile: int,
    shapes: Float[Array, "k g 6"],
    features: Float[Array, "k g f"],
    starts: Int[Array, "starts"],
) -> tuple[Float[Array, "tiles f p"], Float[Array, "tiles p"]]:
    """The picture of each tile, and the share of what is behind that it lets through.

    `shapes` are those of `blending`, `starts` the first block of each tile and how many there are;
    the side of a tile is a power of two. Interpreted, hence slow, on other platforms.
    """
    return _forward(tile, shapes, features, starts)[0]


def _forward(tile: int, shapes: Array, features: Array, starts: Array) -> tuple[Any, Any]:
    blocks, gaussians, depth = features.shape
    table = _table(shapes, features)

    def kernel(starts: Any, table: Any, images: Any, throughs: Any, befores: Any) -> None:
        number, (x, y) = _program(), _pixels(tile)

        def block(k: Array, seen: tuple) -> tuple:
            befores[k, :] = seen[1]
            return blend_block(_rows(table, k, gaussians), x, y, *seen)

        nothing = (jnp.zeros(tile**2),) * depth, jnp.ones(tile**2)
        colors, through = jax.lax.fori_loop(starts[number], starts[number + 1], block, nothing)
        for f, color in enumerate(colors):
            images[number, f, :] = color
        throughs[number, :] = through

    tiles, pixels = len(starts) - 1, tile**2
    shape = [(tiles, depth, pixels), (tiles, pixels), (blocks, pixels)]
    images, throughs, befores = _call("blend", kernel, tiles, shape)(starts, table)
    return (images, throughs), (shapes, features, starts, befores, throughs)


def _backward(tile: int, saved: tuple, to_images: tuple[Array, Array]) -> tuple:
    shapes, features, starts, befores, throughs = saved
    blocks, gaussians, depth = features.shape
    numbers, tiles = SHAPE + depth, len(starts) - 1

    def kernel(starts: Any, table: Any, befores: Any, to_image: Any, ends: Any, found: Any) -> None:
        number, (x, y) = _program(), _pixels(tile)
        first, stop = starts[number], starts[number + 1]
        to_colors = [to_image[number, f, :] for f in range(depth)]

        def block(i: Array, behind: Array) -> Array:
            k = stop - 1 - (i - first)

            def write(g: int, sums: Any) -> None:
                for c, value in enumerate(sums):
                    found[k, g * numbers + c] = value

            rows = _rows(table, k, gaussians)
            return unblend_block(rows, x, y, to_colors, befores[k, :], behind, write)

        jax.lax.fori_loop(first, stop, block, ends[number, :])

    to_image, to_through = to_images
    call = _call("blend_backward", kernel, tiles, [(blocks, gaussians * numbers)])
    (found,) = call(starts, _table(shapes, features), befores, to_image, to_through * throughs)
    used = jnp.arange(blocks) < starts[-1]  # nothing was written to the others
    found = jnp.where(used[:, None], found, 0).reshape(blocks, gaussians, numbers)
    return found[..., :SHAPE], found[..., SHAPE:], None


blend_tiles.defvjp(_forward, _backward)


def _table(shapes: Array, features: Array) -> Float[Array, "k c"]:
    return jnp.concatenate([shapes, features], -1).reshape(len(shapes), -1)


def _rows(table: Any, k: Array, gaussians: int) -> list[list[Array]]:
    numbers = table.shape[1] // gaussians
    return [[table[k, g * numbers + c] for c in range(numbers)] for g in range(gaussians)]


def _call(name: str, kernel: Any, tiles: int, shapes: Sequence[tuple[int, ...]]) -> Any:
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton

    return pl.pallas_call(
        kernel,
        out_shape=[jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes],
        grid=(tiles,),
        compiler_params=triton.CompilerParams(num_warps=_WARPS),
        interpret=platform_of(jax.sharding.get_abstract_mesh()) != "gpu",
        name=name,
    )


def _program() -> Array:
    from jax.experimental import pallas as pl

    return pl.program_id(0)


def _pixels(tile: int) -> tuple[Float[Array, "p"], Float[Array, "p"]]:
    """X and y of a tile's pixel centres, row by row."""
    number = jax.lax.iota(jnp.int32, tile**2)
    return (number & (tile - 1)) + 0.5, (number >> (tile.bit_length() - 1)) + 0.5
