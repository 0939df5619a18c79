"""Kinds of material: paint, wood, stone, textile and more, each drawn from a range of looks."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from lvsm_jax.worlds.dice import Dice
from lvsm_jax.worlds.materials import PATTERNS

# Eight colours of each family, as they look on a screen, in 255ths.
PALETTES = {
    "white": "f2efe8 eae6dc f6f3ee e3e1dc efe9df dcd8cf f0eeea e8e8e6",
    "paint": "cdbfa6 b7c0b0 a9bac4 c9b8ae d8c9a8 9fb0a4 c4a79a bfc4c9",
    "deep": "33475b 5a3a32 2f4a3f 6b5b4a 454550 7a4a3a 3f5f63 584a60",
    "wood": "c9a06a a87b4e 7d5635 8f5f3a d6b98c 5e4130 b58d5c 9c7452",
    "dark wood": "4a3323 3c2a20 5c3d28 6a4830 2e231d 503a2c 70503a 44352b",
    "stone": "b9b4ab 8d8a86 d5d0c6 6f6d6c a69a8a c2b8a5 585a5e 9aa0a3",
    "clay": "a9583c b86d4b 8e4a36 c4835c 9c6147 7e3f30 b5785a cf9a78",
    "textile": "8a8f94 b3a692 6d7a86 7c6a5a 9a5f52 6f7a5c a88d5f 5a6478",
    "metal": "b8babd 8f9296 c9c5bd a8916a 6e7073 d0d2d3 9c8458 7a7d82",
    "vivid": "c0392b d9a521 2a6f97 3a8f5d d4722a 2a9d8f b0486f 6a4c93",
    "leaf": "4f6b3a 6b8446 3d5a3c 7d9455 55753f 8a9a5b 41603a 657a4a",
    "grass": "6f7d4a 8a8456 5f7044 94875f 7a8a52 a39a78 686f4c 8f8f70",
}
_NAMES = tuple(PALETTES)


def _linear(text: str) -> list[list[float]]:
    return [[(int(c[i : i + 2], 16) / 255) ** 2.2 for i in (0, 2, 4)] for c in text.split()]


_COLORS = np.array([_linear(text) for text in PALETTES.values()], np.float32)

# Of each recipe: palettes of the two colours and the lines, the pattern, and ranges of numbers.
_DEFAULTS = {
    "cell_u": (0.2, 0.5),
    "cell_v": (0.2, 0.5),
    "shift": (0, 0),
    "border": (0, 0),
    "vary": (0, 0),
    "angle": (0, 0),  # in quarter turns
    "frequency": (2, 6),
    "stretch": (1, 1),
    "warp": (0, 0),
    "blotch": (0.02, 0.08),
    "grain": (0.02, 0.06),
    "bump": (0, 0.03),
    "shine": (0, 0.05),
    "mirror": (0, 0),
    "glow": (0, 0),
    "contrast": (1, 1),  # how far the second colour is from the first
}


def _recipe(first, second, line, pattern, **ranges):
    return {"colors": (first, second, line), "pattern": pattern, **_DEFAULTS, **ranges}


_FINE = {"cell_u": (0.02, 0.08), "cell_v": (0.02, 0.08)}
_GRAIN = {"frequency": (12, 30), "stretch": (0.05, 0.12), "grain": (0.05, 0.15)}
RECIPES = {
    "plaster": _recipe("paint", "paint", "white", "plain", bump=(0.01, 0.08)),
    "white paint": _recipe("white", "white", "white", "plain", bump=(0, 0.04)),
    "deep paint": _recipe("deep", "deep", "white", "plain"),
    "striped paper": _recipe(
        "paint", "white", "white", "stripes", cell_u=(0.05, 0.25), contrast=(0.25, 0.9)
    ),
    "flowered paper": _recipe(
        "paint", "deep", "white", "waves", cell_u=(0.12, 0.5), cell_v=(0.12, 0.5),
        warp=(0.1, 0.5), contrast=(0.2, 0.7), frequency=(3, 8),
    ),
    "dotted paper": _recipe(
        "white", "vivid", "white", "dots", cell_u=(0.08, 0.3), cell_v=(0.08, 0.3),
        shift=(0, 0.5), contrast=(0.3, 0.9),
    ),
    "bricks": _recipe(
        "clay", "clay", "stone", "tiles", cell_u=(0.2, 0.27), cell_v=(0.06, 0.09),
        shift=(0.5, 0.5), border=(0.008, 0.015), vary=(0.2, 0.5), bump=(0.1, 0.3),
        frequency=(15, 30), grain=(0.1, 0.25),
    ),
    "white bricks": _recipe(
        "white", "stone", "stone", "tiles", cell_u=(0.2, 0.3), cell_v=(0.07, 0.1),
        shift=(0.5, 0.5), border=(0.006, 0.012), vary=(0.05, 0.2), bump=(0.1, 0.3),
        contrast=(0.1, 0.4), frequency=(15, 30),
    ),
    "wall boards": _recipe(
        "wood", "wood", "dark wood", "tiles", cell_u=(1.5, 3), cell_v=(0.09, 0.16),
        angle=(1, 1), shift=(0.3, 0.6), border=(0.004, 0.008), vary=(0.2, 0.5), **_GRAIN,
    ),
    "planks": _recipe(
        "wood", "dark wood", "dark wood", "tiles", cell_u=(0.7, 1.6), cell_v=(0.08, 0.18),
        shift=(0.3, 0.62), border=(0.003, 0.006), vary=(0.2, 0.5), contrast=(0.2, 0.7),
        shine=(0.05, 0.4), mirror=(0, 0.12), **_GRAIN,
    ),
    "floor tiles": _recipe(
        "stone", "white", "stone", "tiles", cell_u=(0.2, 0.6), cell_v=(0.2, 0.6),
        border=(0.004, 0.012), vary=(0.05, 0.25), shine=(0.1, 0.5), mirror=(0, 0.2),
        contrast=(0.1, 0.6), blotch=(0.05, 0.2), angle=(0, 1),
    ),
    "chequered tiles": _recipe(
        "white", "deep", "stone", "checks", cell_u=(0.15, 0.5), cell_v=(0.15, 0.5),
        border=(0, 0.008), shine=(0.1, 0.5), mirror=(0, 0.2), angle=(0, 0.5),
    ),
    "carpet": _recipe(
        "textile", "textile", "textile", "blotches", frequency=(20, 60), grain=(0.2, 0.4),
        contrast=(0.1, 0.4), bump=(0.1, 0.3),
    ),
    "rug": _recipe(
        "vivid", "textile", "deep", "waves", cell_u=(0.1, 0.4), cell_v=(0.1, 0.4),
        border=(0.0, 0.04), grain=(0.1, 0.3), vary=(0, 0.3), contrast=(0.4, 1.0),
    ),
    "striped rug": _recipe(
        "textile", "deep", "white", "stripes", cell_u=(0.05, 0.3), grain=(0.1, 0.3),
        angle=(0, 1),
    ),
    "concrete": _recipe(
        "stone", "stone", "stone", "blotches", frequency=(0.8, 3), contrast=(0.1, 0.4),
        grain=(0.05, 0.2), bump=(0.02, 0.15),
    ),
    "marble": _recipe(
        "white", "stone", "stone", "marble", cell_u=(0.3, 0.9), cell_v=(0.3, 0.9),
        warp=(0.2, 0.6), frequency=(2, 6), shine=(0.2, 0.6), mirror=(0, 0.15),
        contrast=(0.3, 0.9),
    ),
    "oak": _recipe(
        "wood", "wood", "wood", "wood", contrast=(0.5, 1), frequency=(6, 18),
        stretch=(0.06, 0.15), grain=(0.05, 0.15), shine=(0, 0.25),
    ),
    "walnut": _recipe(
        "dark wood", "wood", "wood", "wood", contrast=(0.2, 0.5), frequency=(6, 18),
        stretch=(0.06, 0.15), grain=(0.05, 0.15), shine=(0.05, 0.4),
    ),
    "lacquer": _recipe("white", "white", "white", "plain", shine=(0.05, 0.4), mirror=(0, 0.08)),
    "coloured lacquer": _recipe(
        "deep", "deep", "white", "plain", shine=(0.1, 0.5), mirror=(0, 0.1)
    ),
    "vivid lacquer": _recipe("vivid", "vivid", "white", "plain", shine=(0.1, 0.6)),
    "cloth": _recipe(
        "textile", "textile", "textile", "checks", contrast=(0.1, 0.4), grain=(0.1, 0.3),
        bump=(0.05, 0.3), frequency=(8, 25), **_FINE,
    ),
    "striped cloth": _recipe(
        "textile", "white", "white", "stripes", cell_u=(0.02, 0.1), grain=(0.1, 0.2),
        angle=(0, 1),
    ),
    "chequered cloth": _recipe(
        "vivid", "white", "white", "checks", cell_u=(0.03, 0.1), cell_v=(0.03, 0.1),
        grain=(0.1, 0.2), contrast=(0.4, 1),
    ),
    "spotted": _recipe(
        "white", "vivid", "white", "dots", cell_u=(0.05, 0.2), cell_v=(0.05, 0.2),
        shift=(0, 0.5),
    ),
    "leaves": _recipe(
        "leaf", "leaf", "leaf", "blotches", frequency=(12, 30), bump=(0.8, 2), grain=(0.2, 0.5),
    ),
    "steel": _recipe(
        "metal", "metal", "metal", "plain", shine=(0.4, 1), mirror=(0.3, 0.7), grain=(0, 0.05)
    ),
    "mirror": _recipe("white", "white", "white", "plain", mirror=(0.85, 0.95), grain=(0, 0),
                      blotch=(0, 0), bump=(0, 0)),
    "painting": _recipe(
        "vivid", "deep", "paint", "waves", cell_u=(0.15, 0.6), cell_v=(0.15, 0.6), angle=(0, 4),
        warp=(0.4, 1.2), frequency=(3, 10), blotch=(0.1, 0.6), contrast=(0.6, 1.2),
    ),
    "landscape": _recipe(
        "paint", "leaf", "paint", "blotches", frequency=(2, 7), stretch=(0.2, 1),
        blotch=(0.1, 0.5),
    ),
    "rock": _recipe(
        "stone", "stone", "stone", "blotches", frequency=(2, 8), bump=(0.2, 0.8),
        grain=(0.1, 0.4), blotch=(0.1, 0.4),
    ),
    "terrazzo": _recipe(
        "white", "clay", "stone", "blotches", frequency=(15, 40), contrast=(0.3, 0.8),
        shine=(0.1, 0.4), mirror=(0, 0.15),
    ),
    "meadow": _recipe(
        "grass", "leaf", "grass", "blotches", frequency=(0.7, 3), grain=(0.3, 0.6),
        blotch=(0.1, 0.4), bump=(0.2, 0.6),
    ),
    "paving": _recipe(
        "stone", "clay", "stone", "tiles", cell_u=(0.3, 0.8), cell_v=(0.3, 0.6),
        shift=(0, 0.5), border=(0.01, 0.03), vary=(0.1, 0.4), contrast=(0.1, 0.5),
        blotch=(0.1, 0.3), grain=(0.1, 0.3), bump=(0.05, 0.2),
    ),
    "studio": _recipe("white", "stone", "white", "plain", contrast=(0, 1), grain=(0, 0.02)),
    "lamp": _recipe("white", "white", "white", "plain", glow=(1.5, 4)),
}  # fmt: skip
_RECIPE_NAMES = tuple(RECIPES)
_RANGES = tuple(_DEFAULTS)
_PALETTE_OF = np.array([[_NAMES.index(c) for c in r["colors"]] for r in RECIPES.values()])
_PATTERN_OF = np.array([PATTERNS.index(r["pattern"]) for r in RECIPES.values()], np.float32)
_LOW, _HIGH = (
    np.array([[r[name][i] for name in _RANGES] for r in RECIPES.values()], np.float32)
    for i in (0, 1)
)


def recipe(*names: str) -> list[int]:
    """Numbers of recipes, one of which `draw_recipes` picks."""
    return [_RECIPE_NAMES.index(name) for name in names]


def draw_recipes(dice: Dice, uses: list[tuple[str, ...]]) -> Int[Array, " m"]:
    """One of the recipes that each use names."""
    width = max(len(names) for names in uses)
    numbers = np.array([np.resize(recipe(*names), width) for names in uses])
    lengths = np.array([len(names) for names in uses])
    picks = dice.integers(lengths.astype(np.float32), (len(uses),))
    return jnp.take_along_axis(jnp.asarray(numbers), picks[:, None], axis=1)[:, 0]


def draw_materials(dice: Dice, recipes: Int[Array, " m"], complexity, config) -> dict[str, Array]:
    """Materials of these recipes; with less complexity plainer ones.

    Returns fields of `materials.FIELDS`, with an axis of materials first.
    """
    number = recipes.shape[0]
    low, high = jnp.asarray(_LOW)[recipes], jnp.asarray(_HIGH)[recipes]
    drawn = dict(zip(_RANGES, dice.uniform(low, high, (number, len(_RANGES))).T, strict=True))
    picks = dice.integers(8.0, (number, 3))
    colors = jnp.asarray(_COLORS)[jnp.asarray(_PALETTE_OF)[recipes], picks]  # [m, 3 colours, 3]
    colors = colors * dice.uniform(0.8, 1.2, (number, 3, 1))
    colors = jnp.clip(colors * dice.uniform(0.94, 1.06, (number, 3, 3)), 0.005, 0.9)
    first, second, line = jnp.moveaxis(colors, 1, 0)
    # Simple worlds have surfaces of weak patterns, and nothing mirrors in them.
    second = first + (second - first) * (drawn["contrast"] * (0.3 + 0.7 * complexity))[:, None]
    mirrored = dice.chance(config.mirror_share * complexity)
    bumpy = dice.chance(config.bump_share * complexity, (number,))
    angle = drawn["angle"] * jnp.pi / 2
    return {
        "first": first,
        "second": jnp.clip(second, 0.004, 0.9),
        "line": line,
        "pattern": jnp.asarray(_PATTERN_OF)[recipes],
        "cell": jnp.stack([drawn["cell_u"], drawn["cell_v"]], -1),
        "turn": jnp.stack([jnp.cos(angle), jnp.sin(angle)], -1),
        "mirror": jnp.where(mirrored, drawn["mirror"], 0.0),
        "bump": jnp.where(bumpy, drawn["bump"], 0.0),
        **{
            name: drawn[name]
            for name in (
                "shift", "border", "vary", "frequency", "stretch", "warp", "blotch", "grain",
                "shine", "glow",
            )
        },
    }  # fmt: skip
