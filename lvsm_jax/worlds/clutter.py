"""Cluttered boxes: clusters of turned solids in a shell, with sticks and panes.

After MegaSynth's description (arXiv 2412.14166, section 3): nothing has a meaning, everything a
texture. Sizes are shares of its rooms'.
"""

import jax.numpy as jnp

from lvsm_jax.worlds.config import WorldsConfig
from lvsm_jax.worlds.dice import Dice, yaw_rotations
from lvsm_jax.worlds.layout import Stage, draw_light, keep_first, make_solids
from lvsm_jax.worlds.materials import pack
from lvsm_jax.worlds.recipes import draw_materials, draw_recipes
from lvsm_jax.worlds.scene import PANES, WINDOWS, Scene
from lvsm_jax.worlds.solids import Solids

# Clusters: how many, least and greatest half size in metres, and where along y they are.
_CLUSTERS = ((4, 0.7, 1.2, "floor"), (5, 0.3, 0.7, "floor"), (3, 0.3, 0.8, "ceiling"),
             (4, 0.3, 0.8, "any"))  # fmt: skip
_MATERIALS = 32
ANYTHING = (
    "plaster", "deep paint", "striped paper", "flowered paper", "dotted paper", "bricks", "planks",
    "floor tiles", "chequered tiles", "concrete", "marble", "oak", "walnut", "coloured lacquer",
    "vivid lacquer", "cloth", "striped cloth", "chequered cloth", "spotted", "leaves", "steel",
    "painting", "landscape", "rock", "terrazzo", "rug", "mirror", "striped rug",
)  # fmt: skip
_WALLS = (
    "plaster", "white paint", "deep paint", "striped paper", "flowered paper", "bricks",
    "white bricks", "wall boards", "concrete", "rock", "marble", "floor tiles", "painting",
)  # fmt: skip


def lay_out(dice: Dice, config: WorldsConfig, complexity) -> tuple[Scene, Stage]:
    """A cluttered box, and where cameras stand in it."""
    half = dice.uniform(jnp.array([3.0, 1.6, 3.0]), jnp.array([5.0, 2.5, 5.0]), (3,))
    shell = jnp.stack([-half, half])
    uses = [ANYTHING] * (_MATERIALS - 6) + [_WALLS] * 6
    materials = draw_materials(dice, draw_recipes(dice, uses), complexity, config)

    centers, sizes = [], []
    for number, least, greatest, where in _CLUSTERS:
        size = dice.uniform(least, greatest, (number,))
        at = dice.uniform(-1, 1, (number, 3)) * (half - 0.6 * size[:, None])
        if where == "floor":
            at = at.at[:, 1].set(half[1] - size * dice.uniform(0.3, 1.0, (number,)))
        elif where == "ceiling":
            at = at.at[:, 1].set(size * dice.uniform(0.2, 1.0, (number,)) - half[1])
        centers.append(at)
        sizes.append(size)
    centers, sizes = jnp.concatenate(centers), jnp.concatenate(sizes)
    share = 0.25 + 0.75 * complexity

    def scatter(capacity, stick_share, first_body):
        cluster = dice.integers(float(len(sizes)), (capacity,))
        size = sizes[cluster][:, None]
        axes = size * dice.uniform(0.15, 0.85, (capacity, 3))
        offset = dice.uniform(-0.6, 0.6, (capacity, 3)) * axes.max(-1, keepdims=True)
        center = centers[cluster] + offset
        stick = dice.chance(stick_share, (capacity, 1))
        radius = dice.uniform(0.015, 0.06, (capacity, 1))
        length = dice.uniform(0.5, 2.0, (capacity, 1))
        axes = jnp.where(stick, jnp.concatenate([radius, length, radius], 1), axes)
        anywhere = dice.uniform(-0.95, 0.95, (capacity, 3)) * half
        center = jnp.where(stick, anywhere, center)
        level = yaw_rotations(dice.uniform(0, 2 * jnp.pi, (capacity,)))
        turned = dice.chance(0.6, (capacity,))[:, None, None]
        turn = jnp.where(turned, dice.rotations(capacity), level)
        tapered = dice.chance(0.5, (capacity,))
        ratio = jnp.where(tapered & ~stick[:, 0], dice.uniform(0, 0.9, (capacity,)), 1.0)
        material = dice.integers(_MATERIALS - 6.0, (capacity,))
        there = jnp.arange(capacity) < jnp.ceil(capacity * share)
        body = first_body + jnp.arange(capacity)
        return keep_first(make_solids(center, axes, material, turn, ratio, body), there, capacity)

    panes = _draw_panes(dice, half, dice.chance(config.pane_share * complexity))
    has_window = dice.chance(config.window_share)
    scene = Scene(
        boxes=scatter(config.boxes, 0.15, 0),
        ellipsoids=scatter(config.ellipsoids, 0.0, config.boxes),
        cylinders=scatter(config.cylinders, 0.35, config.boxes + config.ellipsoids),
        shell=shell,
        face_material=_MATERIALS - 6 + jnp.arange(6),
        face_open=jnp.zeros(6, bool),
        windows=draw_windows(dice, half, has_window, (0.5, 1.4)),
        skirting=jnp.float32(0.0),
        panes=panes,
        materials=pack(materials),
        light=draw_light(dice, config, complexity, shell, indoors=True, has_window=has_window),
    )
    stage = Stage(
        low=-half + 0.3,
        high=half - 0.3,
        focus=dice.uniform(-0.35, 0.35, (3,)) * half,
        radius=jnp.stack([0.4 * half.min(), 0.9 * half.min()]) + 0.8,
        height=jnp.stack([-0.6 * half[1], 0.6 * half[1]]),
        stride=0.35 * half[0],
        arc=jnp.float32(1.6),
    )
    return scene, stage


