"""Random numbers of a scene: drawn once, and handed out while the program is traced."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key


class Dice:
    """Hands out parts of one array of uniform numbers, as one draw is much cheaper than many.

    A part belongs to the place in the program that asks for it; a scene is thus a function of its
    key. ValueError where more is asked for than was drawn.
    """

    def __init__(self, key: Key[Array, ""], number: int = 4096):
        self._numbers = jax.random.uniform(key, (number,))
        self._used = 0

    def uniform(self, low=0.0, high=1.0, shape: Sequence[int] = ()) -> Float[Array, "..."]:
        """Uniform numbers of a shape, to which `low` and `high` are broadcast."""
        size = math.prod(shape)
        start, self._used = self._used, self._used + size
        if self._used > len(self._numbers):
            raise ValueError(f"{self._used} random numbers asked for, {len(self._numbers)} drawn")
        part = self._numbers[start : self._used].reshape(tuple(shape))
        return low + (high - low) * part

    def chance(self, share, shape: Sequence[int] = ()) -> Array:
        """True as often as `share` says."""
        return self.uniform(shape=shape) < share

    def integers(self, high, shape: Sequence[int] = ()) -> Int[Array, "..."]:
        """Whole numbers from 0 to below `high`, a number or an array."""
        return jnp.floor(self.uniform(0.0, high, shape)).astype(jnp.int32)

    def choice(self, weights, shape: Sequence[int] = ()) -> Int[Array, "..."]:
        """Positions in `weights`, as often as these say."""
        bounds = jnp.cumsum(jnp.asarray(weights, jnp.float32))
        at = self.uniform(0.0, bounds[-1], shape)
        return (at[..., None] >= bounds[:-1]).sum(-1)

    def rotations(self, number: int) -> Float[Array, "p 3 3"]:
        """Uniform rotations (Shoemake's quaternions)."""
        u, a, b = self.uniform(0.0, jnp.array([1.0, 2 * jnp.pi, 2 * jnp.pi]), (number, 3)).T
        low, high = jnp.sqrt(1 - u), jnp.sqrt(u)
        x, y, z, w = low * jnp.sin(a), low * jnp.cos(a), high * jnp.sin(b), high * jnp.cos(b)
        rows = [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
        return jnp.stack([jnp.stack(row, -1) for row in rows], -2)


def yaw_rotations(yaw: Float[Array, " p"]) -> Float[Array, "p 3 3"]:
    """Rotations about the upright axis; rows are the axes of what is turned."""
    c, s, zero, one = jnp.cos(yaw), jnp.sin(yaw), jnp.zeros_like(yaw), jnp.ones_like(yaw)
    rows = [[c, zero, -s], [zero, one, zero], [s, zero, c]]
    return jnp.stack([jnp.stack(row, -1) for row in rows], -2)
