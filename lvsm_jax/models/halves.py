"""Tokens in two halves with maps of their own: decoupled halves (SSD-LVSM, arXiv 2605.18599).

The first half of a token's channels is of colours, the second of rays. Queries and keys come from
both together; values, outputs, norms and MLPs are of each half by itself. As a head does not
straddle the halves, each has weights that both halves decide, and carries values of one of them.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

# `joint`: one map of all channels, as in LVSM; `decoupled`: one of each half, but for queries and
# keys; `decoupled_film`: the halves also modulate each other after attention.
HALVES = ("joint", "decoupled", "decoupled_film")


class Halves(nnx.Module):
    """Two modules of one kind, one for each half of the channels."""

    def __init__(self, colors: nnx.Module, rays: nnx.Module):
        self.colors, self.rays = colors, rays

    def __call__(self, x: Float[Array, "*batch d"]) -> Float[Array, "*batch e"]:
        """Maps each half of the last dimension."""
        colors, rays = jnp.split(x, 2, axis=-1)
        return jnp.concatenate([self.colors(colors), self.rays(rays)], axis=-1)


def each_half(config: Any, make: Callable[[int], nnx.Module]) -> nnx.Module:
    """`make(width)` of all channels, or of each half where `config.halves` decouples them."""
    if config.halves == "joint":
        return make(config.width)
    return Halves(make(config.width // 2), make(config.width // 2))


class KeysValues(nnx.Module):
    """Keys and values by two maps, as one map of both makes them."""

    def __init__(self, keys: nnx.Module, values: nnx.Module):
        self.keys, self.values = keys, values

    @property
    def dtype(self) -> str:
        """In which they are computed."""
        return self.keys.dtype

    def in_parts(
        self, x: Float[Array, "*batch d"], parts: int
    ) -> tuple[Float[Array, "*batch d"], Float[Array, "*batch d"]]:
        """Keys and values: two parts, as `Linear.in_parts` cuts one map of both."""
        assert parts == 2
        return self.keys(x), self.values(x)


class Film(nnx.Module):
    """Each half scales and shifts the other, of the tokens themselves and not of a branch.

    Rays go first, and then the new colours. Both start as the identity. `make_norm` makes the norm
    of a half, `make_linear` a map from a half to twice its channels, with a bias.
    """

    def __init__(self, make_norm: Callable[[], nnx.Module], make_linear: Callable[[], nnx.Module]):
        self.norm_rays, self.rays_to_colors = make_norm(), make_linear()
        self.norm_colors, self.colors_to_rays = make_norm(), make_linear()
        for linear in (self.rays_to_colors, self.colors_to_rays):
            half = linear.bias.shape[-1] // 2
            linear.bias[...] = jnp.concatenate([jnp.ones(half), jnp.zeros(half)])

    def __call__(self, x: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
        """The tokens, modulated."""
        colors, rays = jnp.split(x, 2, axis=-1)
        scale, shift = jnp.split(self.rays_to_colors(self.norm_rays(rays)), 2, axis=-1)
        colors = (scale * colors + shift).astype(x.dtype)
        scale, shift = jnp.split(self.colors_to_rays(self.norm_colors(colors)), 2, axis=-1)
        return jnp.concatenate([colors, (scale * rays + shift).astype(x.dtype)], axis=-1)


class HalvesTokenizer(nnx.Module):
    """Tokens of patches: colours and rays of their pixels each make one half.

    Of pixels without colours, as those of targets, that half is zero.
    """

    def __init__(self, colors: nnx.Module | None, rays: nnx.Module, pixels: int):
        self.colors, self.rays, self.pixels = colors, rays, pixels

    def __call__(self, patches: Float[Array, "*batch pc"]) -> Float[Array, "*batch d"]:
        """Patches with the channels of each of their pixels together, rays last."""
        batch = patches.shape[:-1]
        by_pixel = patches.reshape(*batch, self.pixels, -1)
        channels = len(self.rays.kernel) // self.pixels
        rays = self.rays(by_pixel[..., -channels:].reshape(*batch, -1))
        if by_pixel.shape[-1] == channels:
            return jnp.concatenate([jnp.zeros_like(rays), rays], axis=-1)
        colors = self.colors(by_pixel[..., :-channels].reshape(*batch, -1))
        return jnp.concatenate([colors, rays], axis=-1)