def draw_windows(dice: Dice, half, there, size: tuple[float, float]):
    """Windows in the walls of a shell around the origin, none lower than knees."""
    windows = []
    for number in range(WINDOWS):
        axis_x = dice.chance(0.5)
        sign = jnp.where(dice.chance(0.5), 1.0, -1.0)
        wide = dice.uniform(*size)
        tall = dice.uniform(0.5, 0.9) * jnp.minimum(size[1], 0.6 * half[1])
        side = jnp.where(axis_x, half[2], half[0])
        along = dice.uniform(-1, 1) * jnp.maximum(side - wide - 0.2, 0)
        y = jnp.minimum(dice.uniform(-0.45, 0.1) * half[1], half[1] - 0.5 - tall)
        middle = jnp.where(
            axis_x,
            jnp.stack([sign * half[0], y, along]),
            jnp.stack([along, y, sign * half[2]]),
        )
        thin = jnp.float32(0.05)
        extent = jnp.where(axis_x, jnp.stack([thin, tall, wide]), jnp.stack([wide, tall, thin]))
        more = dice.chance(0.45) if number else True
        windows.append(jnp.where(there & more, jnp.stack([middle, extent]), 0.0))
    return jnp.stack(windows)


def no_panes() -> Solids:
    """Panes of which none is there."""
    place = jnp.zeros((PANES, 3))
    panes = make_solids(place, place + 1, jnp.zeros(PANES, jnp.int32))
    return keep_first(panes, jnp.zeros(PANES, bool), PANES)


def _draw_panes(dice: Dice, half, there) -> Solids:
    """Upright panes of glass somewhere in the shell."""
    extent = dice.uniform(0.4, 1.1, (PANES, 3)).at[:, 0].set(0.006)
    center = dice.uniform(-0.6, 0.6, (PANES, 3)) * half
    turn = yaw_rotations(dice.uniform(0, 2 * jnp.pi, (PANES,)))
    panes = make_solids(center, extent, jnp.zeros(PANES, jnp.int32), turn)
    return keep_first(panes, jnp.broadcast_to(there, (PANES,)), PANES)
