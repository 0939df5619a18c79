"""Procedural surfaces: a row of numbers for each, and the colour and slope that they give a point.

Everything is carved out of a solid's own coordinates in metres. Patterns repeat in cells of the
plane `(u, v)` of the surface; noise is of all three coordinates. Both fade out where a pixel covers
more than one of their cells, so that little of them aliases.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from lvsm_jax.worlds.noise import hash_cells, value_noise

PATTERNS = ("plain", "stripes", "checks", "tiles", "waves", "blotches", "marble", "wood", "dots")

# Numbers of a material, in the order of its row:
FIELDS = {
    "first": 3,  # the two colours of the pattern, linear
    "second": 3,
    "line": 3,  # colour of the lines between cells
    "pattern": 1,  # position in PATTERNS
    "cell": 2,  # size of a cell along u and v, in metres
    "shift": 1,  # of each row of cells against the next, in cells
    "border": 1,  # width of the lines, in metres
    "vary": 1,  # how much cells differ in colour
    "turn": 2,  # cosine and sine of the pattern's turn in the plane
    "frequency": 1,  # of the noise, per metre
    "stretch": 1,  # the noise is this much slower along the longest side
    "warp": 1,  # how far noise shifts the pattern, in cells
    "blotch": 1,  # how much noise changes the brightness
    "grain": 1,  # the same for fine noise
    "bump": 1,  # slope of the bumps
    "shine": 1,  # strength of highlights
    "mirror": 1,  # share of light that is reflected as in a mirror
    "glow": 1,  # light that it gives, in units of its colour
}
CAPACITY = 36  # materials of a scene


def pack(materials: dict[str, Array]) -> Float[Array, "m width"]:
    """`CAPACITY` rows of materials, given by the names of `FIELDS`, each `[m]` or `[m, size]`."""
    parts = [materials[name].reshape(-1, size) for name, size in FIELDS.items()]
    rows = jnp.concatenate([part.astype(jnp.float32) for part in parts], axis=1)
    return jnp.pad(rows, ((0, CAPACITY - rows.shape[0]), (0, 0)))


def unpack(columns: Float[Array, "width r"]) -> dict[str, Float[Array, "..."]]:
    """Materials of rays by name: `[r]`, or `[size, r]`."""
    start, materials = 0, {}
    for name, size in FIELDS.items():
        materials[name] = columns[start] if size == 1 else columns[start : start + size]
        start += size
    return materials


def paint(m, uv, local, along, seed, footprint):
    """Colours `[3, r]` and slopes along the local axes of surface points.

    `uv` are coordinates in the surface's plane, `local` three in the solid's axes, in metres;
    `along` marks the axis of the longest side. `seed` differs between solids. `footprint` is the
    width of a pixel on the surface, in metres.
    """
    slow = [jnp.where(is_long, m["stretch"], 1.0) * m["frequency"] for is_long in along]
    shifted = seed * 7.31
    points = [c * f + shifted for c, f in zip(local, slow, strict=True)]
    coarse, slope = value_noise(*points)
    finer, finer_slope = value_noise(*(2.7 * p for p in points))
    fine, _ = value_noise(
        *(c * 90.0 * jnp.sqrt(f / m["frequency"]) for c, f in zip(local, slow, strict=True))
    )
    clear = _fade(footprint * m["frequency"])
    clearer = _fade(footprint * m["frequency"] * 2.7)
    noise = 0.65 * coarse * clear + 0.35 * finer * clearer
    grain = fine * _fade(footprint * 90.0)

    cosine, sine = m["turn"]
    u = (cosine * uv[0] + sine * uv[1]) / m["cell"][0] + m["warp"] * noise
    v = (cosine * uv[1] - sine * uv[0]) / m["cell"][1] + m["warp"] * finer * clearer
    fu, fv = footprint / m["cell"][0] + 1e-4, footprint / m["cell"][1] + 1e-4
    row = jnp.floor(v)
    across = u + m["shift"] * row
    column = jnp.floor(across)
    inside_u, inside_v = across - column, v - row
    chance = hash_cells(
        column.astype(jnp.int32), row.astype(jnp.int32), (seed * 1024).astype(jnp.int32)
    )
    gap_u = jnp.minimum(inside_u, 1 - inside_u) * m["cell"][0]
    gap_v = jnp.minimum(inside_v, 1 - inside_v) * m["cell"][1]
    width = jnp.maximum(m["border"], 0)
    reach = jnp.minimum(gap_u, gap_v) - width / 2
    on_line = jnp.clip(0.5 - reach / (footprint + 1e-3), 0, 1)
    on_line = on_line * jnp.minimum(1.0, width / (footprint + 1e-4))

    stripes_u, stripes_v = _square_wave(u, fu), _square_wave(v, fv)
    checks = stripes_u + stripes_v - 2 * stripes_u * stripes_v
    waves = _sine(u) * _fade(fu) + _sine(0.62 * u + 0.78 * v + 0.2) * _fade(fu)
    waves = 0.5 + 0.3 * waves + 0.25 * _sine(1.9 * v - 0.5 * u) * _fade(2 * fv)
    blotches = jnp.clip(0.5 + 4 * noise, 0, 1)
    marble = jnp.minimum(2.5 * jnp.abs(_sine(0.25 * (u + v) + 0.6 * noise)), 1.0)
    rings = 0.5 + 0.5 * _sine(1.5 * noise + 0.3 * chance) * clearer
    wood = 0.6 * rings + 0.4 * (0.5 + 0.5 * grain)
    radius = jnp.sqrt((inside_u - 0.5) ** 2 + (inside_v - 0.5) ** 2)
    dots = jnp.clip((0.3 - radius) / jnp.maximum(fu, fv) + 0.5, 0, 1)

    choices = (0 * u, stripes_u, checks, chance, waves, blotches, marble, wood, dots)
    mix = choices[0]
    for number, choice in enumerate(choices[1:], start=1):
        mix = jnp.where(m["pattern"] == number, choice, mix)
    bright = 1 + m["blotch"] * noise + m["grain"] * grain + m["vary"] * (chance - 0.5)
    lined = jnp.where(m["border"] > 0, on_line, 0.0)
    color = (m["first"] + (m["second"] - m["first"]) * mix) * jnp.maximum(bright, 0.05)
    color = color + (m["line"] - color) * lined
    slopes = [
        m["bump"] * (a * clear + 0.8 * b * clearer) for a, b in zip(slope, finer_slope, strict=True)
    ]
    return jnp.clip(color, 0, 1), slopes


def _fade(cells_a_pixel):
    """1 for details that a pixel resolves, 0 for those it does not."""
    return jnp.clip(1.6 - 2 * cells_a_pixel, 0, 1)


def _sine(turns):
    """The sine of a number of turns, to 0.001, from two parabolas: much cheaper than the exact."""
    rest = turns - jnp.floor(turns + 0.5)
    arch = 8 * rest * (1 - 2 * jnp.abs(rest))
    return arch * (0.775 + 0.225 * jnp.abs(arch))


def _square_wave(x, footprint):
    """0 and 1 in turns over cells of size 1, averaged over a pixel's footprint."""
    half = x * 0.5
    triangle = jnp.abs(2 * (half - jnp.floor(half)) - 1)  # 1 at even, 0 at odd numbers
    wave = (triangle - 0.5) / jnp.maximum(footprint, 1e-3)
    return jnp.clip(wave + 0.5, 0, 1)
