"""The lists of tiles blended by a Pallas kernel of a TPU (Mosaic): a step of its grid a block.

A tile's picture stays on the chip while its blocks pass, front to back, for the steps of a grid
follow each other; the next block comes in meanwhile. The backward pass takes all blocks from the
last to the first. All else is as in `composite_gpu`.

Letters: `k` blocks, `g` Gaussians of a block, `f` features, `p` pixels of a tile.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lvsm_jax.common.platforms import platform_of
from lvsm_jax.gaussians.blending import SHAPE, blend_block, unblend_block

LANES = 128  # of a vector: a tile's pixels are a multiple


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def blend_tiles(
    tile: int,
    shapes: Float[Array, "k g 6"],
    features: Float[Array, "k g f"],
    tile_of: Int[Array, "k"],
    starts: Int[Array, "starts"],
) -> tuple[Float[Array, "tiles f p"], Float[Array, "tiles p"]]:
    """The picture of each tile, and the share of what is behind that it lets through.

    As `composite_gpu.blend_tiles`; `tile_of` is the tile of each block.
    """
    return _forward(tile, shapes, features, tile_of, starts)[0]


def _forward(
    tile: int, shapes: Array, features: Array, tile_of: Array, starts: Array
) -> tuple[Any, Any]:
    from jax.experimental import pallas as pl

    (blocks, gaussians, depth), tiles = features.shape, len(starts) - 1

    def kernel(tile_of: Any, _: Any, table: Any, image: Any, end: Any, before: Any) -> None:
        k = pl.program_id(0)

        @pl.when((k == 0) | (tile_of[k] != tile_of[jnp.maximum(k - 1, 0)]))
        def _begin() -> None:
            image[...], end[...] = jnp.zeros_like(image), jnp.ones_like(end)

        before[...] = end[...]
        seen = [image[0, f] for f in range(depth)], end[0]
        colors, through = blend_block(_rows(table, gaussians), *_pixels(tile), *seen)
        for f, color in enumerate(colors):
            image[0, f] = color
        end[0] = through

    pixels = (tile**2 // LANES, LANES)
    outputs = [("tile", (tiles, depth, *pixels)), ("tile", (tiles, *pixels))]
    outputs += [("block", (blocks, *pixels))]
    call = _call("blend", kernel, tile_of, starts[-1], ["numbers"], outputs)
    images, ends, befores = call(_table(shapes, features))
    # Nothing was written to tiles without blocks.
    some = (starts[1:] > starts[:-1])[:, None, None]
    images, ends = jnp.where(some[:, None], images, 0), jnp.where(some, ends, 1)
    saved = shapes, features, tile_of, starts, befores, ends
    return (images.reshape(tiles, depth, -1), ends.reshape(tiles, -1)), saved


def _backward(tile: int, saved: tuple, to_images: tuple[Array, Array]) -> tuple:
    from jax.experimental import pallas as pl

    shapes, features, tile_of, starts, befores, ends = saved
    blocks, gaussians, depth = features.shape
    numbers, used = SHAPE + depth, starts[-1]

    def kernel(tile_of: Any, used: Any, *references: Any) -> None:
        table, before, to_image, end, found, behind = references
        k = used[0] - 1 - pl.program_id(0)

        @pl.when((k == used[0] - 1) | (tile_of[k] != tile_of[jnp.minimum(k + 1, used[0] - 1)]))
        def _begin() -> None:
            behind[...] = end[0]

        def write(g: int, sums: Sequence[Array]) -> None:
            for c, value in enumerate(sums):
                found[0, 0, g * numbers + c] = value

        to_colors, rows = [to_image[0, f] for f in range(depth)], _rows(table, gaussians)
        state = before[0], behind[...], write
        behind[...] = unblend_block(rows, *_pixels(tile), to_colors, *state)

    table, (to_image, to_end) = _table(shapes, features), to_images
    to_image = to_image.reshape(-1, depth, *ends.shape[1:])
    kinds, outputs = ["numbers", "block", "tile", "tile"], [("numbers", table.shape)]
    call = _call("blend_backward", kernel, tile_of, used, kinds, outputs, ends.shape[1:])
    (found,) = call(table, befores, to_image, to_end.reshape(ends.shape) * ends)
    live = jnp.arange(blocks) < used  # nothing was written to the others
    found = jnp.where(live[:, None], found[:, 0], 0).reshape(blocks, gaussians, numbers)
    return found[..., :SHAPE], found[..., SHAPE:], None, None


blend_tiles.defvjp(_forward, _backward)


def _call(
    name: str,
    kernel: Callable[..., None],
    tile_of: Array,
    used: Array,
    inputs: Sequence[str],
    outputs: Sequence[tuple[str, tuple[int, ...]]],
    carried: tuple[int, ...] | None = None,
) -> Callable[..., Any]:
    """The kernel over the blocks that are used; where it carries a value, from last to first.

    Arrays are `numbers` of each block, for its scalar unit, or images of each `block` or `tile`.
    """
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import tpu as pltpu

    def spec(kind: str, shape: tuple[int, ...]) -> Any:
        def at(step: Array, tile_of: Any, used: Any) -> tuple[Any, ...]:
            k = step if carried is None else used[0] - 1 - step
            return tile_of[k] if kind == "tile" else k, *[0] * (len(shape) - 1)

        memory = pltpu.SMEM if kind == "numbers" else pltpu.VMEM
        return pl.BlockSpec((1, *shape[1:]), at, memory_space=memory)

    def call(*arrays: Array) -> Any:
        grid = pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(used,),
            in_specs=[spec(kind, x.shape) for kind, x in zip(inputs, arrays, strict=True)],
            out_specs=[spec(kind, shape) for kind, shape in outputs],
            scratch_shapes=[] if carried is None else [pltpu.VMEM(carried, jnp.float32)],
        )
        return pl.pallas_call(
            kernel,
            out_shape=[jax.ShapeDtypeStruct(shape, jnp.float32) for _, shape in outputs],
            grid_spec=grid,
            interpret=platform_of(jax.sharding.get_abstract_mesh()) != "tpu",
            name=name,
        )(tile_of, used[None], *arrays)

    return call


def _table(shapes: Array, features: Array) -> Float[Array, "k 1 c"]:
    return jnp.concatenate([shapes, features], -1).reshape(len(shapes), 1, -1)


def _rows(table: Any, gaussians: int) -> list[list[Array]]:
    numbers = table.shape[-1] // gaussians
    return [[table[0, 0, g * numbers + c] for c in range(numbers)] for g in range(gaussians)]


def _pixels(tile: int) -> tuple[Float[Array, "rows lanes"], Float[Array, "rows lanes"]]:
    """X and y of a tile's pixel centres, row by row."""
    shape = (tile**2 // LANES, LANES)
    row, lane = (jax.lax.broadcasted_iota(jnp.int32, shape, axis) for axis in (0, 1))
    number = row * LANES + lane
    # A power of two, for vectors have no division.
    x, y = number & (tile - 1), number >> (tile.bit_length() - 1)
    return x.astype(jnp.float32) + 0.5, y.astype(jnp.float32) + 0.5
