"""Value noise, and the hash behind it: the same numbers on every machine."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

# Odd multipliers that mix lattice coordinates (from Knuth's golden ratio and common primes).
_X, _Y, _Z, _MIX = 0x2545F491, 0x3C6EF35F, 0x1B873593, 0x5851F42D


def hash_cells(x: Int[Array, "..."], y: Int[Array, "..."], z: Int[Array, "..."]):
    """A random number in [0, 1) for each cell of a lattice."""
    return _finish(x * _X + y * _Y + z * _Z)


def _finish(mixed):
    mixed = (mixed ^ jax.lax.shift_right_logical(mixed, 15)) * _MIX
    mixed = mixed ^ jax.lax.shift_right_logical(mixed, 13)
    return (mixed & 0xFFFF).astype(jnp.float32) * (1 / 65536)


def value_noise(x, y, z) -> tuple[Float[Array, "..."], list[Float[Array, "..."]]]:
    """Smooth noise in [-1, 1] with cells of size 1, and its gradient."""
    cells = [jnp.floor(c) for c in (x, y, z)]
    fractions = [c - cell for c, cell in zip((x, y, z), cells, strict=True)]
    ix, iy, iz = (cell.astype(jnp.int32) for cell in cells)
    xs, ys, zs = ((i * m, i * m + m) for i, m in ((ix, _X), (iy, _Y), (iz, _Z)))
    sx, sy, sz = (f * f * (3 - 2 * f) for f in fractions)
    dx, dy, dz = (6 * f * (1 - f) for f in fractions)
    edges = {}
    for j in range(2):
        for k in range(2):
            base = ys[j] + zs[k]
            low, high = _finish(xs[0] + base), _finish(xs[1] + base)
            edges[j, k] = low + sx * (high - low), high - low
    faces = []
    for k in range(2):
        (low, slope_low), (high, slope_high) = edges[0, k], edges[1, k]
        value = low + sy * (high - low)
        faces.append((value, slope_low + sy * (slope_high - slope_low), high - low))
    (low, low_x, low_y), (high, high_x, high_y) = faces
    value = low + sz * (high - low)
    gradient = [
        2 * dx * (low_x + sz * (high_x - low_x)),
        2 * dy * (low_y + sz * (high_y - low_y)),
        2 * dz * (high - low),
    ]
    return 2 * value - 1, gradient
